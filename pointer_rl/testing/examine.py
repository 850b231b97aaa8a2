"""Runs checks on a plugin, in an order in which a finding says what is at fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from pointer_rl.errors import PointerRLError, first_line
from pointer_rl.testing.findings import Broken, NotApplicable, Result, Subject
from pointer_rl.testing.plugin import EVERY_PLUGIN

__all__ = ["Check", "examine"]

S = TypeVar("S", bound=Subject[Any])
Check = Callable[[S], None]
"""Looks at one thing. Raises Broken or NotApplicable; whatever else it raises is a finding too."""


def examine(
    subject: S, foundations: Mapping[str, Check[S]], further: Mapping[str, Check[S]]
) -> Iterator[Result]:
    """A result for each check, under its title.

    First what is asked of every plugin, then the foundations: where one of them is broken, all that
    comes after is skipped, for what it found would only be the same fault. Raises PointerRLError
    where the factory does: what it was given cannot be used, or lacks.
    """
    try:
        _ = subject.made
    except PointerRLError:
        raise
    except Exception as error:
        said = f"{type(error).__name__} ({first_line(error)})"
        mend = "raise InputError or MissingExtraError, in a sentence that says what to do"
        yield Result("is made", "broken", f"the factory raised {said}: {mend}", error)
        return
    for title, asked_of_all in EVERY_PLUGIN.items():
        yield _look(title, asked_of_all, subject)
    standing = True
    for title, check in {**foundations, **further}.items():
        if not standing:
            yield Result(title, "skipped", "cannot be told before that is mended")
            continue
        result = _look(title, check, subject)
        standing = result.state != "broken" or title not in foundations
        yield result


def _look(title: str, check: Check[S], subject: S) -> Result:
    try:
        check(subject)
    except NotApplicable as reason:
        return Result(title, "skipped", str(reason))
    except Broken as finding:
        cause = finding.__cause__
        return Result(
            title, "broken", str(finding), cause if isinstance(cause, Exception) else None
        )
    except Exception as error:
        said = f"it raised {type(error).__name__} ({first_line(error)})"
        return Result(title, "broken", said, error)
    return Result(title, "ok")
