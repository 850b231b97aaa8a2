"""What a run has done, on disk as it goes: an interrupted run continues from here.

Until a run that writes `rl.json` is finished, `rl.partial.jsonl` lies next to it: RL data itself,
with `_meta` and one line for each query that is done. Lines are appended and synced a window at a
time, so that a kill or a power cut costs the windows under way. A query that is asked again because
one of its trials failed gets another line, and the last one counts. At the end the lines are put in
the queries' order, and the finished file takes the journal's place.

Each line ends with a checksum of itself, `"_crc32"`. A line that does not have its checksum is
damaged: its query is asked again. Only one process at a time may write a journal: its run is
inside `locked_run`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from pointer_rl.errors import InputError
from pointer_rl.files import locked
from pointer_rl.records.fields import RECORDS, has_failed
from pointer_rl.records.formats import open_writer, read_meta, stream_records
from pointer_rl.records.provenance import (
    EARLIER,
    INPUTS,
    PLUGINS,
    Change,
    changeable,
    differences,
    earlier_of,
)
from pointer_rl.records.records import as_line, encode_record, split_line
from pointer_rl.validate.schema import SchemaChecker

log = logging.getLogger(__name__)

RUN = "_run"
"""Key of what a job notes in a record for its summary; finished files do not have it."""
_CHANGED = "_changed"
"""Key of a line that says which plugins and inputs the run has from there on."""
_SEAL = b', "_crc32": "%08x"}\n'
"""End of a line, with the CRC-32 of what precedes it."""
_RL_DATA = "pointer_candidates"
_NOWHERE = -1
_BEGINNING = b'{"_meta": '
"""What the first line of a journal begins with."""
_SUFFIX = ".partial.jsonl"
_COPIED_TOGETHER = 1024
"""Lines copied from a finished file at a time."""

Record = Mapping[str, Any]


def partial_path(output: Path) -> Path:
    """The journal of a run that writes `output`."""
    return output.with_name(output.stem + _SUFFIX)


@contextlib.contextmanager
def locked_run(output: Path) -> Iterator[None]:
    """Keep other processes from `output` and its journal, which `rl.json` and `rl.parquet` share.

    Raises InputError as `locked` does.
    """
    with locked(output), locked(partial_path(output)):
        yield


def earlier_meta(output: Path | None, *, overwrite: bool) -> Record:
    """The `_meta` of the run at `output` that this one continues; empty if there is none."""
    if output is None or overwrite:
        return {}
    meta: object = None
    with contextlib.suppress(FileNotFoundError), open(partial_path(output), "rb") as journal:
        head = journal.readline()
        if journal.read(1):  # without a record it is started anew
            meta = _meta_of(head)
    if meta is None and output.is_file():
        with contextlib.suppress(InputError):  # no output of a run: it is refused later
            meta = read_meta(output)
    return meta if isinstance(meta, dict) else {}


class AlreadyFinished(Exception):  # noqa: N818 (not an error)
    """The run has nothing left to do."""

    def __init__(self, path: Path, content: Mapping[str, Any] | None = None) -> None:
        super().__init__(f"{path}: finished before; nothing to do (--overwrite starts over)")
        self.content = content or {}
        """What the finished file holds."""


class Journal:
    """The records of a run, one per query. Opened again, it holds what the same run did before.

    `output` is the file that the run writes, and `meta` decides the run. Raises InputError, naming
    what differs, if the journal or a finished file there is another run's (unless `overwrite`,
    which removes the journal), and if it cannot be written.
    """

    def __init__(
        self,
        output: Path,
        meta: Mapping[str, Any],
        ids: Sequence[str],
        *,
        overwrite: bool = False,
        take_over: bool = True,
        accept: Collection[Change] = (),
    ) -> None:
        """take_over: whether a finished file at `output` has these records, and is continued.

        accept: what of the run may have changed since it began. Both states are then recorded.
        """
        if output.name.endswith(_SUFFIX):
            raise InputError(f"{output}: {_SUFFIX} is for journals: choose another name")
        self.ids = ids
        self.output = output
        self.path = partial_path(output)
        self.changed = True
        """Whether it holds anything that the finished file does not."""
        self.earlier: list[dict[str, Any]] = []
        """The plugins and inputs before each change that was accepted."""
        self._accept = accept
        self._meta = meta
        self._starts = np.full(len(ids), _NOWHERE, dtype=np.int64)
        """[N] offset of each query's line."""
        self._incomplete = np.zeros(len(ids), dtype=bool)
        """[N] whether the query has to be asked again."""
        self._left_out = np.zeros(len(ids), dtype=bool)
        """[N] whether the query has no beam: it is not in a file of beam data."""
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: bytes that a full disk refused must not be written again on closing.
            self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115 (closed in close)
        except OSError as error:
            raise InputError(f"{self.path}: cannot write there ({error.strerror})") from error
        self._end, self._head = 0, _NOWHERE
        try:
            if overwrite:
                self._file.truncate(0)
            self._end = self._file.seek(0, os.SEEK_END)
            self._read()
            if take_over and not overwrite and not len(self) and output.exists():
                self._take_over()
        except BaseException:
            self.close()
            raise

    # --- what is done ---

    def has(self, index: int) -> bool:
        """Whether the query has a record."""
        return bool(self._starts[index] != _NOWHERE)

    def is_done(self, index: int) -> bool:
        """Whether the query has a record, without a failed trial."""
        return self.has(index) and not self._incomplete[index]

    def __len__(self) -> int:
        """Queries that have a record."""
        return int((self._starts != _NOWHERE).sum())

    @property
    def left(self) -> int:
        """Queries without a record."""
        return len(self.ids) - len(self)

    def records(self, which: npt.NDArray[np.bool_] | None = None) -> Iterator[dict[str, Any]]:
        """The records of these queries ([N] bool, default all), in the queries' order."""
        there = self._starts != _NOWHERE
        for _, record in self._lines(there if which is None else there & which):
            yield json.loads(record)

    def _lines(self, which: npt.NDArray[np.bool_]) -> Iterator[tuple[str, bytes]]:
        with open(self.path, "rb") as file:
            for start in self._starts[which]:
                file.seek(start)
                yield split_line(_unsealed(file.readline()))

    # --- writing ---

    def append(self, records: Mapping[int, Record]) -> None:
        """Keep the records of these queries (by index), all or none, synced to disk.

        Raises InputError if the disk is full: earlier records are kept.
        """
        self._append(
            [
                (index, record, _sealed(self.ids[index], record))
                for index, record in sorted(records.items())
            ]
        )
        log.debug("%s: %d queries added", self.path, len(records))
        self.changed = True

    def _append(self, lines: Sequence[tuple[int, Record, bytes]]) -> None:
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
            # What an interrupt or a full disk cut off is not a whole line.
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)
            if isinstance(error, OSError):
                raise InputError(
                    f"{self.path}: cannot be written ({error.strerror}); the {len(self):,} "
                    "queries before are kept: the same command continues from there"
                ) from error
            raise
        self._end += len(data)

    def _note(self, index: int, start: int, record: Record) -> None:
        if "beams" in record:
            self._incomplete[index] = self._left_out[index] = not record["beams"]
        else:
            self._incomplete[index] = any(map(has_failed, record[_RL_DATA]))
        self._starts[index] = start

    def finish(self) -> None:
        """Write the finished file, of all queries that have a record, and remove the journal."""
        if self.changed or not self.output.exists():
            earlier = {EARLIER: self.earlier} if self.earlier else {}
            with open_writer(self.output, {**self._meta, **earlier}) as writer:
                for key, record in self._lines((self._starts != _NOWHERE) & ~self._left_out):
                    writer.write_encoded(key, _without_notes(record))
        self.remove()

    def remove(self) -> None:
        """Remove the journal: its records are no longer needed."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the file, and remove it if it holds nothing that the finished file does not."""
        if not self._file.closed:
            if self._end == self._head or not self.changed:
                self.remove()
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

    # --- continuing ---

    def _read(self) -> None:
        """Find the queries' lines. A file without any is started anew."""
        with open(self.path, "rb") as file:
            head = file.readline()
            if not head.startswith(_BEGINNING[: len(head)]):
                raise InputError(
                    f"{self.path}: exists, and is not the journal of a run: move it away, or name "
                    "another --output-path"
                )
            self._head = len(head)
            if self._end > len(head):
                before, what = _meta_of(head), "is what another run left"
                if before is None:
                    raise InputError(
                        f"{self.path}: its first line is damaged, or another version's: move it "
                        "away, or start over with --overwrite (what is in the response cache is "
                        "not asked again)"
                    )
                check_same_run(before, self._meta, self.path, what, (PLUGINS, INPUTS))
                before |= self._find_lines(file)
                check_same_run(before, self._meta, self.path, what, self._accept)
                self._note_changes(before)
                return
        self._file.truncate(0)
        self._end = 0
        head = _sealed("_meta", self._meta)
        self._write(head)
        self._head = len(head)

    def _note_changes(self, before: Mapping[str, Any]) -> None:
        """Keep what was different in the run at first, if a change was accepted."""
        was, now = changeable(before), changeable(json.loads(encode_record(self._meta)))
        self.earlier = earlier_of(before) + ([] if was == now else [was])
        if was != now or (self.earlier and self._end == self._head):
            self._write(_sealed(_CHANGED, {**now, EARLIER: self.earlier}))

    def _find_lines(self, file: BinaryIO) -> dict[str, Any]:
        """Find the queries' lines. Returns the last change that was accepted."""
        changed: dict[str, Any] = {}
        index_of = {id_: index for index, id_ in enumerate(self.ids)}
        start, damaged = self._head, 0
        for line in file:
            try:
                key, record = split_line(_unsealed(line))
                if key == _CHANGED:
                    changed = dict(json.loads(record))
                else:
                    self._note(index_of[key], start, json.loads(record))
            except (ValueError, KeyError):
                if not line.endswith(b"\n"):  # cut off by a kill
                    self._file.truncate(start)
                    self._end = start
                    break
                damaged += 1
            start += len(line)
        if damaged:
            log.warning("%s: %d damaged lines; their queries are asked again", self.path, damaged)
        return changed

    def _take_over(self) -> None:
        """Continue a finished file: its failed trials can be asked again."""
        try:
            before = read_meta(self.output)
        except InputError:
            before = None
        check_same_run(
            before, self._meta, self.output, "exists, and is another run's", self._accept
        )
        self._note_changes(before or {})
        index_of = {id_: index for index, id_ in enumerate(self.ids)}
        lines: list[tuple[int, Record, bytes]] = []
        checkers = {kind: SchemaChecker(kind, "record") for kind in RECORDS}
        for key, record in stream_records(self.output):
            if key in index_of:
                kind = "beams" if isinstance(record, dict) and "beams" in record else _RL_DATA
                for fault in checkers[kind].faults(record, limit=1):
                    raise InputError(
                        f"{self.output}: {key!r}: {fault.message}: mend it (pointer-rl validate "
                        "lists all there is), or start over with --overwrite"
                    )
                lines.append((index_of[key], record, _sealed(key, record)))
            if len(lines) == _COPIED_TOGETHER:
                self._append(lines)
                lines = []
        self._append(lines)
        self.changed = False


