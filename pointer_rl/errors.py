"""Errors that a user can fix. Each message is one line: what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable

from pointer_rl.escaping import printable


class PointerRLError(Exception):
    """An error that a user can fix. The command line prints the message and exits with 2."""

    def __str__(self) -> str:
        return printable(super().__str__())


class InputError(PointerRLError):
    """A file, dataset, checkpoint or option that cannot be used."""


class NothingToLearnError(InputError):
    """Data from which no policy can be trained: too few queries, or no difference in reward."""


class PluginError(PointerRLError):
    """A plugin that is unknown or broken, or that registers a name that is taken."""


class MissingExtraError(PointerRLError):
    """An optional package that is needed and not installed.

    `install` is what to install with pip if it is not the package itself, such as an extra of ours.
    """

    def __init__(self, package: str, needed_for: str, install: str | None = None) -> None:
        command = f"pip install {shlex.quote(install or package)}"
        super().__init__(f"{needed_for} needs the package {package}: {command}")


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error message."""
    text = f"no {error}" if isinstance(error, KeyError) else str(error)
    return next(iter(text.strip().splitlines()), type(error).__name__)


def reproducible(message: str) -> str:
    """The message without what differs from run to run, for files that must not.

    Memory addresses, temporary names, process ids, times and ids of requests are left out, and
    what CUDA says of other processes.
    """
    for pattern, instead in _CHANGING:
        message = pattern.sub(instead, message)
    return message


_CHANGING = [
    (re.compile(pattern, re.IGNORECASE), instead)
    for pattern, instead in (
        (r"(CUDA out of memory\. Tried to allocate [\d.]+ \w+\.).*", r"\1"),
        (r" at 0x[0-9a-f]+", ""),
        (r"\b0x[0-9a-f]{6,}", "0x…"),
        (r"[^\s'\"(<]*[/\\]tmp[a-z0-9_]{8}\b", "(temporary)"),
        (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "(id)"),
        (r"\b((?:chatcmpl|cmpl|req|request)[-_])[0-9a-z]{8,}\b", r"\1…"),
        (r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d([.,]\d+)?)?(Z|[+-]\d\d:?\d\d)?", "(time)"),
        (r"\b(pid|process(?: id)?)([ =:]+)\d+", r"\1\2…"),
    )
]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """End an "unknown …" message with the nearest known name and the list of all known names."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.65)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{hint} (known: {', '.join(names) or 'none'})"
