"""Write reports as text, as JSON, or as annotations of a GitHub workflow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from pointer_rl.validate.report import Report


def _text(reports: Sequence[Report]) -> str:
    return "\n".join(line for report in reports for line in _text_lines(report))


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
