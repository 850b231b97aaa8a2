"""Rewriting RL data and beam data: older layouts to the current one, `.json` to `.jsonl` and back.

Record by record, in the memory of the largest one. Nothing is lost: keys that pointer-rl does not
know stay where they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pointer_rl.data.layouts import Layout, detect_layout, upgrade_record
from pointer_rl.data.records import RecordWriter, read_meta, stream_records
from pointer_rl.errors import InputError

__all__ = ["Converted", "convert_file"]


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


def convert_file(source: Path, target: Path, overwrite: bool = False) -> Converted:
    """Write the data of `source` to `target` in the current layout; all of it, or nothing.

    The suffixes (.json, .jsonl) say how each is laid out in lines. They may be the same file.
    Raises InputError, naming the query, for what is no record of a known layout, for a query that
    occurs twice, and where `target` exists (unless `overwrite`) or cannot be written.
    """
    if target.exists() and not overwrite:
        raise InputError(f"{target}: exists; remove it, or give --overwrite")
    meta = read_meta(source)
    writer = RecordWriter(target, meta)
    try:
        converted = _convert(source, writer, has_meta=meta is not None)
    except BaseException:  # an interrupt too: half of the data is not what was asked for
        writer.discard()
        raise
    writer.close()
    return converted


def _convert(source: Path, writer: RecordWriter, has_meta: bool) -> Converted:
    converted = Converted()
    seen: set[str] = set()
    for key, value in stream_records(source):
        where = f"{source}: {key!r}"
        if key in seen:
            raise InputError(f"{where} occurs twice; keep one of them")
        seen.add(key)
        if key == "_meta":
            if not has_meta:
                raise InputError(f"{where} is no object, as what describes a file has to be")
        elif key.startswith("_"):
            writer.write_aside(key, value)
        else:
            layout = detect_layout(value)
            try:
                record = upgrade_record(value, layout)
                writer.write(key, _fit_for_a_line(key, record, writer.path))
            except ValueError as error:
                raise InputError(f"{where} has a number that JSON cannot hold") from error
            except InputError as error:
                raise InputError(f"{where}: {error}") from error
            converted.add(layout, record)
            if len(converted.kinds) > 1:
                raise InputError(f"{where}: RL data and beam data in one file; keep one kind")
    if not converted.queries:
        raise InputError(f"{source}: no query in it")
    return converted


def _fit_for_a_line(key: str, record: dict[str, Any], target: Path) -> dict[str, Any]:
    """In `.jsonl` the key is the field `query_id`: a record's own field of that name gives way."""
    if target.suffix != ".jsonl" or "query_id" not in record:
        return record
    query = record.get("query", {})
    if str(record["query_id"]) != key or not isinstance(query, dict):
        raise InputError(f"its query_id {record['query_id']!r} has no room in .jsonl")
    others = {name: value for name, value in record.items() if name != "query_id"}
    return {**others, "query": {"query_id": record["query_id"], **query}}
