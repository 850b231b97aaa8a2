"""Files of records, read and written record by record.

The suffix of a file names its container, of which `FORMATS` has one entry each. To add a container,
write its two functions and its writer, and add it to the table.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pointer_rl.errors import InputError
from pointer_rl.json_stream import WINDOW, Member
from pointer_rl.json_stream import stream_members as stream_json
from pointer_rl.records.parquet import ParquetWriter, find_parquet_meta, stream_parquet
from pointer_rl.records.records import Record, as_line, check_query_id, encode_record
from pointer_rl.records.writer import RecordWriter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Format:
    """A container of records."""

    stream: Callable[[Path], Iterator[Member]]
    """The members of a file, `_meta` included, in its order."""
    find_meta: Callable[[Path], Member | None]
    """The file's `_meta`, wherever it stands; None if it has none."""
    open: Callable[[Path, Mapping[str, Any] | None], RecordWriter]
    """A writer of a file with this `_meta`."""


# --- reading ----------------------------------------------------------------------------------


def stream_members(path: Path) -> Iterator[Member]:
    """The members of a file in its order, with their lines and with what JSON forbids in them.

    Repeated keys are yielded each time. A suffix that is unknown is read as .json. Raises
    InputError, naming the place, for content that cannot be parsed.
    """
    return _format_of(path).stream(path)


def stream_records(path: Path) -> Iterator[tuple[str, Any]]:
    """(query id, record), and ("_meta", …) and other keys that begin with _, in the file's order.

    Raises InputError for content that cannot be parsed or would have to be guessed: NaN, a
    repeated key, a query that occurs twice, a `_meta` that is not an object.
    """
    log.debug("%s: reading", path)
    seen: set[str] = set()
    for member in stream_members(path):
        _refuse_flaws(path, member)
        if member.key in seen:
            raise InputError(f"{path}: {member.key!r} occurs twice; keep one of them")
        if member.key == "_meta" and not isinstance(member.value, dict):
            raise InputError(f"{path}: '_meta' is not an object")
        seen.add(member.key)
        yield member.key, member.value


def find_meta(path: Path) -> Member | None:
    """The file's `_meta`, wherever it stands, with what JSON forbids in it; None if it has none."""
    return _format_of(path).find_meta(path)


def read_meta(path: Path) -> Record | None:
    """The file's `_meta`, wherever it stands; None if it has none, or one that is not an object.

    Raises InputError for content that cannot be parsed, and for NaN and repeated keys.
    """
    found = find_meta(path)
    if found is None or not isinstance(found.value, dict):
        return None
    _refuse_flaws(path, found)
    return found.value


def _refuse_flaws(path: Path, member: Member) -> None:
    for flaw in member.flaws:
        raise InputError(
            f"{path}: line {member.line}: {flaw.describe(member.key)}; correct it (pointer-rl "
            "validate lists all there are)"
        )


def _format_of(path: Path) -> Format:
    return FORMATS.get(path.suffix, FORMATS[".json"])


# --- writing ----------------------------------------------------------------------------------


def open_writer(path: Path, meta: Mapping[str, Any] | None = None) -> RecordWriter:
    """The writer of the container that the suffix names.

    `open_writer(path).discard()` checks early that a file can be written. Raises InputError for an
    unknown suffix or a path that cannot be written, MissingExtraError for Parquet without pyarrow.
    """
    if path.suffix not in FORMATS and not path.is_dir():
        *others, last = FORMATS
        raise InputError(f"{path}: name a {', '.join(others)} or {last} file to write")
    return _format_of(path).open(path, meta)


class JsonWriter(RecordWriter):
    """Writes `.json`: one object, one record per line."""

    def __init__(self, path: Path, meta: Mapping[str, Any] | None = None) -> None:
        encoded = None if meta is None else encode_record(meta)
        super().__init__(path)
        self._separator = b"{\n"
        if encoded is not None:
            self._append("_meta", encoded)

    def write_encoded(self, query_id: str, record: bytes) -> None:
        check_query_id(query_id)
        self._append(query_id, record)

    def _add(self, query_id: str, record: Mapping[str, Any]) -> None:
        self._append(query_id, encode_record(record))

    def _add_aside(self, key: str, value: Any) -> None:
        self._append(key, encode_record(value))

    def _append(self, key: str, value: bytes) -> None:
        self._target.write(self._separator + encode_record(key) + b": " + value)
        self._separator = b",\n"

    def _finish(self) -> None:
        self._target.write(b"\n}\n" if self._separator == b",\n" else b"{}\n")


class JsonLinesWriter(JsonWriter):
    """Writes `.jsonl`: on each line `{"_meta": …}`, or a record with its `query_id`."""

    def _add(self, query_id: str, record: Mapping[str, Any]) -> None:
        self._append(query_id, encode_record(_without_query_id(query_id, record)))

    def _add_aside(self, key: str, value: Any) -> None:
        raise InputError(f"{self.path}: .jsonl has no line for {key!r}; write a .json file")

    def _append(self, key: str, value: bytes) -> None:
        self._target.write(as_line(key, value))

    def _finish(self) -> None:
        pass


def _without_query_id(key: str, record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record without a field `query_id` of its own, which moves to `query`.

    In a line that field is the key.
    """
    if "query_id" not in record:
        return record
    query = record.get("query", {})
    if str(record["query_id"]) != key or not isinstance(query, dict):
        raise InputError(f"its query_id {record['query_id']!r} has no place in .jsonl")
    others = {name: value for name, value in record.items() if name != "query_id"}
    return {**others, "query": {"query_id": record["query_id"], **query}}


# --- the table --------------------------------------------------------------------------------


def _find_json_meta(path: Path) -> Member | None:
    for index, member in enumerate(stream_json(path)):
        if member.key == "_meta":
            return member
        if index == 0 and not _mentions_meta(path):
            return None
    return None


def _mentions_meta(path: Path) -> bool:
    """Whether the text `"_meta"` occurs at all: faster than parsing a large file without it."""
    needle = b'"_meta"'
    tail = b""
    with open(path, "rb") as file:
        while data := file.read(WINDOW):
            data = tail + data
            if needle in data:
                return True
            tail = data[-len(needle) :]
    return False


FORMATS = {
    ".json": Format(stream_json, _find_json_meta, JsonWriter),
    ".jsonl": Format(stream_json, _find_json_meta, JsonLinesWriter),
    ".parquet": Format(stream_parquet, find_parquet_meta, ParquetWriter),
}
"""Suffix → container."""
