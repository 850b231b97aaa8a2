"""Collects the candidates of a file in compact arrays, for `BeamDataset`."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pointer_rl.errors import InputError
from pointer_rl.records.beams import read_beams
from pointer_rl.records.fields import CANDIDATE
from pointer_rl.records.layouts import BEAM_LAYOUTS, detect_layout, read_rows, upgrade_record
from pointer_rl.records.records import Judged, Record, read_candidate
from pointer_rl.types import NO_ROW, Candidate, Outcome, Reward

Rows = npt.NDArray[np.int32]

COLUMNS = {
    "rewards": "f",
    "accuracies": "f",
    "methods": "B",
    "logprobs": "f",
    "temperatures": "f",
    "top_ps": "f",
}
"""The arrays with a number per candidate, and their types as codes of the module `array`."""
_MAX_ROW = 2**31 - 1
_MAX_FLOAT = float(np.finfo(np.float32).max)
_NUMBERS = tuple(
    field.key
    for field in CANDIDATE.values()
    if field.attribute is not None and {"number", "integer"} & set(field.type.json)
    if not field.type.is_list
)
"""Fields of a candidate that hold a number, which must be finite."""


class CandidateReader:
    """Takes records one by one and collects the arrays of a `BeamDataset`, named as there."""

    def __init__(self, reward: Reward) -> None:
        self._reward = reward
        self.kind: Literal["rl", "beam"] | None = None
        self.meta: Record = {}
        self.method_of: dict[str, int] = {}
        """Name → index, as `columns["methods"]` holds it."""
        self.ids: list[str] = []
        self.image_ids: list[str | None] = []
        self.recorded_rows = array("q")
        self.offsets = array("q", [0])
        self.columns: dict[str, array[Any]] = {name: array(code) for name, code in COLUMNS.items()}
        self.pools: list[Rows | None] = []
        self.failed = self.without_reward = self.empty = 0
        self._excluded: list[Rows | None] = []
        self._rows = array("i")
        self._lengths = array("i")

    # --- reading ---

    def add(self, key: str, record: Any) -> None:
        """Add a member of the file. Raises InputError, which names neither file nor query."""
        if key.startswith("_"):
            if key == "_meta" and isinstance(record, dict):
                self.meta = record
            return
        layout = detect_layout(record)
        kind: Literal["rl", "beam"] = "beam" if layout in BEAM_LAYOUTS else "rl"
        record = upgrade_record(record, layout)
        if self.kind not in (kind, None):
            raise InputError("RL data and beam data in one file; keep one kind")
        self.kind = kind
        query = record.get("query", {})
        if not isinstance(query, dict):
            raise InputError("`query` is no object")
        own = query.get("row")
        own_row = NO_ROW if own is None else read_rows([own], "query.row")[0]
        pool, excluded = (_optional_rows(record, key) for key in ("pool", "excluded"))
        self._add_candidates(record)
        if len(self._lengths) == self.offsets[-1]:
            self.empty += 1
            return
        image_id = query.get("image_id")
        self.ids.append(key)
        self.image_ids.append(None if image_id is None else str(image_id))
        self.recorded_rows.append(own_row)
        self.offsets.append(len(self._lengths))
        self.pools.append(pool)
        self._excluded.append(excluded)

    def _add_candidates(self, record: Record) -> None:
        judged = _beams(record) if self.kind == "beam" else _candidates(record)
        for candidate, outcome in judged:
            if outcome.failure is not None:
                self.failed += 1
                continue
            if self.kind == "beam":
                reward = candidate.beam_score or 0.0
            elif _is_judged(outcome):
                reward = float(self._reward(outcome, candidate))
            else:
                reward = math.nan
            if not abs(reward) <= _MAX_FLOAT:  # true of NaN as well
                self.without_reward += 1
                continue
            self._rows.extend(candidate.pointer)
            self._lengths.append(len(candidate.pointer))
            numbers = (
                reward,
                _or_nan(outcome.accuracy),
                self._method(candidate.gen_method),
                _or_nan(candidate.logprob_score),
                _or_nan(candidate.temperature),
                _or_nan(candidate.top_p),
            )
            for column, number in zip(self.columns.values(), numbers, strict=True):
                column.append(number)

    def _method(self, name: str) -> int:
        index = self.method_of.setdefault(name, len(self.method_of))
        if index > 255:
            raise InputError("more than 256 gen_methods in one file: are they names of methods?")
        return index

    # --- the arrays ---

    def left_out(self) -> str:
        """How many candidates were left out and why, for a message."""
        return f"failed: {self.failed:,}, without an outcome: {self.without_reward:,}"

    def pointers(self) -> Rows:
        """[C, S_max], padded with NO_ROW."""
        lengths, rows = np.asarray(self._lengths), np.asarray(self._rows)
        width = int(lengths.max(initial=0))
        if len(rows) == len(lengths) * width:  # all have the same length: no copy
            return rows.reshape(len(lengths), width)
        padded = np.full((len(lengths), width), NO_ROW, dtype=np.int32)
        padded[np.arange(width) < lengths[:, None]] = rows
        return padded

    def excluded(self) -> list[Rows | None]:
        """For each query, the rows its record excludes, and its own if queries and pool are one.

        The rows of a query are ascending.
        """
        dataset = self.meta.get("dataset")
        shared = isinstance(dataset, dict) and dataset.get("shared_pool") is True
        own_rows = self.recorded_rows if shared else [NO_ROW] * len(self.ids)
        return [_union(*each) for each in zip(self._excluded, own_rows, strict=True)]


# --- one record -------------------------------------------------------------------------------


def _candidates(record: Record) -> Iterator[Judged]:
    for index, value in enumerate(record["pointer_candidates"]):
        _check_pointer(value.get("pointer"), f"candidate {index}")
        if not isinstance(value.get("gen_method"), str):
            raise InputError(f"candidate {index}: gen_method is no string")
        for key in _NUMBERS:
            number = value.get(key)
            if number is None or (isinstance(number, (int, float)) and abs(number) <= _MAX_FLOAT):
                continue
            raise InputError(f"candidate {index}: {key} is no finite number")
        yield read_candidate(value)


def _beams(record: Record) -> Iterator[Judged]:
    for index, beam in enumerate(read_beams(record)):
        _check_pointer(list(beam.pointer), f"beam {index}")
        yield Candidate(beam.pointer, "beam", beam_rank=index, beam_score=beam.score), Outcome()


def _check_pointer(value: Any, what: str) -> None:
    rows = _rows(value, f"{what}: pointer")
    if len(set(rows)) < len(rows):
        raise InputError(f"{what}: a row twice in the pointer {rows}")


def _rows(value: Any, what: str) -> list[int]:
    rows = read_rows(value, what)
    if max(rows, default=0) > _MAX_ROW:
        raise InputError(f"{what} has the row {max(rows)}: no pool is that large")
    return rows


def _optional_rows(record: Record, key: str) -> Rows | None:
    value = record.get(key)
    return None if value is None else np.array(_rows(value, key), dtype=np.int32)


def _union(rows: Rows | None, own: int) -> Rows | None:
    known = set(() if rows is None else rows.tolist())
    if own != NO_ROW:
        known.add(own)
    return None if rows is None and not known else np.array(sorted(known), dtype=np.int32)


def _is_judged(outcome: Outcome) -> bool:
    """Whether there is anything to reward. A candidate that was never asked is not a wrong one."""
    known = (outcome.correct, outcome.accuracy, outcome.gt_prob)
    return any(each is not None for each in known)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
