"""What a user can mend: each error is one line that says what, where and what to do."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable

__all__ = [
    "InputError",
    "MissingExtraError",
    "PluginError",
    "PointerRLError",
    "did_you_mean",
    "first_line",
]


class PointerRLError(Exception):
    """Anything a user can mend. The CLI prints its message as one line and exits 2."""


class InputError(PointerRLError):
    """A file, dataset, checkpoint or option that cannot be used as it is."""


class PluginError(PointerRLError):
    """A plugin that is unknown, broken, or registers what another has registered."""


class MissingExtraError(PointerRLError):
    """A pip package that only some need, and that is not installed.

    `install` is what to install where that is an extra of ours and not the package itself.
    """

    def __init__(self, package: str, needed_for: str, install: str | None = None) -> None:
        command = f"pip install {shlex.quote(install or package)}"
        super().__init__(f"{needed_for} needs the package {package}: {command}")


def first_line(error: BaseException) -> str:
    """The first line of a library's error, for a message of one line."""
    text = f"no {error}" if isinstance(error, KeyError) else str(error)
    return next(iter(text.strip().splitlines()), type(error).__name__)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The tail of an "unknown …" message: the nearest known name, then all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{hint} (known: {', '.join(names) or 'none'})"
