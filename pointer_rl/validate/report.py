"""The result of validating a file, and how it is written: as text, as JSON, for GitHub."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pointer_rl.escaping import printable


@dataclass(frozen=True)
class Finding:
    """Something wrong in a file."""

    rule: str
    """The broken rule, e.g. "row-in-range"."""
    pointer: str
    """The place as a JSON pointer (RFC 6901). In `.jsonl` it begins with the query id, too."""
    message: str
    fix: str
    """What to do about it."""
    line: int
    """The line on which the record (or `_meta`) begins, from 1."""


@dataclass(frozen=True)
class Unchecked:
    """A rule that could not be applied to the file or to a part of it."""

    rule: str
    reason: str


@dataclass
class Report:
    """The result for one file."""

    path: Path
    queries: int = 0
    candidates: Counter[str] = field(default_factory=Counter)
    """Generation method → number of candidates."""
    failed: int = 0
    """Number of candidates whose trial failed."""
    findings: list[Finding] = field(default_factory=list)
    """The first ones, up to `max_findings`."""
    num_findings: int = 0
    """Number of all findings."""
    unchecked: list[Unchecked] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Remarks that are not findings."""


def json_pointer(path: Iterable[str | int]) -> str:
    """A path in the notation of RFC 6901: `("a/b", 0)` → `/a~1b/0`."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


# --- formats ----------------------------------------------------------------------------------


def _text(reports: Sequence[Report]) -> str:
    return "\n".join(printable(line) for report in reports for line in _text_lines(report))


def _text_lines(report: Report) -> Iterator[str]:
    for finding in report.findings:
        yield f"{report.path}:{finding.line}: {finding.pointer or 'the file'}"
        yield f"    {finding.rule}: {finding.message}"
        yield f"    to do: {finding.fix}"
    more = report.num_findings - len(report.findings)
    if more:
        them = "it" if more == 1 else "them"
        yield (
            f"{report.path}: {_count(more, 'more finding')} "
            f"(show {them} with a larger --max-findings)"
        )
    yield f"{report.path}: {_summary(report)}"
    yield from (f"    note: {note}" for note in report.notes)
    yield from (f"    not checked: {each.rule} ({each.reason})" for each in report.unchecked)


def _summary(report: Report) -> str:
    methods = ", ".join(
        f"{method} {count:,}" for method, count in sorted(report.candidates.items())
    )
    return (
        f"{_count(report.num_findings, 'finding') if report.num_findings else 'valid'}; "
        f"{_count(report.queries, 'query', 'queries')}, "
        f"{_count(report.candidates.total(), 'candidate')}{f' ({methods})' if methods else ''}, "
        f"{report.failed:,} failed"
    )


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _json(reports: Sequence[Report]) -> str:
    files = [
        {
            "file": str(report.path),
            "queries": report.queries,
            "candidates": dict(sorted(report.candidates.items())),
            "failed": report.failed,
            "num_findings": report.num_findings,
            "findings": [asdict(finding) for finding in report.findings],
            "not_checked": [asdict(each) for each in report.unchecked],
            "notes": report.notes,
        }
        for report in reports
    ]
    return json.dumps({"files": files}, ensure_ascii=False, indent=2)


def _github(reports: Sequence[Report]) -> str:
    return "\n".join(line for report in reports for line in _github_lines(report))


def _github_lines(report: Report) -> Iterator[str]:
    file = _property(str(report.path))
    for finding in report.findings:
        where = finding.pointer or "the file"
        yield (
            f"::error file={file},line={finding.line},title={_property(finding.rule)}::"
            + _data(f"{where}: {finding.message}. To do: {finding.fix}")
        )
    more = report.num_findings - len(report.findings)
    hidden = f" ({more:,} not shown: see --max-findings)" if more else ""
    yield f"::notice file={file}::{_data(_summary(report) + hidden)}"


def annotate_unreadable(path: Path, message: str) -> str:
    """The GitHub annotation of a file that could not be read."""
    return f"::error file={_property(str(path))},title=unreadable::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


FORMATS: dict[str, Callable[[Sequence[Report]], str]] = {
    "text": _text,
    "json": _json,
    "github": _github,
}
"""Name of a format → function that writes reports in it."""
