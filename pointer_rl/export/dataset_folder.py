"""Export RL data or beam data as a dataset for the Hugging Face Hub: Parquet, images and a card.

    README.md                   the dataset card, written last: a folder that has one is complete
    candidates.parquet          the records, as `convert` writes them (beam data: beams.parquet)
    queries/00000.parquet …     the queries with their images, in the order of the records
    pool/00000.parquet …        the pool with its images, in row order (pointers are row numbers)

If queries and pool are the same examples, only `pool` is written. Parquet's dictionary encoding
stores an image once per row group, even if several examples share it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pointer_rl.datasets.images import EncodedImage, ImageFile
from pointer_rl.datasets.recorded import open_recorded
from pointer_rl.errors import InputError, MissingExtraError
from pointer_rl.escaping import markdown
from pointer_rl.files import AtomicFile, cannot_be_written, check_writable, locked, write_text
from pointer_rl.records.convert import Converted, convert_file
from pointer_rl.records.formats import stream_records
from pointer_rl.report.inputs import kind_of
from pointer_rl.report.trials import read_dataset_description
from pointer_rl.types import Dataset, Example, ImageRef

try:
    import datasets
    import pyarrow
    import pyarrow.parquet
    from datasets.info import DatasetInfosDict
except ImportError as error:
    raise MissingExtraError("datasets", "export --to hub", "pointer-rl[hf]") from error
from huggingface_hub import DatasetCardData

CARD = "README.md"
_GROUP_ROWS, _GROUP_BYTES = 1_000, 64_000_000
"""Most examples, and most bytes of images, in a row group. A row group is held in memory."""
_FILE_BYTES = 500_000_000
"""Start a new file above this size, which the Hub's viewer handles well."""
_FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "image": datasets.Image(),
        "question": datasets.Value("string"),
        "answers": [datasets.Value("string")],
        "question_id": datasets.Value("string"),
        "image_id": datasets.Value("string"),
        "episode": datasets.Value("string"),
    }
)
"""The columns of an example."""
_MEMBERS = {"beams": "beams", "candidates": "pointer_candidates"}
"""Name of the records' table → its column of beams or candidates."""
_SIZES = {
    1_000: "n<1K",
    10_000: "1K<n<10K",
    100_000: "10K<n<100K",
    1_000_000: "100K<n<1M",
    10_000_000: "1M<n<10M",
    100_000_000: "10M<n<100M",
}
"""Number of rows (exclusive upper bound) → the Hub's size category."""


@dataclass(frozen=True)
class DatasetFolder:
    """What was written."""

    folder: Path
    records: Converted
    examples: Mapping[str, int]
    """Number of examples in `queries` and `pool`, or in `pool` alone."""
    unreadable: int
    """Examples written without an image, because it could not be read."""


def write_dataset_folder(
    path: Path,
    folder: Path,
    *,
    dataset: str | None = None,
    dataset_options: Mapping[str, object] | None = None,
    overwrite: bool = False,
) -> DatasetFolder:
    """Write RL data or beam data, with the images of its dataset, into a folder for the Hub.

    `dataset` and `dataset_options` are as in `recorded_dataset`. `overwrite` replaces an earlier
    export, including edits of its card; ids and records are checked first. Raises InputError if the
    file is of another kind, the dataset is unknown or a different one, the folder cannot be
    written, or it already has a card or tables (with `overwrite`: tables that no export wrote).
    """
    kind = kind_of(path)
    if kind not in ("rl", "beams"):
        raise InputError(f"{path}: neither RL data nor beam data")
    opened = open_recorded(read_dataset_description(path), path, dataset, dataset_options)
    card = folder / CARD
    with locked(card):
        check_writable(card, overwrite=overwrite)
        old = _old_tables(folder, overwrite)
        queries = list(_queries(path, opened))  # their ids are checked before anything is replaced
        records = folder / ("beams.parquet" if kind == "beams" else "candidates.parquet")
        converted = convert_file(path, records, overwrite=True)
        card.unlink(missing_ok=True)
        tables = {"pool": _Table(folder / "pool")}
        tables["pool"].write(opened.pool)
        if opened.pool is not opened.queries:
            tables["queries"] = _Table(folder / "queries")
            tables["queries"].write(queries)
        for each in old.difference([records], *(table.files for table in tables.values())):
            each.unlink()
        write_text(card, _card(records, opened, converted, tables))
    return DatasetFolder(
        folder,
        converted,
        {key: each.examples for key, each in tables.items()},
        sum(each.unreadable for each in tables.values()),
    )


