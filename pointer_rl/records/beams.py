"""Beam (SFT) data: for each query the best pointers by InfoScore, from which a policy starts.

One JSON object, query id → record, with an optional `_meta`; or `.jsonl`, as RL data has it. A
record:

    "query":  what is known of the query: query_id, row, question, …
    "beams":  best first: {"pointer": rows of the pool in the order shown,
                           "score": the sum of the InfoScores, "step_scores": one a row}
    "pool":   optional: the rows that this query could choose from

    "excluded": optional: the rows that it may not choose, its own among them

Lever-LM's layout is read as well: `id_list`, of rows in the order shown with the query's own row
last, and `score_list`, a score for each; it has no step scores. Other keys are left alone.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pointer_rl.errors import InputError
from pointer_rl.records.layouts import detect_layout, read_rows, upgrade_record
from pointer_rl.records.records import stream_records

__all__ = ["Beam", "BeamRecord", "beams_of", "stream_beams", "to_beam_record"]

_MAX = sys.float_info.max


@dataclass(frozen=True)
class Beam:
    """A pointer, and what its demonstrations are worth to the query's answers."""

    pointer: tuple[int, ...]
    """Pool rows, in the order in which they are shown."""
    score: float
    """The sum of `step_scores`, in nats: log P(answers) with all demonstrations, less without."""
    step_scores: tuple[float, ...]
    """The InfoScore of each row when it was added; empty in files that do not say."""


@dataclass(frozen=True)
class BeamRecord:
    """A query and its beams, as they are read from a file."""

    query_id: str
    query: Mapping[str, Any]
    """Empty where the file does not describe its queries."""
    beams: tuple[Beam, ...]
    pool: tuple[int, ...] | None
    """The rows that it could choose from; None where the record does not say."""


# --- reading ----------------------------------------------------------------------------------


def stream_beams(path: Path) -> Iterator[BeamRecord]:
    """The queries of a file of beam data, in either layout, in the file's order.

    Raises InputError, naming the query, for what is no beam data.
    """
    for key, value in stream_records(path):
        if key.startswith("_"):
            continue
        try:
            layout = detect_layout(value)
            if layout not in ("beams", "beam"):
                raise InputError("it has no beams: this is no beam data")
            record = upgrade_record(value, layout)
            pool = record.get("pool")
            yield BeamRecord(
                query_id=key,
                query=record.get("query", {}),
                beams=tuple(beams_of(record)),
                pool=None if pool is None else tuple(read_rows(pool, "pool")),
            )
        except InputError as error:
            raise InputError(f"{path}: query {key!r}: {error}") from error


def beams_of(record: Mapping[str, Any]) -> Iterator[Beam]:
    """The beams of an upgraded record. Raises InputError, which names no query."""
    for index, value in enumerate(record["beams"]):
        score, steps = value.get("score"), value.get("step_scores", [])
        numbers = [score, *(steps if isinstance(steps, list) else [None])]
        if not all(type(each) in (int, float) and abs(each) <= _MAX for each in numbers):
            raise InputError(f"beam {index}: score and step_scores are no finite numbers")
        yield Beam(
            pointer=tuple(read_rows(value.get("pointer"), f"beam {index}: pointer")),
            score=float(score),
            step_scores=tuple(map(float, steps)),
        )


# --- writing ----------------------------------------------------------------------------------


def to_beam_record(
    query: Mapping[str, Any],
    beams: Sequence[Beam],
    pool: Sequence[int] | None = None,
    excluded: Sequence[int] = (),
) -> dict[str, Any]:
    """A query's record, its beams best first.

    pool: the rows it could choose from, if not all; excluded: the rows that it may not choose.
    Raises ValueError for a score that is not finite.
    """
    record: dict[str, Any] = {
        "query": dict(query),
        "beams": [
            {
                "pointer": [int(row) for row in beam.pointer],
                "score": _finite(beam.score),
                "step_scores": [_finite(score) for score in beam.step_scores],
            }
            for beam in beams
        ],
    }
    if pool is not None:
        record["pool"] = [int(row) for row in pool]
    if excluded:
        record["excluded"] = [int(row) for row in excluded]
    return record


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"a score of {value}: InfoScores are finite")
    return float(value)
