"""Records as Parquet: one row per query, for pandas, polars, DuckDB and the Hugging Face Hub.

The columns are `query_id` and those of `records/fields.py`, nested: `query` is a struct, and
`pointer_candidates` (or `beams`) a list of structs. One further column, `extra`, is null or a JSON
object with what these columns cannot hold, arranged as in the record, with list positions as keys:

    {"mood": "odd", "query": {"question_id": 17}, "pointer_candidates": {"0": {"mine": [1]}}}

`_meta` and other keys that are not queries stand in the file's metadata, as JSON, with a checksum;
pages have checksums, too. Files of versions before have none, and had two columns in each struct
instead of `extra`: `_rest`, which held the same, and `_keys`, the object's keys in their order.
They are still read.

Needs pyarrow, which is imported when it is first used.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pointer_rl.errors import InputError, MissingExtraError, first_line
from pointer_rl.files import cannot_be_written
from pointer_rl.json_stream import Member, parse_json
from pointer_rl.records.fields import ID, RECORDS, TEXT, Field, Objects, Type
from pointer_rl.records.records import Record
from pointer_rl.records.writer import RecordWriter

Kinds = Mapping[str, Type | Objects | Field]
"""Key of an object → the type of its value."""

_EXTRA = "extra"
_KEYS, _REST = "_keys", "_rest"
_ASIDES = b"pointer_rl"
"""The metadata key under which everything that is not a query stands."""
_CHECKSUM = b"pointer_rl_crc32"
"""The metadata key of that value's checksum; files of versions before have none."""
_GROUP = 8_192
"""Candidates in a row group, which is held in memory."""
_MAX_EXACT = 2**53
"""Every whole number up to this one is a float64."""
_ROWS = 256
"""Rows read at a time."""


def _type_of(kind: Type | Objects | Field) -> Type | Objects:
    return kind.type if isinstance(kind, Field) else kind


# --- reading ----------------------------------------------------------------------------------


def stream_parquet(path: Path) -> Iterator[Member]:
    """First `_meta` and other keys that begin with _, then the records. Rows pass for lines.

    Raises InputError for a file without our columns, MissingExtraError without pyarrow.
    """
    row = 1
    with _opened(path) as file:
        yield from (Member(key, value, row) for key, value in _read_asides(path, file).items())
        kinds = _kinds_of(path, file.schema_arrow)
        for batch in file.iter_batches(batch_size=_ROWS):
            for cells in batch.to_pylist():
                key = cells["query_id"]
                try:
                    if not isinstance(key, str):
                        raise InputError("its query_id is not a string")
                    extra = _parse_object(_EXTRA, cells.get(_EXTRA))
                    yield Member(key, _read_object(kinds, cells, extra), row)
                except (InputError, ValueError) as error:
                    raise InputError(f"{path}: row {row}: {error}") from error
                row += 1


def find_parquet_meta(path: Path) -> Member | None:
    """The file's `_meta`; None if it has none."""
    with _opened(path) as file:
        asides = _read_asides(path, file)
    return Member("_meta", asides["_meta"], 1) if "_meta" in asides else None


def _read_object(kinds: Kinds, cells: Mapping[str, Any], extra: Any) -> Record:
    """The object of a row or struct. `extra` is what its columns could not hold."""
    rest = extra if isinstance(extra, dict) else {}
    if cells.get(_REST) is not None:
        rest = _parse_object(_REST, cells[_REST])
    record: Record = {}
    for key, kind in kinds.items():
        cell = cells.get(key)
        if cell is not None:
            record[key] = _read_value(_type_of(kind), cell, rest.get(key))
        elif key in rest:
            record[key] = rest[key]
        elif key in cells and isinstance(kind, Field) and kind.presence == "nullable":
            record[key] = None
    record.update((key, value) for key, value in rest.items() if key not in kinds)
    if cells.get(_KEYS) is not None:
        return {key: record.get(key) for key in _parse_keys(cells[_KEYS])}
    return record


def _read_value(kind: Type | Objects, cell: Any, extra: Any) -> Any:
    if isinstance(kind, Objects):
        if not kind.is_list:
            return _read_object(kind.fields, cell, extra)
        parts = extra if isinstance(extra, dict) else {}
        return [
            None if each is None else _read_object(kind.fields, each, parts.get(str(index)))
            for index, each in enumerate(cell)
        ]
    # If they differ, the column was changed after the file was written.
    if extra is not None and _cell(kind, extra) == cell:
        return extra
    for each in cell if kind.is_list else (cell,):
        if type(each) is float and not math.isfinite(each):
            raise InputError("a number that is not finite, which JSON lacks")
    return cell


