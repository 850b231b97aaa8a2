"""Rewrite RL data and beam data: older layouts in the current one, and one container as another.

A file is rewritten record by record, in the memory of its largest record (of a row group, in
Parquet). Nothing is lost: keys that pointer-rl does not know stay where they are.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pointer_rl.errors import InputError
from pointer_rl.files import check_writable, locked
from pointer_rl.records.formats import open_writer, read_meta, stream_records
from pointer_rl.records.layouts import BEAM_LAYOUTS, Layout, detect_layout, upgrade_record
from pointer_rl.records.writer import RecordWriter


@dataclass
class Converted:
    """What a rewritten file contained."""

    layouts: Counter[Layout] = field(default_factory=Counter)
    """Layout → number of queries in it."""
    candidates: int = 0
    """Number of candidates, or of beams."""

    @property
    def queries(self) -> int:
        """The number of all queries."""
        return self.layouts.total()

    @property
    def kinds(self) -> set[Literal["RL data", "beam data"]]:
        """The kinds of data."""
        return {"beam data" if each in BEAM_LAYOUTS else "RL data" for each in self.layouts}

    @property
    def upgraded(self) -> dict[Layout, int]:
        """Older layout → number of queries that were in it."""
        current = ("pointer_candidates", "beams")
        return {key: count for key, count in self.layouts.items() if key not in current}


class Rewriter:
    """Writes members of files, whatever their layout, in the current layout."""

    def __init__(self, writer: RecordWriter) -> None:
        self.converted = Converted()
        self._writer = writer

    def add(self, where: str, key: str, value: Any) -> None:
        """Write a member other than `_meta`. Raises InputError, which says `where` it stands."""
        try:
            if key.startswith("_"):
                self._writer.write_aside(key, value)
                return
            layout = detect_layout(value)
            record = upgrade_record(value, layout)
            self.converted.layouts[layout] += 1
            members = "beams" if layout in BEAM_LAYOUTS else "pointer_candidates"
            self.converted.candidates += len(record[members])
            if len(self.converted.kinds) > 1:
                raise InputError("RL data and beam data in one file; keep one kind")
            self._writer.write(key, record)
        except ValueError as error:
            raise InputError(f"{where} has a number that JSON cannot hold") from error
        except InputError as error:
            raise InputError(f"{where}: {error}") from error


def convert_file(source: Path, target: Path, overwrite: bool = False) -> Converted:
    """Write the data of `source` to `target` in the current layout; all of it, or nothing.

    The suffixes (.json, .jsonl, .parquet) name the containers. Both may be the same file. Raises
    InputError, naming the query, for a record of no known layout and a query that occurs twice, and
    if `target` exists (unless `overwrite`) or cannot be written; MissingExtraError for Parquet
    without pyarrow.
    """
    with locked(target):
        check_writable(target, overwrite=overwrite)
        return _convert(source, target)


def _convert(source: Path, target: Path) -> Converted:
    meta = read_meta(source)
    with open_writer(target, meta) as writer:
        rewriter = Rewriter(writer)
        for key, value in stream_records(source):
            if key != "_meta":
                rewriter.add(f"{source}: {key!r}", key, value)
        if not rewriter.converted.queries:
            raise InputError(f"{source}: no query in it")
    return rewriter.converted