def check_same_run(
    before: object,
    now: Mapping[str, Any],
    path: Path,
    what: str,
    accept: Collection[str] = (),
) -> None:
    """Raise InputError, naming what differs, unless both decide the same run.

    before: what the file at `path` says; what: what is wrong with it if it is another run's;
    accept: keys in which they may differ.
    """
    if not isinstance(before, dict):
        raise InputError(
            f"{path}: exists, and is not the output of a run: name another --output-path, or "
            "replace it with --overwrite"
        )
    plain = json.loads(encode_record(now))
    changes = [
        each for each in differences(before, plain) if each[0].partition(".")[0] not in accept
    ]
    if changes:
        said = "; ".join(dict.fromkeys(map(_describe_change, changes[:3])))
        kinds = dict.fromkeys(name.partition(".")[0] for name, *_ in changes)
        to_continue = "give the same options to continue it"
        if kinds.keys() <= {PLUGINS, INPUTS}:
            options = " ".join(f"--accept-changed {kind}" for kind in kinds)
            to_continue = f"accept the change with {options}"
        raise InputError(
            f"{path}: {what} ({said}): {to_continue}, name another --output-path, or start over "
            "with --overwrite"
        )


def _sealed(key: str, record: Record) -> bytes:
    """The line of a record, or of `_meta`, with its checksum."""
    line = as_line(key, encode_record(record))[: -len(b"}\n")]
    return line + _SEAL % zlib.crc32(line)


