"""Rewriting RL data and beam data: older layouts to the current one, and from form to form.

The forms are `.json`, `.jsonl` and `.parquet`. Record by record, in the memory of the largest one
(of a row group, where that is Parquet). Nothing is lost: keys that pointer-rl does not
know stay where they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pointer_rl.errors import InputError
from pointer_rl.records.layouts import Layout, detect_layout, upgrade_record
from pointer_rl.records.parquet import ParquetWriter
from pointer_rl.records.records import RecordWriter, open_writer, read_meta, stream_records

__all__ = ["Converted", "Rewriter", "convert_file", "whole_file"]


Kind = Literal["RL data", "beam data"]
_KINDS: dict[Layout, Kind] = {"beams": "beam data", "beam": "beam data"}
_CURRENT: frozenset[Layout] = frozenset({"pointer_candidates", "beams"})


@dataclass
class Converted:
    """What was read."""

    layouts: Counter[Layout] = field(default_factory=Counter)
    """Layout → queries in it."""
    candidates: int = 0
    """Or beams."""

    def add(self, layout: Layout, record: Mapping[str, Any]) -> None:
        """Count a record that was in this layout, and has been upgraded."""
        self.layouts[layout] += 1
        self.candidates += len(record.get("pointer_candidates", record.get("beams", ())))

    @property
    def queries(self) -> int:
        """All of them."""
        return self.layouts.total()

    @property
    def kinds(self) -> set[Kind]:
        """Of data."""
        return {_KINDS.get(layout, "RL data") for layout in self.layouts}

    @property
    def upgraded(self) -> dict[Layout, int]:
        """Older layout → queries that were in it."""
        return {key: count for key, count in self.layouts.items() if key not in _CURRENT}


class Rewriter:
    """Takes members of files in, in whatever layout, and writes them in the current one."""

    def __init__(self, writer: RecordWriter | ParquetWriter) -> None:
        self.converted = Converted()
        self._writer = writer

    def add(self, where: str, key: str, value: Any) -> None:
        """Write a member other than `_meta`. Raises InputError, which names `where` it stands."""
        try:
            if key.startswith("_"):
                self._writer.write_aside(key, value)
                return
            layout = detect_layout(value)
            record = upgrade_record(value, layout)
            self.converted.add(layout, record)
            if len(self.converted.kinds) > 1:
                raise InputError("RL data and beam data in one file; keep one kind")
            self._writer.write(key, _fit_for_a_line(key, record, self._writer.path))
        except ValueError as error:
            raise InputError(f"{where} has a number that JSON cannot hold") from error
        except InputError as error:
            raise InputError(f"{where}: {error}") from error


def convert_file(source: Path, target: Path, overwrite: bool = False) -> Converted:
    """Write the data of `source` to `target` in the current layout; all of it, or nothing.

    The suffixes (.json, .jsonl, .parquet) say which form each has. They may be the same file.
    Raises InputError, naming the query, for what is no record of a known layout, for a query that
    occurs twice, and where `target` exists (unless `overwrite`) or cannot be written;
    MissingExtraError for Parquet without pyarrow.
    """
    if target.exists() and not overwrite:
        raise InputError(f"{target}: exists; remove it, or give --overwrite")
    meta = read_meta(source)
    with whole_file(target, meta) as writer:
        rewriter = Rewriter(writer)
        seen: set[str] = set()
        for key, value in stream_records(source):
            where = f"{source}: {key!r}"
            if key in seen:
                raise InputError(f"{where} occurs twice; keep one of them")
            seen.add(key)
            if key != "_meta":
                rewriter.add(where, key, value)
            elif meta is None:
                raise InputError(f"{where} is no object, as what describes a file has to be")
        if not rewriter.converted.queries:
            raise InputError(f"{source}: no query in it")
    return rewriter.converted


@contextmanager
def whole_file(
    target: Path, meta: Mapping[str, Any] | None
) -> Iterator[RecordWriter | ParquetWriter]:
    """A writer whose file appears when the block ends, and does not where it raises.

    Half of the data is not what was asked for: not after an interrupt either.
    """
    writer = open_writer(target, meta)
    try:
        yield writer
    except BaseException:
        writer.discard()
        raise
    writer.close()


def _fit_for_a_line(key: str, record: dict[str, Any], target: Path) -> dict[str, Any]:
    """In `.jsonl` the key is the field `query_id`: a record's own field of that name gives way."""
    if target.suffix != ".jsonl" or "query_id" not in record:
        return record
    query = record.get("query", {})
    if str(record["query_id"]) != key or not isinstance(query, dict):
        raise InputError(f"its query_id {record['query_id']!r} has no room in .jsonl")
    others = {name: value for name, value in record.items() if name != "query_id"}
    return {**others, "query": {"query_id": record["query_id"], **query}}
