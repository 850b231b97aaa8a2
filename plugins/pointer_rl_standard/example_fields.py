"""Checked reading of one example's fields, whatever file they come from.

`where` names the file and the place in it; every message begins with it.
"""

from __future__ import annotations

import reprlib
import sys

from pointer_rl.errors import InputError

__all__ = ["claim_id", "read_answers", "read_id", "read_text"]


def read_text(value: object, field: str, where: str) -> str:
    """The value, a string that can be written as UTF-8. Raises InputError for anything else."""
    if not isinstance(value, str):
        raise InputError(f"{where}: {field} must be a string, not {reprlib.repr(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair: "\ud800"
        raise InputError(f"{where}: {field} holds a broken character ({error.reason})") from error
    return value


def read_id(value: object, field: str, where: str) -> int | str:
    """The value, an integer or a string. Raises InputError for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        return read_text(value, field, where)
    raise InputError(f"{where}: {field} must be an integer or a string, not {reprlib.repr(value)}")


def read_answers(value: object, where: str) -> tuple[str, ...]:
    """One string an annotator, of the forms in which datasets keep them.

    A list of strings, a list of {"answer": string}, {"answer": [string, …]} (as `datasets` turns
    the former), or a single string. Raises InputError for another form, or for no answer at all.
    """
    answers = value.get("answer") if isinstance(value, dict) else value
    if isinstance(value, str):
        answers = [value]
    if not isinstance(answers, list) or not answers:
        raise InputError(
            f'{where}: answers must be strings, {{"answer": string}} objects or one string, '
            f"and at least one, not {reprlib.repr(value)}"
        )
    # Interned: the annotators of a large dataset give few different answers, over and over.
    return tuple(
        sys.intern(
            read_text(each.get("answer") if isinstance(each, dict) else each, "answer", where)
        )
        for each in answers
    )


def claim_id(id: str, taken: dict[str, str], where: str) -> None:
    """Note that the example at `where` has this id. Raises InputError when another has it."""
    first = taken.setdefault(id, where)
    if first is not where:
        raise InputError(f"{where}: the id {id!r} is already that of {first}; ids must be unique")