def _old_tables(folder: Path, overwrite: bool) -> set[Path]:
    """The tables in the folder. Raises InputError for one that may not be replaced."""
    old = {each for name in _MEMBERS if (each := folder / f"{name}.parquet").exists()}
    examples = {*folder.glob("queries/*.parquet"), *folder.glob("pool/*.parquet")}
    for path in sorted(old | examples):
        if not overwrite:
            raise InputError(f"{path}: exists; remove it, or give --overwrite")
        if path in examples and not re.fullmatch("[0-9]{5}", path.stem):
            raise InputError(f"{path}: no export wrote it, and it would be read as one; move it")
    return old | examples


def _queries(path: Path, dataset: Dataset) -> Iterator[Example]:
    """The queries of a file, in file order."""
    by_id = {each.id: each for each in dataset.queries}
    for id, _ in stream_records(path):
        if id.startswith("_"):
            continue
        if id not in by_id:
            raise InputError(
                f"{path}: the dataset {dataset.name} has no query {id!r}: give the dataset that it "
                "was made from (--dataset, --dataset-opt)"
            )
        yield by_id[id]


class _Table:
    """Examples as Parquet files in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.examples = self.bytes = self.unreadable = 0
        self.has_image_ids = True
        self.files: list[Path] = []

    def write(self, examples: Iterable[Example]) -> None:
        """Write the files."""
        groups = self._groups(examples)
        number, group = 0, next(groups, [])
        while group or not number:
            path = self._folder / f"{number:05}.parquet"
            with AtomicFile(path) as file, _writer(file) as writer:
                while group:
                    self._add(path, writer, group)
                    group = next(groups, [])
                    if file.tell() > _FILE_BYTES:
                        break
            self.files.append(path)
            number += 1

    def _add(self, path: Path, writer: Any, group: list[dict[str, Any]]) -> None:
        try:
            table = pyarrow.Table.from_pylist(group, schema=writer.schema)
            writer.write_table(table)
        except OSError as error:
            raise cannot_be_written(path, error) from error
        except UnicodeEncodeError as error:
            raise InputError(f"{path}: a text that Parquet cannot hold ({error.reason})") from error
        self.bytes += table.nbytes

    def _groups(self, examples: Iterable[Example]) -> Iterator[list[dict[str, Any]]]:
        """Yield the rows of one row group at a time."""
        rows: list[dict[str, Any]] = []
        size = 0
        for example in examples:
            row = self._row(example)
            rows.append(row)
            size += len((row["image"] or {}).get("bytes", b""))
            if len(rows) == _GROUP_ROWS or size > _GROUP_BYTES:
                yield rows
                rows, size = [], 0
        if rows:
            yield rows

    def _row(self, example: Example) -> dict[str, Any]:
        self.examples += 1
        self.has_image_ids &= example.image_id is not None
        ids = {key: getattr(example, key) for key in ("question_id", "image_id", "episode")}
        try:
            image = _encode(example.image)
        except InputError:
            self.unreadable += 1
            image = None
        return {
            "id": example.id,
            "image": image,
            "question": example.question,
            "answers": list(example.answers),
            **{key: None if value is None else str(value) for key, value in ids.items()},
        }


def _writer(file: Any) -> Any:
    return pyarrow.parquet.ParquetWriter(
        file,
        _FEATURES.arrow_schema,
        compression="zstd",
        dictionary_pagesize_limit=4 * _GROUP_BYTES,
        write_page_checksum=True,
    )


def _encode(image: ImageRef) -> dict[str, Any]:
    """A value of the image column: the original bytes, and the file name without its folder."""
    if isinstance(image, EncodedImage):
        return {
            "bytes": image.read(),
            "path": image.path.name if isinstance(image, ImageFile) else None,
        }
    buffer = io.BytesIO()
    image.open().save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


# --- the card -----------------------------------------------------------------------------------


def _card(
    records: Path, dataset: Dataset, converted: Converted, tables: Mapping[str, _Table]
) -> str:
    name = records.stem
    with pyarrow.parquet.ParquetFile(records) as file:
        features = datasets.Features.from_arrow_schema(file.schema_arrow)
        groups = (file.metadata.row_group(each) for each in range(file.metadata.num_row_groups))
        size = sum(group.total_byte_size for group in groups)
    infos = DatasetInfosDict(
        {
            name: _info(name, features, {"train": (size, converted.queries)}),
            "examples": _info(
                "examples",
                _FEATURES,
                {split: (each.bytes, each.examples) for split, each in tables.items()},
            ),
        }
    )
    configs = [
        {
            "config_name": name,
            "default": True,
            "data_files": [{"split": "train", "path": records.name}],
        },
        {
            "config_name": "examples",
            "data_files": [{"split": each, "path": f"{each}/*.parquet"} for each in tables],
        },
    ]
    data = DatasetCardData(
        pretty_name=f"pointer-rl {name}: {dataset.name}",
        task_categories=["visual-question-answering"],
        tags=["pointer-rl", "in-context-learning", "reinforcement-learning"],
        size_categories=[
            next((s for n, s in _SIZES.items() if converted.queries < n), "100M<n<1B")
        ],
        configs=configs,
    )
    infos.to_dataset_card_data(data)
    text = _text(name, dataset, converted, tables)
    return f"---\n# license: fill in\n{data.to_yaml()}\n---\n\n{text}"


def _info(name: str, features: Any, splits: Mapping[str, tuple[int, int]]) -> Any:
    return datasets.DatasetInfo(
        config_name=name,
        features=features,
        splits=datasets.SplitDict.from_split_dict(
            [
                {"name": split, "num_bytes": size, "num_examples": number}
                for split, (size, number) in splits.items()
            ]
        ),
    )


def _text(name: str, dataset: Dataset, converted: Converted, tables: Mapping[str, _Table]) -> str:
    apart = "queries" in tables
    split = "queries" if apart else "pool"
    options = [f"split={split}", *(["pool_split=pool"] if apart else []), "id_column=id"]
    if all(each.has_image_ids for each in tables.values()):
        options.append("image_id_column=image_id")
    options = [f"--dataset-opt {each}" for each in ("path=FOLDER", "name=examples", *options)]
    return f"""\
