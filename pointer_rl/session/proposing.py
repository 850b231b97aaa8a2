"""Proposals: the randomness of a generator, the check of what it returns, and deduplication."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from pointer_rl.errors import PluginError
from pointer_rl.types import Candidate, Example, Generator, Pointer, Policy, Pool, QueryBatch

Dedup = Literal["ordered", "unordered"]

_NUMBERS = [each.name for each in dataclasses.fields(Candidate) if "float" in str(each.type)]


def random_source(seed: int, query_id: str, generator: str) -> np.random.Generator:
    """The randomness of one generator for one query, independent of everything asked before.

    A run that is interrupted, resumed, sharded or split into other windows draws the same
    candidates.
    """
    digest = hashlib.sha256(f"{seed}/{generator}/{query_id}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def propose(
    policy: Policy,
    queries: QueryBatch,
    pool: Pool,
    generators: Mapping[str, Generator],
    seed: int,
    dedup: Dedup,
) -> list[list[Candidate]]:
    """Each query's candidates from every generator in turn, deduplicated: the first one stays.

    Raises PluginError if a generator breaks the mask or the number of shots.
    """
    proposed: list[dict[Pointer, Candidate]] = [{} for _ in queries.examples]
    allowed, lengths = queries.allowed.cpu().numpy(), range(queries.shots + 1)
    for name, generator in generators.items():
        rngs = [random_source(seed, query.id, name) for query in queries.examples]
        found = generator.propose(policy, queries, pool, rngs)
        who = f"generator {name}"
        check_length(who, queries.examples, found)
        for query, mine, kept, candidates in zip(
            queries.examples, allowed, proposed, found, strict=True
        ):
            for candidate in check_candidates(who, query, mine, lengths, candidates):
                kept.setdefault(dedup_key(candidate.pointer, dedup), candidate)
    return [list(kept.values()) for kept in proposed]


def dedup_key(pointer: Pointer, dedup: Dedup) -> Pointer:
    """Pointers with equal keys are the same candidate."""
    return pointer if dedup == "ordered" else tuple(sorted(pointer))


def check_length(who: str, queries: Sequence[Example], found: Sequence[object]) -> None:
    """Raise PluginError unless a plugin (`generator beam`) returned something for each query."""
    if len(found) != len(queries):
        raise PluginError(f"{who} proposed for {len(found)} of {len(queries)} queries")


def check_candidates(
    who: str,
    query: Example,
    allowed: npt.NDArray[np.bool_],
    shots: range,
    candidates: Iterable[Candidate],
) -> list[Candidate]:
    """What a plugin (`generator beam`) proposed for a query, with rows as Python integers.

    `allowed` [K]: rows that the query may choose; `shots`: how many of them a pointer may have.
    Raises PluginError for a candidate that is not a pointer, has another length, a row twice or one
    that is not allowed, or a score that is not finite.
    """
    try:
        return [_checked(each, allowed, shots) for each in candidates]
    except ValueError as error:
        raise PluginError(f"{who}, query {query.id}: {error}") from error


def _checked(candidate: Candidate, allowed: npt.NDArray[np.bool_], shots: range) -> Candidate:
    try:
        rows = tuple(map(operator.index, candidate.pointer))
    except TypeError as error:
        raise ValueError(f"{candidate.pointer!r} is not a pointer ({error})") from error
    for name in _NUMBERS:
        number = getattr(candidate, name)
        if number is not None and not math.isfinite(number):
            raise ValueError(f"{name} of {list(rows)} is {number}")
    size = len(allowed)
    if (
        len(rows) not in shots
        or len(set(rows)) < len(rows)
        or not all(0 <= row < size and allowed[row] for row in rows)
    ):
        number = f"{shots[0]}" if len(shots) == 1 else f"up to {shots[-1]}"
        raise ValueError(
            f"proposed {list(rows)}; a pointer is {number} different rows that the query may choose"
        )
    if set(map(type, candidate.pointer)) <= {int} and type(candidate.pointer) is tuple:
        return candidate
    return dataclasses.replace(candidate, pointer=rows)
