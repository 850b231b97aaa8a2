"""The `jsonl` loader: a dataset of one's own, one JSON object per line.

    {"image": "cats/1.jpg", "question": "what animal is it?", "answers": ["cat", "kitten", "cat"]}

`answer` may replace `answers`; `id`, `question_id` and `image_id` are optional (the id defaults to
the question_id, then to the row number). Other keys are ignored. With the option `unanswered`,
queries may have no answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from pointer_rl.datasets.images import ImageFile
from pointer_rl.errors import InputError, did_you_mean
from pointer_rl.types import Dataset, Example, ImageRef
from pointer_rl_standard.example_fields import (
    check_ids,
    check_inside,
    make_example,
    read_answers,
    read_id,
    read_text,
)
from pointer_rl_standard.options import JSONLOptions


def load_jsonl(options: JSONLOptions) -> Dataset:
    """Queries and pool from JSON lines; blank lines are skipped.

    Images are not opened: a missing or damaged one fails when it is used. Raises InputError,
    naming file and line, for a line that is not such an object and for repeated ids.
    """
    images = None if options.images is None else Path(options.images).expanduser()
    if images is not None and not images.is_dir():
        raise InputError(f"{images}: no such folder of images")
    path = Path(options.path).expanduser()
    queries = _read(path, images, options, options.unanswered)
    pool = () if options.unanswered else queries
    if options.pool is not None:
        pool = _read(Path(options.pool).expanduser(), images, options)
    return Dataset(name=path.stem, queries=queries, pool=pool)


def _read(
    path: Path, images: Path | None, options: JSONLOptions, unanswered: bool = False
) -> tuple[Example, ...]:
    folder, limits = path.parent if images is None else images, options.limits
    known: dict[str, ImageFile] = {}

    def image(name: str, where: str) -> ImageRef:
        if name not in known:
            if images is not None and not options.outside:
                check_inside(images, name, where, "move it there, or allow it with outside=true")
            known[name] = ImageFile(folder / name, limits)
        return known[name]

    examples: list[Example] = []
    numbers: list[int] = []
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        examples.append(_example(len(examples), line, image, unanswered, where))
        numbers.append(number)
    if not examples:
        raise InputError(f"{path}: no examples in it")
    check_ids(examples, lambda row: f"{path}, line {numbers[row]}")
    return tuple(examples)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and content of each line that is not blank."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise InputError(f"{path}: cannot read it ({error.strerror})") from error


def _example(
    row: int, line: bytes, image: Callable[[str, str], ImageRef], unanswered: bool, where: str
) -> Example:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise InputError(f"{where}: must be an object, not {type(fields).__name__}")
    for key in ("image", "question"):
        if key not in fields:
            raise InputError(f"{where}: no {key!r}{did_you_mean(key, fields)}")
    given = [key for key in ("answers", "answer") if key in fields]
    if len(given) != 1 and not (unanswered and not given):
        raise InputError(f"{where}: give either 'answers' or 'answer'")
    return make_example(
        row,
        image(read_text(fields["image"], "image", where), where),
        read_text(fields["question"], "question", where),
        read_answers(fields[given[0]], where) if given else (),
        **{
            key: None if fields.get(key) is None else read_id(fields[key], key, where)
            for key in ("id", "question_id", "image_id")
        },
    )
