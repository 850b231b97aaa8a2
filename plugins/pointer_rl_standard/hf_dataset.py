"""The `hf` loader: what the `datasets` library reads (the Hub, saved folders, Parquet files).

Text columns are read at once; an image is read from its row when it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pointer_rl.datasets.images import EncodedImage, FileState, ImageFile, ImageLimits, too_large
from pointer_rl.errors import InputError, did_you_mean, first_line
from pointer_rl.types import Dataset, Example
from pointer_rl_standard.example_fields import (
    check_ids,
    make_example,
    read_answers,
    read_id,
    read_text,
)
from pointer_rl_standard.options import HFOptions


def load_hf(options: HFOptions) -> Dataset:
    """Queries and pool from splits of a dataset.

    Raises InputError for a missing dataset, split or column, for values of an unsupported form and
    for repeated ids.
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
    """The images of a split, not decoded. It pickles as the split's files, not their content."""

    rows: Any = field(compare=False, repr=False)
    """A `datasets.Dataset` with this one column, whose values are {"bytes": …, "path": …}."""
    column: str
    where: str
    """The dataset and its split, for error messages."""
    limits: ImageLimits
    files: tuple[str, ...] = ()
    """The files that hold all of the images; none if they are elsewhere."""

    @cached_property
    def place(self) -> str | None:
        """A name for the files."""
        return f"{self.column} of {' '.join(self.files)}" if self.files else None

    @cached_property
    def states(self) -> tuple[FileState, ...]:
        """The files' states. They are open already, so that it is enough to look once."""
        return tuple(map(FileState.of, self.files))


@dataclass(frozen=True, slots=True)
class RowImage(EncodedImage):
    """The image in one row of a dataset, read when needed."""

    images: ImageColumn
    row: int

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.images.where}, row {self.row}"

    @property
    def limits(self) -> ImageLimits:
        return self.images.limits

    @property
    def place(self) -> str | None:
        return self.images.place and f"row {self.row}, {self.images.place}"

    def states(self) -> tuple[FileState, ...]:
        return self.images.states

    def read(self) -> bytes:
        column = self.images.column
        try:
            value = self.images.rows[self.row][column]
        except (OSError, ValueError) as error:  # base classes of pyarrow's errors
            raise InputError(f"{self.name}: cannot read the image ({first_line(error)})") from error
        if value and value["bytes"]:
            if len(value["bytes"]) > self.limits.bytes:
                raise too_large(self.name, len(value["bytes"]), self.limits)
            return bytes(value["bytes"])
        if value and value["path"]:
            return ImageFile(value["path"], self.limits).read()
        raise InputError(f"{self.name}: no image in the column {column!r}")


def _read_split(options: HFOptions, split: str) -> tuple[Example, ...]:
    source = "/".join(filter(None, (options.path, options.name)))
    revision = f" at {options.revision}" if options.revision else ""
    where = f"{source}{revision}, split {split}"
    rows = _load(options, split).with_format(None)
    _check_columns(options, rows.column_names, where)
    images = _image_column(rows, options, where)
    columns = [options.question_column, options.answers_column]
    columns += [name for name in (options.id_column, options.image_id_column) if name is not None]

    def place(row: int) -> str:
        return f"{where}, row {row}"

    def optional_id(column: str | None, fields: dict[str, object], row: int) -> int | str | None:
        return None if column is None else read_id(fields[column], column, place(row))

    examples = [
        make_example(
            question_id=optional_id(options.id_column, fields, row),
            image_id=optional_id(options.image_id_column, fields, row),
            row=row,
            image=RowImage(images, row),
            question=read_text(
                fields[options.question_column], options.question_column, place(row)
            ),
            answers=read_answers(fields[options.answers_column], place(row)),
        )
        for row, fields in enumerate(
            _values(rows.select_columns(list(dict.fromkeys(columns))), where)
        )
    ]
    if not examples:
        raise InputError(f"{where}: no examples in it")
    check_ids(examples, place)
    return tuple(examples)


def _image_column(rows: Any, options: HFOptions, where: str) -> ImageColumn:
    import datasets

    column = options.image_column

    try:
        images = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except (TypeError, ValueError, RuntimeError) as error:  # pyarrow's and datasets' refusals
        raise InputError(
            f"{where}: the column {column!r} holds no images ({first_line(error)})"
        ) from error
    return ImageColumn(images, column, where, options.limits, _files_with(images, column))


def _files_with(images: Any, column: str) -> tuple[str, ...]:
    """The Arrow files of the column if the images are in them, and not in files that they name."""
    held = all(chunk.field("bytes").null_count == 0 for chunk in images.data.column(column).chunks)
    return tuple(each["filename"] for each in images.cache_files) if held else ()


def _values(rows: Any, where: str) -> Iterator[dict[str, object]]:
    try:
        yield from rows
    except (OSError, ValueError) as error:  # base classes of pyarrow's errors on damaged files
        raise InputError(f"{where}: cannot read it ({first_line(error)})") from error


def _check_columns(options: HFOptions, columns: Sequence[str], where: str) -> None:
    for kind in ("question", "image", "answers", "id", "image_id"):
        option = f"{kind}_column"
        column = getattr(options, option)
        if column is not None and column not in columns:
            raise InputError(
                f"{where}: no column {column!r} (option {option}){did_you_mean(column, columns)}"
            )


def _load(options: HFOptions, split: str) -> Any:
    """One split as a `datasets.Dataset`. Raises InputError for whatever prevents reading it."""
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
    except Exception as error:  # the library raises anything for damaged files
        raise InputError(
            f"{options.path}, split {split}: cannot load it "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error
    if not isinstance(found, datasets.DatasetDict):
        if found.split is None and options.pool_split in (None, options.split):
            return found  # a single split, saved without its name
        found = {str(found.split or "(unnamed)"): found}
    if split not in found:
        raise InputError(f"{path}: no split {split!r}{did_you_mean(split, found)}")
    return found[split]
