"""Datasets that the `datasets` library reads: on the Hub, saved to disk, in Parquet files.

The columns of text are read at once; a picture is read from its row when it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pointer_rl.datasets.examples import ExampleBuilder, ExampleColumns
from pointer_rl.datasets.images import ImageBytes, ImageFile
from pointer_rl.errors import InputError, did_you_mean, first_line
from pointer_rl.types import Dataset
from pointer_rl_standard.dataset_options import HFOptions
from pointer_rl_standard.example_fields import check_ids, read_answers, read_id, read_text

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["RowImage", "load_hf"]


def load_hf(options: HFOptions) -> Dataset:
    """Queries and pool from splits of a dataset.

    Raises InputError for a dataset, split or column that is not there, values of another form, and
    ids met twice.
    """
    queries = _read_split(options, options.split)
    pool = queries
    if options.pool_split not in (None, options.split):
        pool = _read_split(options, options.pool_split)
    path = Path(options.path).expanduser()
    source = path.name if path.is_dir() else options.path
    name = "/".join(filter(None, (source, options.name, options.split)))
    return Dataset(name=name, queries=queries, pool=pool)


@dataclass(frozen=True)
class ImageColumn:
    """The images of a split, not decoded. Pickles as the split's files, not their content."""

    rows: Any = field(compare=False, repr=False)
    """`datasets.Dataset` of the one column, each value {"bytes": …, "path": …}."""
    column: str
    where: str
    """The dataset and its split, for messages."""


@dataclass(frozen=True)
class RowImage:
    """The image in one row of a dataset, read when needed."""

    images: ImageColumn
    row: int

    def _read(self) -> ImageBytes | ImageFile:
        where = f"{self.images.where}, row {self.row}"
        try:
            value = self.images.rows[self.row][self.images.column]
        except (OSError, ValueError) as error:  # pyarrow's errors are of these
            raise InputError(f"{where}: cannot read the image ({first_line(error)})") from error
        if value and value["bytes"]:
            return ImageBytes(value["bytes"], where)
        if value and value["path"]:
            return ImageFile(Path(value["path"]))
        raise InputError(f"{where}: no image in the column {self.images.column!r}")

    @cached_property
    def key(self) -> str:
        """SHA-256 of the encoded image."""
        return self._read().key

    def open(self) -> Image:
        """The picture, in RGB. Raises InputError when there is none."""
        return self._read().open()


def _read_split(options: HFOptions, split: str) -> ExampleColumns:
    import datasets

    source = "/".join(filter(None, (options.path, options.name)))
    revision = f" at {options.revision}" if options.revision else ""
    where = f"{source}{revision}, split {split}"
    rows = _load(options, split).with_format(None)
    _check_columns(options, rows.column_names, where)
    try:
        pictures = rows.select_columns([options.image_column]).cast_column(
            options.image_column, datasets.Image(decode=False)
        )
    except (TypeError, ValueError, RuntimeError) as error:  # pyarrow's and datasets' refusals
        raise InputError(
            f"{where}: the column {options.image_column!r} holds no images ({first_line(error)})"
        ) from error
    images = ImageColumn(pictures, options.image_column, where)
    columns = [options.question_column, options.answers_column]
    columns += [name for name in (options.id_column, options.image_id_column) if name is not None]

    def place(row: int) -> str:
        return f"{where}, row {row}"

    builder: ExampleBuilder[int] = ExampleBuilder()
    for row, fields in enumerate(_values(rows.select_columns(list(dict.fromkeys(columns))), where)):
        question_id, image_id = (
            None if column is None else read_id(fields[column], column, place(row))
            for column in (options.id_column, options.image_id_column)
        )
        question = fields[options.question_column]
        builder.append(
            row,
            read_text(question, options.question_column, place(row)),
            read_answers(fields[options.answers_column], place(row)),
            question_id=question_id,
            image_id=image_id,
        )
    if not len(builder):
        raise InputError(f"{where}: no examples in it")
    check_ids(builder.index(), place)
    return builder.build(partial(RowImage, images))


def _values(rows: Any, where: str) -> Iterator[dict[str, object]]:
    try:
        yield from rows
    except (OSError, ValueError) as error:  # pyarrow's errors on damaged files are of these
        raise InputError(f"{where}: cannot read it ({first_line(error)})") from error


def _check_columns(options: HFOptions, columns: Sequence[str], where: str) -> None:
    for option in (
        "question_column",
        "image_column",
        "answers_column",
        "id_column",
        "image_id_column",
    ):
        column = getattr(options, option)
        if column is not None and column not in columns:
            raise InputError(
                f"{where}: no column {column!r} (option {option}){did_you_mean(column, columns)}"
            )


def _load(options: HFOptions, split: str) -> Any:
    """One split as a `datasets.Dataset`. Raises InputError, whatever keeps it from being read."""
    import datasets

    path = Path(options.path).expanduser()
    if not path.is_dir() and (path.exists() or options.path.startswith(("/", ".", "~"))):
        raise InputError(f"{path}: no such folder (give a Hub id or a dataset's folder)")
    saved = any((path / mark).is_file() for mark in ("state.json", "dataset_dict.json"))
    if saved and (options.name or options.revision):
        raise InputError(
            f"{path}: a folder made by save_to_disk has no name nor revision to choose"
        )
    try:
        if not saved:
            source = str(path) if path.is_dir() else options.path
            return datasets.load_dataset(
                source, options.name, split=split, revision=options.revision
            )
        found = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever a library raises on files that are not ours
        raise InputError(
            f"{options.path}, split {split}: cannot load it "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error
    if not isinstance(found, datasets.DatasetDict):
        if found.split is None and options.pool_split in (None, options.split):
            return found  # saved alone, and without a name to compare
        found = {str(found.split or "(unnamed)"): found}
    if split not in found:
        raise InputError(f"{path}: no split {split!r}{did_you_mean(split, found)}")
    return found[split]
