"""The `vl-icl` loader: VL-ICL Bench, whose tasks are learned from demonstrations alone.

Layout (https://github.com/ys-zong/VL-ICL): a folder a task, with `query.json`, `support.json` and
the unzipped images. Both files are lists of objects; image paths are relative to the root:

    {"image": ["clevr/query/1.png"], "question": "shape: sphere", "answer": 3}

In `operator_induction` a query names its `operator`, and a support example has the answers for all
three: it is shown with that of the query's operator. In `open_mi` the classes' made-up names hold
for one query alone, whose demonstrations are in `support`: `{name: {"images": [path, …]}}`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pointer_rl.datasets.images import ImageFile
from pointer_rl.errors import InputError
from pointer_rl.json_stream import parse_json
from pointer_rl.types import Dataset, Example
from pointer_rl_standard.example_fields import check_inside, read_text
from pointer_rl_standard.options import VLICLOptions

OPERATORS = ("+", "-", "x")
"""In the order of a support example's answers."""


class _Item(NamedTuple):
    where: str
    image: object
    question: object
    answer: object
    episode: str | None = None


def load_vl_icl(options: VLICLOptions) -> Dataset:
    """The examples of a task: those of `split` as queries, the support as the pool.

    Images are not opened. Raises InputError, with file and item, for files in another layout.
    """
    root = Path(options.root).expanduser()

    @cache
    def image(name: str, where: str) -> ImageFile:
        check_inside(root, name, where, "give the folder that the tasks' folders lie in as root")
        return ImageFile(root / name, options.limits)

    def split(name: str, items: Iterator[_Item]) -> tuple[Example, ...]:
        return tuple(
            Example(
                f"{name}-{row}",
                row,
                image(_only(item.image, item.where), str(root / options.task)),
                read_text(item.question, "question", item.where),
                (_text(item.answer, item.where),),
                episode=item.episode,
            )
            for row, item in enumerate(items)
        )

    pool = split("support", _support(root / options.task, options.task))
    queries = pool
    if options.split == "query":
        queries = split("query", _queries(root / options.task, options.task))
    return Dataset(name=f"vl-icl/{options.task}", queries=queries, pool=pool)


def _queries(folder: Path, task: str) -> Iterator[_Item]:
    for row, (where, fields) in enumerate(_objects(folder / "query.json")):
        episode = None
        if task == "operator_induction":
            episode = fields.get("operator")
            if episode not in OPERATORS:
                raise InputError(f"{where}: operator must be +, - or x, not {episode!r}")
        elif task == "open_mi":
            episode = str(row)
        yield _item(where, fields, fields.get("answer"), episode)


def _support(folder: Path, task: str) -> Iterator[_Item]:
    if task == "open_mi":
        yield from _own_support(folder / "query.json")
        return
    for where, fields in _objects(folder / "support.json"):
        answer = fields.get("answer")
        if task != "operator_induction":
            yield _item(where, fields, answer)
            continue
        if not isinstance(answer, list) or len(answer) != len(OPERATORS):
            raise InputError(f"{where}: answer must be a list of three, not {answer!r}")
        for operator, each in zip(OPERATORS, answer, strict=True):
            yield _item(where, fields, each, operator)


def _own_support(path: Path) -> Iterator[_Item]:
    for row, (where, fields) in enumerate(_objects(path)):
        support = fields.get("support")
        if not isinstance(support, dict) or not support:
            raise InputError(f"{where}: no support, which open_mi has for each query")
        for name, described in support.items():
            images = described.get("images") if isinstance(described, dict) else None
            if not isinstance(images, list):
                raise InputError(f"{where}: the support {name!r} has no list of images")
            for image in images:
                yield _Item(where, image, fields.get("question"), name, str(row))


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place and the fields of each item."""
    try:
        items = parse_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot read it ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    if not isinstance(items, list) or not items:
        raise InputError(f"{path}: must be a list of examples; is it a file of VL-ICL Bench?")
    for number, item in enumerate(items):
        where = f"{path}, item {number}"
        if not isinstance(item, dict):
            raise InputError(f"{where}: must be an object, not {type(item).__name__}")
        yield where, item


def _item(where: str, fields: dict[str, Any], answer: object, episode: str | None = None) -> _Item:
    return _Item(where, fields.get("image"), fields.get("question"), answer, episode)


def _only(image: object, where: str) -> str:
    """The path of the one image."""
    if isinstance(image, list):
        if len(image) != 1:
            raise InputError(f"{where}: {len(image)} images, but an example has one")
        image = image[0]
    return read_text(image, "image", where)


def _text(answer: object, where: str) -> str:
    """The answer; counts and results are numbers in the files."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        return str(answer)
    return read_text(answer, "answer", where)
