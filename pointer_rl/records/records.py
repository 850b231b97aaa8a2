"""RL data: a record for each query, in `.json` or `.jsonl`, read and written record by record.

The form is that of `pointer_rl_schemas`' pointer_candidates: one object, query id → record, with
an optional `_meta`. In `.jsonl` a line is a record with its `query_id`, or `{"_meta": …}`. What is
read may be Parquet, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from pointer_rl import json_stream
from pointer_rl.errors import InputError
from pointer_rl.json_stream import WINDOW, Member
from pointer_rl.records.layouts import check_query_id
from pointer_rl.records.parquet import ParquetWriter, read_parquet_meta, stream_parquet
from pointer_rl.records.pending_file import PendingFile
from pointer_rl.types import Candidate, Example, Outcome

__all__ = [
    "RecordWriter",
    "as_line",
    "encode_record",
    "from_record",
    "open_writer",
    "read_meta",
    "split_line",
    "stream_members",
    "stream_records",
    "to_record",
]

Record = dict[str, Any]
Judged = tuple[Candidate, Outcome]


# --- records ----------------------------------------------------------------------------------


def to_record(
    query: Example,
    judged: Sequence[Judged],
    normalise: Callable[[str], str] | None = None,
    excluded: Sequence[int] = (),
) -> Record:
    """A query's record. `normalise` is the metric's: it adds the answers in the form it compares.
    `excluded`: rows that the query may not choose.

    A candidate whose trial failed carries `eval_failed` and no outcome.
    """
    described: Record = {
        "query_id": query.id,
        "question_id": query.question_id,
        "image_id": query.image_id,
        "row": query.row,
        "question": query.question,
        "gt_answers_raw": list(query.answers),
    }
    if normalise is not None:
        described["gt_answers_norm"] = [normalise(answer) for answer in query.answers]
    return {
        "query": described,
        **({"excluded": list(excluded)} if excluded else {}),
        "pointer_candidates": [_to_candidate(candidate, outcome) for candidate, outcome in judged],
    }


def _to_candidate(candidate: Candidate, outcome: Outcome) -> Record:
    value: Record = {
        "pointer": list(candidate.pointer),
        "gen_method": candidate.gen_method,
        "beam_rank": candidate.beam_rank,
        "beam_score": candidate.beam_score,
        "logprob_score": candidate.logprob_score,
        "temperature": candidate.temperature,
    }
    optional: Record = {
        "top_p": candidate.top_p,
        "similarity_score": candidate.similarity_score,
    }
    if outcome.failure is None:
        assert outcome.correct is not None, "an outcome is judged, or has failed"
        value["vqa_pred_answer"] = outcome.answer
        value["vqa_correct"] = int(outcome.correct)
        value["vqa_acc_score"] = outcome.accuracy
        optional["vqa_raw_generation"] = outcome.raw_generation
        optional["vqa_gt_prob"] = outcome.gt_prob
        optional["vqa_rel_score"] = outcome.rel_score
    else:
        optional["eval_failed"] = True
        optional["eval_error"] = outcome.failure
    value.update((key, each) for key, each in optional.items() if each is not None)
    return value


def from_record(record: Mapping[str, Any]) -> list[Judged]:
    """The candidates of a valid record and their outcomes; fields of other programs are left."""
    return [_from_candidate(value) for value in record["pointer_candidates"]]


def _from_candidate(value: Mapping[str, Any]) -> Judged:
    candidate = Candidate(
        pointer=tuple(map(int, value["pointer"])),
        gen_method=value["gen_method"],
        beam_rank=value.get("beam_rank"),
        beam_score=value.get("beam_score"),
        logprob_score=value.get("logprob_score"),
        temperature=value.get("temperature"),
        top_p=value.get("top_p"),
        similarity_score=value.get("similarity_score"),
    )
    if value.get("eval_failed"):
        return candidate, Outcome(failure=value.get("eval_error", "unknown"))
    return candidate, Outcome(
        raw_generation=value.get("vqa_raw_generation"),
        answer=value["vqa_pred_answer"],
        correct=bool(value["vqa_correct"]),
        accuracy=value["vqa_acc_score"],
        gt_prob=value.get("vqa_gt_prob"),
        rel_score=value.get("vqa_rel_score"),
    )


# --- reading ----------------------------------------------------------------------------------


def stream_members(path: Path) -> Iterator[Member]:
    """Yield the members of a `.json`, `.jsonl` or `.parquet` file. Raises InputError."""
    if path.suffix == ".parquet":
        yield from (Member(*each) for each in stream_parquet(path))
    else:
        yield from json_stream.stream_members(path)


def stream_records(path: Path) -> Iterator[tuple[str, Any]]:
    """(query id, record), and ("_meta", …) where the file has one, in the file's order.

    A key that occurs twice comes out twice. Raises InputError for what cannot be parsed, and for a
    record with NaN or with a repeated key, whose content would be a guess.
    """
    for member in stream_members(path):
        for flaw in member.flaws:
            raise InputError(
                f"{path}: line {member.line}: {flaw.describe(member.key)}; mend it (pointer-rl "
                "validate lists all there are)"
            )
        yield member.key, member.value


def read_meta(path: Path) -> dict[str, Any] | None:
    """The file's `_meta`, wherever it stands; None where there is none (or it is no object)."""
    if path.suffix == ".parquet":
        return read_parquet_meta(path)
    for index, member in enumerate(stream_members(path)):
        if member.key == "_meta":
            return member.value if isinstance(member.value, dict) else None
        if index == 0 and not _mentions_meta(path):
            return None
    return None


