"""The result of validating a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path


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