def _parse_object(column: str, text: str | None) -> Record:
    value = {} if text is None else _parse(column, text)
    if not isinstance(value, dict):
        raise InputError(f"{column} is not a JSON object")
    return value


def _parse_keys(text: str) -> list[str]:
    keys = _parse(_KEYS, text)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise InputError(f"{_KEYS} is not a JSON list of keys")
    return keys


def _parse(column: str, text: str) -> Any:
    try:
        return parse_json(text)
    except (TypeError, ValueError) as error:
        raise InputError(f"{column} is not JSON ({error})") from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A pyarrow ParquetFile; pyarrow's errors become InputError."""
    arrow = _pyarrow()
    try:
        with arrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except (OSError, ValueError, OverflowError, MemoryError, arrow.ArrowException) as error:
        raise InputError(f"{path}: cannot read it as Parquet ({first_line(error)})") from error


def _checksum(text: bytes) -> bytes:
    return b"%08x" % zlib.crc32(text)


def _read_asides(path: Path, file: Any) -> Record:
    metadata = file.metadata.metadata or {}
    text = metadata.get(_ASIDES, b"{}")
    if metadata.get(_CHECKSUM, expected := _checksum(text)) != expected:
        raise InputError(f"{path}: damaged, the checksum of its metadata is wrong")
    try:
        found = parse_json(text)
        if not isinstance(found, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise InputError(
            f"{path}: its metadata {_ASIDES.decode()!r} is not a JSON object ({error})"
        ) from error
    return found


# --- the columns ------------------------------------------------------------------------------


def _kinds_of(path: Path, schema: Any) -> Kinds:
    """The types of the record's keys. A file with other columns is refused, lest they be lost."""
    kinds = next((each for kind, each in RECORDS.items() if kind in schema.names), None)
    if kinds is None or "query_id" not in schema.names:
        raise InputError(
            f"{path}: no RL data or beam data: it lacks columns query_id and {' or '.join(RECORDS)}"
        )
    for column in schema:
        if column.name not in ("query_id", _EXTRA):
            _check_column(path, column, column.name, kinds)
    return kinds


def _check_column(path: Path, column: Any, name: str, kinds: Kinds) -> None:
    types = _pyarrow().types
    kind: Type | Objects | None = TEXT
    if column.name not in (_KEYS, _REST):
        kind = _type_of(kinds[column.name]) if column.name in kinds else None
    if kind is None:
        raise InputError(f"{path}: the column {name} is none of pointer-rl's: drop it")
    found = column.type
    if kind.is_list and (types.is_list(found) or types.is_large_list(found)):
        found = found.value_type
    elif kind.is_list and not types.is_null(found):
        raise InputError(f"{path}: the column {name} is of the type {found}, not a list")
    if types.is_null(found):
        return
    if isinstance(kind, Objects) and types.is_struct(found):
        for field in found:
            _check_column(path, field, f"{name}.{field.name}", kind.fields)
    elif isinstance(kind, Objects) or not any(
        is_type(found)
        for is_type in (
            *(types.is_string, types.is_large_string, types.is_string_view),
            *(types.is_integer, types.is_floating, types.is_boolean),
        )
    ):
        raise InputError(f"{path}: the column {name} is of the type {found}, not as it was made")


def _schema(arrow: Any, kinds: Kinds) -> Any:
    """The Arrow schema of a file of such records."""

    def fields(kinds: Kinds) -> list[Any]:
        return [arrow.field(key, type_of(_type_of(kind))) for key, kind in kinds.items()]

    def type_of(kind: Type | Objects) -> Any:
        item = (
            arrow.type_for_alias(kind.arrow)
            if isinstance(kind, Type)
            else arrow.struct(fields(kind.fields))
        )
        return arrow.list_(item) if kind.is_list else item

    text = arrow.string()
    return arrow.schema([arrow.field("query_id", text), *fields(kinds), arrow.field(_EXTRA, text)])


# --- writing ----------------------------------------------------------------------------------


class ParquetWriter(RecordWriter):
    """Writes `.parquet`. Raises MissingExtraError without pyarrow."""

    def __init__(self, path: Path, meta: Mapping[str, Any] | None = None) -> None:
        self._arrow = _pyarrow()
        self._asides: list[str] = []
        self._writer: Any = None
        self._kind = next(iter(RECORDS))
        self._rows: list[Record] = []
        self._members = 0  # in the rows
        if meta is not None:
            self._add_aside("_meta", meta)
        super().__init__(path)

    def _add(self, query_id: str, record: Mapping[str, Any]) -> None:
        if self._writer is None:
            self._open(next(kind for kind in RECORDS if kind in record))
        cells, extra = _to_cells(RECORDS[self._kind], record)
        text = json.dumps(extra, allow_nan=False) if extra else None
        self._rows.append({"query_id": query_id, **cells, _EXTRA: text})
        self._members += len(record[self._kind])
        if self._members + len(self._rows) > _GROUP:
            self._flush()

    def _add_aside(self, key: str, value: Any) -> None:
        self._asides.append(f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}")

    def _finish(self) -> None:
        if self._writer is None:
            self._open(self._kind)
        self._flush()
        try:
            text = f"{{{', '.join(self._asides)}}}".encode()
            self._writer.add_key_value_metadata({_ASIDES: text, _CHECKSUM: _checksum(text)})
            self._writer.close()
        except OSError as error:
            raise cannot_be_written(self.path, error) from error

    def discard(self) -> None:
        if self._writer is not None:
            with suppress(OSError, self._arrow.ArrowException):  # else it would when collected
                self._writer.close()
        super().discard()

    def _open(self, kind: str) -> None:
        self._kind = kind
        schema = _schema(self._arrow, RECORDS[kind])
        self._writer = self._arrow.parquet.ParquetWriter(
            self._target.file, schema, compression="zstd", write_page_checksum=True
        )

    def _flush(self) -> None:
        if not self._rows:
            return
        try:
            self._writer.write_table(
                self._arrow.Table.from_pylist(self._rows, schema=self._writer.schema)
            )
        except OSError as error:
            raise cannot_be_written(self.path, error) from error
        except UnicodeEncodeError as error:
            raise InputError(f"{self.path}: Parquet cannot hold such a query id") from error
        self._rows.clear()
        self._members = 0


def _to_cells(kinds: Kinds, value: Mapping[str, Any]) -> tuple[Record, Record]:
    """The cells of an object's columns, and what they cannot hold."""
    cells: Record = {}
    extra: Record = {}
    for key, item in value.items():
        kind = _type_of(kinds[key]) if key in kinds else None
        rest = item
        if isinstance(kind, Type):
            cells[key] = None if item is None else _cell(kind, item)
            is_held = cells[key] is not None and (kind is not ID or isinstance(item, str))
            rest = None if is_held else item
        elif kind is not None and kind.is_list and _is_list_of_objects(item):
            members = [_to_cells(kind.fields, each) for each in item]
            cells[key] = [own for own, _ in members]
            rest = {str(index): left for index, (_, left) in enumerate(members) if left} or None
        elif kind is not None and not kind.is_list and isinstance(item, dict):
            cells[key], left = _to_cells(kind.fields, item)
            rest = left or None
        if rest is not None or kind is None:
            extra[key] = rest
    return cells, extra


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _cell(kind: Type, value: Any) -> Any:
    """The value of a column; None if it cannot hold the value.

    2 and 2.0 are the same number, and an id of 17 becomes "17". Raises ValueError for NaN and
    infinity, which JSON lacks.
    """
    if not kind.is_list:
        return _item(kind, value)
    cells = [_item(kind, each) for each in value] if isinstance(value, list) else [None]
    return None if None in cells else cells


def _item(kind: Type, value: Any) -> Any:
    match kind.arrow, value:
        case "bool", bool():
            return value
        case _, bool():
            return None
        case "string", str():
            return value if _is_encodable(value) else None
        case "string", int() if kind is ID:
            return str(value)
        case "double", float() if not math.isfinite(value):
            raise ValueError("a number that is not finite")
        case "double", int() | float() if abs(value) <= _MAX_EXACT or isinstance(value, float):
            return float(value)
        case "int64", int() | float() if value % 1 == 0 and -(2**63) <= value < 2**63:
            return int(value)
    return None


def _is_encodable(text: str) -> bool:
    """Whether UTF-8 can hold it. It lacks lone surrogates, which JSON can escape."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _pyarrow() -> Any:
    if find_spec("pyarrow") is None:
        raise MissingExtraError("pyarrow", "Parquet", "pointer-rl[parquet]")
    import pyarrow
    import pyarrow.parquet

    return pyarrow
