"""RL data and beam data as Parquet: a row a query, for pandas, polars, DuckDB and the Hub.

`query_id` is the first column; the others are those of `parquet_columns`, in nested form: `query`
is a struct, `pointer_candidates` (or `beams`) a list of structs. `_meta` and what else is no query
stand in the file's own metadata, as JSON.

Needs pyarrow, which is imported when it is first used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pointer_rl.errors import InputError, MissingExtraError, first_line
from pointer_rl.records.layouts import check_query_id
from pointer_rl.records.parquet_columns import KEYS, LAYOUTS, REST, Kind, ListOf, Scalar, Struct
from pointer_rl.records.pending_file import PendingFile

__all__ = ["ParquetWriter", "read_parquet_meta", "stream_parquet"]

_ASIDES = b"pointer_rl"
"""The name in the metadata under which all that is no query stands: they keep no order."""
_GROUP = 8_192
"""Candidates of a row group: what is held in memory."""
_ROWS = 256
"""Rows read at a time."""


# --- reading ----------------------------------------------------------------------------------


def stream_parquet(path: Path) -> Iterator[tuple[str, Any, int]]:
    """(key, value, row from 1): `_meta` and its like (in row 1) first, then the records.

    Raises InputError for a file that is not of this form, MissingExtraError without pyarrow.
    """
    row = 1
    with _opened(path) as file:
        yield from ((key, value, row) for key, value in _asides(path, file).items())
        record = _record_of(path, file.schema_arrow)
        for batch in file.iter_batches(batch_size=_ROWS):
            for cells in batch.to_pylist():
                key = cells["query_id"]
                try:
                    if not isinstance(key, str):
                        raise InputError("its query_id is no string")
                    yield key, record.unpack(cells), row
                except InputError as error:
                    raise InputError(f"{path}: row {row}: {error}") from error
                row += 1


def read_parquet_meta(path: Path) -> dict[str, Any] | None:
    """The file's `_meta`; None where there is none (or it is no object)."""
    with _opened(path) as file:
        meta = _asides(path, file).get("_meta")
    return meta if isinstance(meta, dict) else None


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A pyarrow ParquetFile, whose errors become ours."""
    arrow = _pyarrow()
    try:
        with arrow.parquet.ParquetFile(path) as file:
            yield file
    except (OSError, arrow.ArrowException) as error:
        raise InputError(f"{path}: cannot read it as Parquet ({first_line(error)})") from error


def _asides(path: Path, file: Any) -> dict[str, Any]:
    try:
        found = json.loads((file.metadata.metadata or {}).get(_ASIDES, b"{}"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{path}: its metadata {_ASIDES.decode()!r} is no JSON object")
    return found


def _record_of(path: Path, schema: Any) -> Struct:
    """The layout that the columns are of; another is refused whole rather than read in part."""
    record = next((each for kind, each in LAYOUTS.items() if kind in schema.names), None)
    if record is None or "query_id" not in schema.names:
        raise InputError(
            f"{path}: no RL data or beam data: it lacks columns query_id and {' or '.join(LAYOUTS)}"
        )
    for field in schema:
        if field.name != "query_id":
            _check(path, field.name, field.type, _kind_of(field.name, record))
    return record


def _check(path: Path, column: str, type_: Any, kind: Kind | None) -> None:
    """Raise InputError for a column that is not ours, and would be lost, or of another type."""
    if kind is None:
        raise InputError(f"{path}: the column {column} is none of pointer-rl's: drop it")
    types = _pyarrow().types
    if types.is_null(type_):
        return
    if isinstance(kind, Struct) and types.is_struct(type_):
        for field in type_:
            _check(path, f"{column}.{field.name}", field.type, _kind_of(field.name, kind))
    elif isinstance(kind, ListOf) and (types.is_list(type_) or types.is_large_list(type_)):
        _check(path, column, type_.value_type, kind.item)
    elif not isinstance(kind, Scalar) or not any(
        is_type(type_)
        for is_type in (
            *(types.is_string, types.is_large_string, types.is_string_view),
            *(types.is_integer, types.is_floating, types.is_boolean),
        )
    ):
        raise InputError(f"{path}: the column {column} is of the type {type_}, not as it was made")


def _kind_of(name: str, struct: Struct) -> Kind | None:
    return Scalar("string") if name in (KEYS, REST) else struct.fields.get(name)


# --- writing ----------------------------------------------------------------------------------


class ParquetWriter:
    """Writes a file record by record; it appears, whole, when it is closed.

    Raises InputError at once where the folder cannot be written, MissingExtraError without pyarrow.
    """

    def __init__(self, path: Path, meta: Mapping[str, Any] | None = None) -> None:
        self._arrow = _pyarrow()
        self.path = path
        self._pending = PendingFile(path)
        self._asides: list[str] = []
        self._writer: Any = None
        self._kind = ""
        self._rows: list[dict[str, Any]] = []
        self._members = 0  # of the rows
        if meta is not None:
            self._keep("_meta", dict(meta))

    def write(self, query_id: str, record: Mapping[str, Any]) -> None:
        """Append a query's record: one of RL data or beam data, like those before it.

        Raises ValueError for NaN, as RecordWriter does.
        """
        check_query_id(query_id)
        if self._writer is None:
            self._kind = next(kind for kind in LAYOUTS if kind in record)
            self._writer = self._open()
        cells, _ = LAYOUTS[self._kind].pack(record)
        self._rows.append({"query_id": query_id, **cells})
        self._members += len(record[self._kind])
        if self._members + len(self._rows) > _GROUP:
            self._flush()

    def write_aside(self, key: str, value: Any) -> None:
        """Keep what is no query, under a key of another program's that begins with _."""
        assert key.startswith("_")
        assert key != "_meta", "which is given first"
        self._keep(key, value)

    def _keep(self, key: str, value: Any) -> None:
        self._asides.append(f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}")

    def close(self) -> None:
        """Complete the file and put it in place of what was there. Again: does nothing."""
        if self._pending.file.closed:
            return
        try:
            if self._writer is None:
                self._kind = next(iter(LAYOUTS))
                self._writer = self._open()
            self._flush()
            self._writer.add_key_value_metadata({_ASIDES: f"{{{', '.join(self._asides)}}}"})
            self._writer.close()
        except OSError as error:
            self.discard()
            raise self._unwritable(error) from error
        self._pending.commit()

    def discard(self) -> None:
        """Leave nothing behind, and what was there as it was."""
        if self._writer is not None:
            with suppress(OSError):  # it would try again when it is collected
                self._writer.close()
        self._pending.discard()

    def _open(self) -> Any:
        fields = {"query_id": Scalar("string"), **LAYOUTS[self._kind].fields}
        schema = self._arrow.schema(_arrow_columns(self._arrow, fields))
        return self._arrow.parquet.ParquetWriter(self._pending.file, schema, compression="zstd")

    def _flush(self) -> None:
        if not self._rows:
            return
        try:
            self._writer.write_table(
                self._arrow.Table.from_pylist(self._rows, schema=self._writer.schema)
            )
        except OSError as error:
            raise self._unwritable(error) from error
        except UnicodeEncodeError as error:
            raise InputError(f"{self.path}: Parquet cannot hold such a query id") from error
        self._rows.clear()
        self._members = 0

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(f"{self.path}: cannot write it ({error.strerror or first_line(error)})")


def _arrow_columns(arrow: Any, fields: Mapping[str, Kind]) -> list[Any]:
    columns = [arrow.field(name, _arrow_type(arrow, kind)) for name, kind in fields.items()]
    return [*columns, arrow.field(KEYS, arrow.string()), arrow.field(REST, arrow.string())]


def _arrow_type(arrow: Any, kind: Kind) -> Any:
    match kind:
        case ListOf():
            return arrow.list_(_arrow_type(arrow, kind.item))
        case Struct():
            return arrow.struct(_arrow_columns(arrow, kind.fields))
        case Scalar():
            return arrow.type_for_alias(kind.arrow)
    raise AssertionError(kind)


def _pyarrow() -> Any:
    if find_spec("pyarrow") is None:
        raise MissingExtraError("pyarrow", "Parquet", "pointer-rl[parquet]")
    import pyarrow
    import pyarrow.parquet

    return pyarrow