# {markdown(dataset.name)}: {name}

{converted.queries:,} queries with {converted.candidates:,} {name}, written by pointer-rl. A query
is a question about an image. A `pointer` lists rows of the pool: the solved examples that a
vision-language model is shown before the query, in order.

- `{name}`: one row per query, with its `{_MEMBERS[name]}`.
- `examples`: images, questions and the annotators' answers. Pointers are rows of the split `pool`
  ({tables["pool"].examples:,} examples). The queries are {
        "the split `queries`, in the same order" if apart else "in `pool`, too, at `query.row`"
    }.

```python
from datasets import load_dataset

records = load_dataset("REPO", "{name}", split="train")
pool = load_dataset("REPO", "examples", split="pool")
queries = {'load_dataset("REPO", "examples", split="queries")' if apart else "pool"}

record = records[0]
image = queries[{"0" if apart else 'record["query"]["row"]'}]["image"]
shown = [pool[row]["image"] for row in record["{_MEMBERS[name]}"][0]["pointer"]]
```

pointer-rl reads `{name}.parquet` directly. The dataset, in its commands:

```bash
--dataset hf {" ".join(options)}
```

License and source of the images and questions: to be filled in, here and in the metadata above.
`_meta`, in the file metadata of `{name}.parquet`, records how the data were made, with paths of
files.
"""
