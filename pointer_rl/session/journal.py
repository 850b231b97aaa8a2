"""What a run of `generate` has done, on disk as it goes: a killed run goes on from here.

Beside `rl.json` stands `rl.partial.jsonl` until the run is finished: RL data itself, `_meta` and a
line for each query that is done. Lines are appended a window at a time and synced, so that a kill,
or a power cut, costs the window under way. A query that is asked again, because a trial of it had
failed, gets a further line, and the last one counts. At the end the lines are put in the queries'
order, and the file takes its place.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from pointer_rl.datasets.examples import KeyIndex, values
from pointer_rl.errors import InputError
from pointer_rl.records.formats import open_writer, read_meta, stream_records
from pointer_rl.records.provenance import differences
from pointer_rl.records.records import (
    Judged,
    as_line,
    encode_record,
    from_record,
    split_line,
)
from pointer_rl.types import Example

__all__ = ["Journal", "partial_path"]

log = logging.getLogger(__name__)

_NOWHERE = -1
_TOGETHER = 1024
"""Lines copied from a finished file at a time."""
_Line = tuple[int, Mapping[str, Any], bytes]
"""Index of the query, record, the record's line."""


def partial_path(output: Path) -> Path:
    """Where the journal of a run that writes `output` lies."""
    return output.with_name(f"{output.stem}.partial.jsonl")


