"""Checked reading of one example's fields, whatever file they come from.

`where` names the file and the place in it; every message begins with it.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from pathlib import Path

from pointer_rl.datasets.examples import KeyIndex
from pointer_rl.datasets.images import ImageFile
from pointer_rl.errors import InputError

__all__ = ["check_ids", "image_in", "read_answers", "read_id", "read_text"]


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
    return tuple(
        read_text(each.get("answer") if isinstance(each, dict) else each, "answer", where)
        for each in answers
    )


def check_ids(index: KeyIndex, where: Callable[[int], str]) -> None:
    """Raise InputError when two rows have one id; `where` names a row's place."""
    repeated = index.repeated()
    if repeated is not None:
        first, second = repeated
        raise InputError(
            f"{where(second)}: the id {index.key_of(second)!r} is already that of {where(first)}; "
            "ids must be unique"
        )


def image_in(folder: Path, name: str) -> ImageFile:
    """The image of that name in a folder, not opened."""
    return ImageFile(folder / name)