def _mentions_meta(path: Path) -> bool:
    """Whether a search for `_meta` in the records is worth while."""
    needle = b'"_meta"'
    tail = b""
    with open(path, "rb") as file:
        while data := file.read(WINDOW):
            data = tail + data
            if needle in data:
                return True
            tail = data[-len(needle) :]
    return False


# --- writing ----------------------------------------------------------------------------------


def open_writer(path: Path, meta: Mapping[str, Any] | None = None) -> RecordWriter | ParquetWriter:
    """The writer for the form that the suffix names: .json, .jsonl or .parquet.

    Raises InputError for another suffix and where the folder cannot be written, MissingExtraError
    for Parquet without pyarrow.
    """
    if path.suffix == ".parquet":
        return ParquetWriter(path, meta)
    if path.suffix not in (".json", ".jsonl"):
        raise InputError(f"{path}: name a .json, .jsonl or .parquet file to write")
    return RecordWriter(path, meta)


class RecordWriter:
    """Writes a file of RL data record by record; the file appears, whole, when it is closed.

    Until then all goes to a temporary file beside it. As a context manager it closes at the end,
    and on an exception too, so that what is done is kept; where nothing is, it discards. One record
    a line; the same records give the same bytes. Raises InputError at once where the folder cannot
    be written; missing folders are made.
    """

    def __init__(self, path: Path, meta: Mapping[str, Any] | None = None) -> None:
        if path.suffix not in (".json", ".jsonl") and not path.is_dir():
            raise InputError(f"{path}: RL data is written as .json or .jsonl; name such a file")
        self.path = path
        self._pending = PendingFile(path)
        self._file = self._pending.file
        self._lines = path.suffix == ".jsonl"
        self._empty = True
        self._end = 0
        self._records = 0
        if not self._lines:
            self._append(b"{")
        if meta is not None:
            self._member("_meta", encode_record(meta))

    def write(self, query_id: str, record: Mapping[str, Any]) -> None:
        """Append a query's record. Raises ValueError for NaN, which JSON has no way to write."""
        self.write_encoded(query_id, encode_record(record))

    def write_encoded(self, query_id: str, record: bytes) -> None:
        """Append a query's record that `encode_record` has written."""
        check_query_id(query_id)
        self._member(query_id, record)
        self._records += 1

    def write_aside(self, key: str, value: Any) -> None:
        """Append what is no query, under a key of another program's that begins with _.

        Raises InputError for `.jsonl`, which has no line for it.
        """
        assert key.startswith("_")
        assert key != "_meta", "which stands first"
        if self._lines:
            raise InputError(f"{self.path}: .jsonl has no line for {key!r}; write a .json file")
        self._member(key, encode_record(value))

    def _member(self, key: str, value: bytes) -> None:
        if self._lines:
            self._append(as_line(key, value))
        else:
            begin = b"\n" if self._empty else b",\n"
            self._append(begin + encode_record(key) + b": " + value)
            self._empty = False

    def _append(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise InputError(f"{self.path}: cannot write it ({error.strerror})") from error
        self._end += len(data)

    def close(self) -> None:
        """Complete the file and put it in place of what was there. Again: does nothing."""
        if self._file.closed:
            return
        try:
            self._file.seek(self._end)  # an interrupt may have cut a write
            self._file.truncate()
            if not self._lines:
                self._file.write(b"}\n" if self._empty else b"\n}\n")
        except OSError as error:
            self.discard()
            raise InputError(f"{self.path}: cannot write it ({error.strerror})") from error
        self._pending.commit()

    def discard(self) -> None:
        """Leave nothing behind, and what was there as it was."""
        self._pending.discard()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None or self._records:
            self.close()
        else:
            self.discard()


def encode_record(value: object) -> bytes:
    """As JSON, on one line. Raises ValueError for NaN, which JSON has no way to write."""
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair, which only an escape can write
        return json.dumps(value, allow_nan=False).encode()


_QUERY_ID = b'{"query_id": '


def as_line(key: str, record: bytes) -> bytes:
    """The line of `.jsonl` that holds an encoded record, or `_meta`."""
    if key == "_meta":
        return b'{"_meta": ' + record + b"}\n"
    separator = b"" if record == b"{}" else b", "
    return _QUERY_ID + encode_record(key) + separator + record[1:] + b"\n"


def split_line(line: bytes) -> tuple[str, bytes]:
    """Query id and encoded record of a line that `as_line` wrote.

    Raises ValueError for any other line, one that was cut included.
    """
    if not line.startswith(_QUERY_ID) or not line.endswith(b"}\n"):
        raise ValueError("no line of a record")
    text = line[len(_QUERY_ID) :].decode()
    key, end = json.JSONDecoder().raw_decode(text)
    if not isinstance(key, str) or not text.startswith(", ", end):
        raise ValueError("no query id")
    return key, b"{" + text[end + 2 : -1].encode()