class Journal:
    """The lines of a run, one a query. Opened, it holds what an equal run has done before.

    `meta` is all that decides the run. Raises InputError, naming what differs, where the journal or
    a finished file at `output` is of another run (unless `overwrite`, which removes the journal),
    where another process writes it, and where it cannot be written.
    """

    def __init__(
        self,
        output: Path,
        meta: Mapping[str, Any],
        queries: Sequence[Example],
        *,
        overwrite: bool = False,
    ) -> None:
        self.output = output
        self.path = partial_path(output)
        self._meta = meta
        self._queries = queries
        self._starts = np.full(len(queries), _NOWHERE, dtype=np.int64)
        """Where each query's line begins."""
        self._failed = np.zeros(len(queries), dtype=bool)
        self._fresh = True
        """Whether it holds more than the finished file."""
        open_writer(output).discard()  # a place that cannot be written is found at once
        try:
            # Unbuffered: what a full disk refused must not be tried again when the file is closed.
            self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115 (closed in close)
        except OSError as error:
            raise InputError(f"{self.path}: cannot write there ({error.strerror})") from error
        self._end, self._head = 0, _NOWHERE
        try:
            self._lock()
        except BaseException:
            self._file.close()
            raise
        try:
            if overwrite:
                self._file.truncate(0)
            self._end = self._file.seek(0, os.SEEK_END)
            self._read()
            if self._end == self._head and not overwrite and output.exists():
                self._take_over()
        except BaseException:
            self.close()
            raise

    # --- what is done ---

    def has(self, index: int) -> bool:
        """Whether the query has its line."""
        return bool(self._starts[index] != _NOWHERE)

    def is_done(self, index: int) -> bool:
        """Whether none of its trials failed, either."""
        return self.has(index) and not self._failed[index]

    def __len__(self) -> int:
        """Queries that have a line."""
        return int((self._starts != _NOWHERE).sum())

    @property
    def left(self) -> int:
        """Queries that have none."""
        return len(self._queries) - len(self)

    def records(self, which: npt.NDArray[np.bool_]) -> Iterator[list[Judged]]:
        """Candidates and outcomes of each of these queries [N] that has a line, in their order."""
        for _, record in self._lines(which):
            yield from_record(json.loads(record))

    def _lines(self, which: npt.NDArray[np.bool_] | None = None) -> Iterator[tuple[str, bytes]]:
        starts = self._starts if which is None else self._starts[which]
        with open(self.path, "rb") as file:
            for start in starts[starts != _NOWHERE]:
                file.seek(start)
                yield split_line(file.readline())

    # --- doing ---

    def append(self, lines: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
        """Keep the records of these queries (by index), together and for good.

        Raises InputError when the disk is full: what was there before is still there.
        """
        self._append(
            [
                (index, record, as_line(self._queries[index].id, encode_record(record)))
                for index, record in lines
            ]
        )
        self._fresh = True

    def _append(self, lines: Sequence[_Line]) -> None:
        start = self._end
        self._write(b"".join(line for _, _, line in lines))
        for index, record, line in lines:
            self._note(index, start, record)
            start += len(line)

    def _write(self, data: bytes) -> None:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except BaseException as error:
            # What an interrupt or a full disk cut off is no line.
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)
            if isinstance(error, OSError):
                raise InputError(
                    f"{self.path}: cannot be written ({error.strerror}); the {len(self):,} "
                    "queries before are kept: the same command goes on from there"
                ) from error
            raise
        self._end += len(data)

    def _note(self, index: int, start: int, record: Mapping[str, Any]) -> None:
        self._starts[index] = start
        self._failed[index] = any(each.get("eval_failed") for each in record["pointer_candidates"])

    def finish(self) -> None:
        """Write the finished file, and remove the journal. Every query has its line."""
        assert not self.left
        if self._fresh or not self.output.exists():
            with open_writer(self.output, self._meta) as writer:
                for key, record in self._lines():
                    writer.write_encoded(key, record)
        self.path.unlink()

    def close(self) -> None:
        """Let go of the file; one that keeps nothing goes, too."""
        if not self._file.closed:
            if self._end == self._head or not self._fresh:
                self.path.unlink(missing_ok=True)
            self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- what is there ---

    def _lock(self) -> None:
        """Until it is closed, or its process dies. (Windows has no such lock: there is none.)"""
        if os.name != "posix":
            return
        import fcntl

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path))
        except (BlockingIOError, FileNotFoundError):
            mine = False  # held; or finished, and removed, since it was opened
        if not mine:
            raise InputError(
                f"{self.path}: another process is writing it: wait for it, or name another "
                "--output-path"
            )

    def _read(self) -> None:
        """Find the queries' lines. A file without any begins anew."""
        with open(self.path, "rb") as file:
            head = file.readline()
            self._head = len(head)
            if self._end > len(head):
                self._check_same(_meta_of(head), self.path, "is what another run left")
                self._find(file)
                return
        self._file.truncate(0)
        self._end = 0
        head = as_line("_meta", encode_record(self._meta))
        self._write(head)
        self._head = len(head)

    def _find(self, file: BinaryIO) -> None:
        find = _Places(self._queries)
        start, damaged = self._head, 0
        for line in file:
            try:
                key, record = split_line(line)
                self._note(find(key), start, json.loads(record))
            except (ValueError, KeyError, TypeError, AttributeError):
                if not line.endswith(b"\n"):  # cut by a kill
                    self._file.truncate(start)
                    self._end = start
                    break
                damaged += 1
            start += len(line)
        if damaged:
            log.warning("%s: %d damaged lines; their queries are asked anew", self.path, damaged)

    def _take_over(self) -> None:
        """Go on from a finished file: trials of it that failed can be asked again."""
        try:
            before = read_meta(self.output)
        except InputError:
            before = None
        self._check_same(before, self.output, "exists, and is of another run")
        self._fresh = False
        find = _Places(self._queries)
        lines: list[_Line] = []
        for key, record in stream_records(self.output):
            if key != "_meta":
                lines.append((find(key), record, as_line(key, encode_record(record))))
            if len(lines) == _TOGETHER:
                self._append(lines)
                lines = []
        self._append(lines)

    def _check_same(self, before: Any, path: Path, what: str) -> None:
        changes = ["it does not say which"]
        if isinstance(before, dict):
            now = json.loads(encode_record(self._meta))
            changes = [_in_words(each) for each in differences(before, now)][:3]
        if not changes:
            return
        raise InputError(
            f"{path}: {what} ({'; '.join(changes)}): give the same to go on with it, "
            "name another --output-path, or start anew with --overwrite"
        )


class _Places:
    """Index of a query id. Lines mostly stand in the queries' order: no table, then."""

    def __init__(self, queries: Sequence[Example]) -> None:
        self._queries = queries
        self._next = 0
        self._table: KeyIndex | None = None

    def __call__(self, key: str) -> int:
        if self._next < len(self._queries) and self._queries[self._next].id == key:
            index = self._next
        else:
            if self._table is None:
                queries = self._queries
                self._table = KeyIndex(values(queries, "id"), lambda row: queries[row].id)
            found = self._table.rows(key)
            if not found:
                raise KeyError(key)
            index = found[0]
        self._next = index + 1
        return index


def _meta_of(head: bytes) -> Any:
    """What the first line of a journal says; None where it is none."""
    try:
        return json.loads(head)["_meta"]
    except (ValueError, KeyError, TypeError):
        return None


def _in_words(change: tuple[str, Any, Any]) -> str:
    """`seed: 0, now 1`; of what is long, that it differs."""
    name, before, now = change
    if name.endswith("_sha256") or isinstance(now, dict):
        return f"{name} differs"
    return f"{name}: {json.dumps(before)}, now {json.dumps(now)}"