def _unsealed(line: bytes) -> bytes:
    """The line without its checksum. Raises ValueError if it is wrong."""
    content = line[: -len(_SEAL % 0)]
    if not line.endswith(_SEAL % zlib.crc32(content)):
        raise ValueError("damaged")
    return content + b"}\n"


def _without_notes(encoded: bytes) -> bytes:
    if f'"{RUN}"'.encode() not in encoded:
        return encoded
    record = json.loads(encoded)
    record.pop(RUN, None)
    return encode_record(record)


def _meta_of(head: bytes) -> Any:
    """The `_meta` in the first line of a journal; None if it is damaged."""
    try:
        return json.loads(_unsealed(head))["_meta"]
    except (ValueError, KeyError, TypeError):
        return None


def _describe_change(change: tuple[str, Any, Any]) -> str:
    """`seed: 0, now 1`; of long values only that they differ."""
    name, before, now = change
    kind, _, part = name.partition(".")
    if kind == PLUGINS:
        return f"the code of the plugin{f' {part}' if part else 's'} has changed"
    if part.endswith("_content_sha256"):
        return f"an image, question, answer or id of the {part.partition('_')[0]} has changed"
    if part == "unreadable_images":
        return "other images can be read than before"
    if name.endswith("_sha256") or isinstance(now, dict):
        return f"{name} differs"
    return f"{name}: {json.dumps(before)}, now {json.dumps(now)}"
