"""Beam (SFT) data: for each query the best pointers by InfoScore, from which a policy starts.

A record has these fields; other keys are left alone:

    "query":    what is known of the query: query_id, row, question, …
    "beams":    best first: {"pointer": pool rows in the order shown,
                             "score": the sum of its InfoScores, "step_scores": one per row}
    "pool":     optional: the rows that this query could choose from
    "excluded": optional: the rows that it may not choose, its own among them
    "trials":   optional: how many were asked to find the beams
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pointer_rl.errors import InputError
from pointer_rl.records.fields import BEAM
from pointer_rl.records.layouts import read_rows
from pointer_rl.records.records import Fields, Record

_MAX = sys.float_info.max


@dataclass(frozen=True)
class Beam:
    """A pointer and how much its demonstrations raise the probability of the query's answers."""

    pointer: tuple[int, ...]
    """Pool rows, in the order in which they are shown."""
    score: float
    """The sum of `step_scores`, in nats: log P(answers) with all demonstrations minus without."""
    step_scores: tuple[float, ...]
    """The InfoScore of each row when it was added; empty if a file does not have them."""


_BEAM = Fields(Beam, BEAM)


def to_beam_record(
    query: Record,
    beams: Sequence[Beam],
    pool: Sequence[int] | None = None,
    excluded: Sequence[int] = (),
    trials: int | None = None,
) -> Record:
    """The record of a query, with its beams best first.

    `query` describes it (`describe_query`), `pool` are the rows that it could choose from (None:
    all), `excluded` those that it may not choose, `trials` how many were asked.
    """
    members = []
    for beam in beams:
        member: Record = {}
        _BEAM.write(beam, member)
        _BEAM.write_optional(beam, member)
        members.append(member)
    record: Record = {"query": query, "beams": members}
    if pool is not None:
        record["pool"] = [int(row) for row in pool]
    if excluded:
        record["excluded"] = [int(row) for row in excluded]
    if trials is not None:
        record["trials"] = trials
    return record


def read_beams(record: Mapping[str, Any]) -> Iterator[Beam]:
    """The beams of a record in the current layout. Raises InputError, naming the beam."""
    for index, value in enumerate(record["beams"]):
        score, steps = value.get("score"), value.get("step_scores", [])
        numbers = [score, *(steps if isinstance(steps, list) else [None])]
        if not all(type(each) in (int, float) and abs(each) <= _MAX for each in numbers):
            raise InputError(f"beam {index}: score and step_scores are not all finite numbers")
        yield Beam(
            pointer=tuple(read_rows(value.get("pointer"), f"beam {index}: pointer")),
            score=float(score),
            step_scores=tuple(map(float, steps)),
        )
