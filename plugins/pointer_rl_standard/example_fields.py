"""Checks and reads the fields of an example, shared by all loaders.

`where` names the file and the place in it; error messages begin with it.
"""

from __future__ import annotations

import os
import reprlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pointer_rl.errors import InputError
from pointer_rl.types import Example, ImageRef


def make_example(
    row: int,
    image: ImageRef,
    question: str,
    answers: tuple[str, ...] = (),
    *,
    id: int | str | None = None,
    question_id: int | str | None = None,
    image_id: int | str | None = None,
) -> Example:
    """The example at a row of its split. Its id defaults to the question_id, then to the row."""
    if id is None:
        id = row if question_id is None else question_id
    return Example(str(id), row, image, question, answers, question_id, image_id)


def check_inside(folder: Path, name: str, where: str, advice: str) -> None:
    """Raise InputError, ending in `advice`, if the path `name` leads out of the folder.

    Only the path is checked: a symbolic link that the user made there may lead elsewhere.
    """
    root = os.path.abspath(folder)
    if not Path(os.path.abspath(os.path.join(root, name))).is_relative_to(root):
        raise InputError(f"{where}: the image {name!r} lies outside of {folder}: {advice}")


def read_text(value: object, field: str, where: str) -> str:
    """The value if it is a string that can be encoded as UTF-8. Raises InputError otherwise."""
    if not isinstance(value, str):
        raise InputError(f"{where}: {field} must be a string, not {reprlib.repr(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair: "\ud800"
        raise InputError(f"{where}: {field} holds a broken character ({error.reason})") from error
    return value


def read_id(value: object, field: str, where: str) -> int | str:
    """The value if it is an integer or a string. Raises InputError otherwise."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        return read_text(value, field, where)
    raise InputError(f"{where}: {field} must be an integer or a string, not {reprlib.repr(value)}")


def read_answers(value: object, where: str) -> tuple[str, ...]:
    """One string per annotator, interned, because a dataset repeats few different answers.

    `value` is a list of strings, a list of {"answer": string}, {"answer": [string, …]} (which the
    `datasets` library makes of the former) or a single string. Raises InputError for anything
    else and for an empty list.
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
        sys.intern(
            read_text(each.get("answer") if isinstance(each, dict) else each, "answer", where)
        )
        for each in answers
    )


def check_ids(examples: Sequence[Example], where: Callable[[int], str]) -> dict[str, int]:
    """The row of each id; raises InputError if two examples have the same id.

    `where` names the place of a row.
    """
    rows: dict[str, int] = {}
    for row, example in enumerate(examples):
        first = rows.setdefault(example.id, row)
        if first != row:
            raise InputError(
                f"{where(row)}: the id {example.id!r} is already that of {where(first)}; "
                "ids must be unique"
            )
    return rows
