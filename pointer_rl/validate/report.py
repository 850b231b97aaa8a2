"""What validating a file found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Finding", "Report", "Unchecked", "json_pointer"]


@dataclass(frozen=True)
class Finding:
    """One fault."""

    rule: str
    """The rule that is broken, e.g. "row-in-range"."""
    pointer: str
    """Where: a JSON pointer (RFC 6901); for `.jsonl`, as if the same data were in a `.json`."""
    message: str
    """What is wrong."""
    fix: str
    """What to do about it."""
    line: int
    """Where the record (or `_meta`) begins in the file, from 1."""


@dataclass(frozen=True)
class Unchecked:
    """A rule that could not be applied, to the file or to a part of it."""

    rule: str
    reason: str


@dataclass
class Report:
    """The result for one file."""

    path: Path
    queries: int = 0
    candidates: Counter[str] = field(default_factory=Counter)
    """Generation method → how many candidates."""
    failed: int = 0
    """Candidates whose evaluation failed."""
    findings: list[Finding] = field(default_factory=list)
    """The first ones, as many as were asked for."""
    num_findings: int = 0
    """All there are."""
    unchecked: list[Unchecked] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is worth knowing and no fault."""


def json_pointer(path: Iterable[str | int]) -> str:
    """RFC 6901: `("a/b", 0)` → `/a~1b/0`."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)
