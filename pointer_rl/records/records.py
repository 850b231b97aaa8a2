"""Records of RL data and beam data: from the engine's types to JSON, and back.

The fields are defined in `records/fields.py`, the files in `records/formats.py`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from pointer_rl.errors import InputError
from pointer_rl.records.fields import CANDIDATE, FAILED, QUERY, Field, has_failed
from pointer_rl.types import Candidate, Example, Outcome

Record = dict[str, Any]
Judged = tuple[Candidate, Outcome]
T = TypeVar("T")


class Fields(Generic[T]):
    """The fields of a class in `records/fields.py`, prepared for converting many instances."""

    def __init__(self, of: type[T], fields: Mapping[str, Field]) -> None:
        self._class = of
        by_attribute = {field.attribute: field for field in fields.values()}
        own = [by_attribute[each.name] for each in dataclasses.fields(of)]  # type: ignore[arg-type]
        self._keys = [field.key for field in own]
        self._from_json = [
            (index, field.type.from_json)
            for index, field in enumerate(own)
            if field.type.from_json is not None
        ]
        written = [
            (field.key, str(field.attribute), field.type.to_json, field.presence)
            for field in fields.values()
            if field in own and field.part != "failure"
        ]
        self._always = [each[:3] for each in written if each[3] != "optional"]
        self._optional = [each[:3] for each in written if each[3] == "optional"]

    def write(self, instance: T, record: Record) -> None:
        """Add the required and nullable fields to a record."""
        own = vars(instance)  # faster than getattr; the classes have no slots
        for key, attribute, convert in self._always:
            value = own[attribute]
            record[key] = value if convert is None else convert(value)

    def write_optional(self, instance: T, record: Record) -> None:
        """Add the optional fields that are not None."""
        own = vars(instance)
        for key, attribute, convert in self._optional:
            value = own[attribute]
            if value is not None:
                record[key] = value if convert is None else convert(value)

    def read(self, record: Mapping[str, Any]) -> T:
        """An instance from a record; what the record lacks is None."""
        values = list(map(record.get, self._keys))
        for index, convert in self._from_json:
            if values[index] is not None:
                values[index] = convert(values[index])
        return self._class(*values)


_CANDIDATE = Fields(Candidate, CANDIDATE)
_OUTCOME = Fields(Outcome, CANDIDATE)


# --- writing ----------------------------------------------------------------------------------


def to_record(
    query: Example,
    judged: Sequence[Judged],
    normalise: Callable[[str], str] | None = None,
    excluded: Sequence[int] = (),
) -> Record:
    """The record of a query in RL data.

    `normalise` is the metric's; it adds the annotators' answers in the form that is compared.
    `excluded` are the pool rows that the query may not choose. A candidate whose trial failed gets
    `eval_failed` and no outcome.
    """
    record: Record = {"query": describe_query(query, normalise)}
    if excluded:
        record["excluded"] = list(excluded)
    record["pointer_candidates"] = [_to_json(candidate, outcome) for candidate, outcome in judged]
    return record


def describe_shots(shots: int, any_length: bool) -> dict[str, int]:
    """What `_meta` says of the pointers' lengths: exactly `shots`, or up to so many."""
    return {"max_shots" if any_length else "shots": shots}


def describe_query(query: Example, normalise: Callable[[str], str] | None = None) -> Record:
    """The field `query` of a record."""
    described = {}
    for key, field in QUERY.items():
        if field.attribute is not None:
            value = getattr(query, field.attribute)
            described[key] = value if field.type.to_json is None else field.type.to_json(value)
    if normalise is not None:
        described["gt_answers_norm"] = [normalise(answer) for answer in query.answers]
    return described


def _to_json(candidate: Candidate, outcome: Outcome) -> Record:
    value: Record = {}
    failed = outcome.failure is not None
    _CANDIDATE.write(candidate, value)
    if not failed:
        assert outcome.correct is not None, "an outcome is judged or failed"
        _OUTCOME.write(outcome, value)
    _CANDIDATE.write_optional(candidate, value)
    if failed:
        value[FAILED] = True
        value["eval_error"] = outcome.failure
    else:
        _OUTCOME.write_optional(outcome, value)
    return value


_ENCODER = json.JSONEncoder(allow_nan=False, ensure_ascii=False)


def encode_record(value: object) -> bytes:
    """JSON on one line. Raises ValueError for NaN and infinity, which JSON lacks."""
    try:
        return _ENCODER.encode(value).encode()
    except UnicodeEncodeError:  # a lone surrogate can only be written as an escape
        return json.dumps(value, allow_nan=False).encode()


def check_query_id(key: str) -> None:
    """Raise InputError for an id that cannot be the key of a record."""
    if not key or key.startswith("_"):
        raise InputError(
            f"query id {key!r}: in RL data, keys that begin with _ are not queries;"
            " give the query another id"
        )


# --- reading ----------------------------------------------------------------------------------


def from_record(record: Mapping[str, Any]) -> list[Judged]:
    """The candidates of a valid record with their outcomes. Unknown fields are ignored."""
    return [read_candidate(value) for value in record["pointer_candidates"]]


def read_candidate(value: Mapping[str, Any]) -> Judged:
    """One candidate and its outcome, which is empty if it was never judged."""
    candidate = _CANDIDATE.read(value)
    if has_failed(value):
        reason = value.get("eval_error")
        return candidate, Outcome(failure="unknown" if reason is None else reason)
    return candidate, _OUTCOME.read(value)


# --- lines of .jsonl --------------------------------------------------------------------------

_QUERY_ID = b'{"query_id": '


def as_line(key: str, record: bytes) -> bytes:
    """The line of a `.jsonl` file that holds an encoded record, or `_meta`."""
    if key == "_meta":
        return b'{"_meta": ' + record + b"}\n"
    separator = b"" if record == b"{}" else b", "
    return _QUERY_ID + encode_record(key) + separator + record[1:] + b"\n"


def split_line(line: bytes) -> tuple[str, bytes]:
    """The query id and the encoded record of a line that `as_line` wrote.

    Raises ValueError for any other line, such as one that was cut off.
    """
    if not line.startswith(_QUERY_ID) or not line.endswith(b"}\n"):
        raise ValueError("no line of a record")
    text = line[len(_QUERY_ID) :].decode()
    key, end = json.JSONDecoder().raw_decode(text)
    if not isinstance(key, str) or not text.startswith(", ", end):
        raise ValueError("no query id")
    return key, b"{" + text[end + 2 : -1].encode()
