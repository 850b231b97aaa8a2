"""Proposals: which rows a query may choose, the randomness it has, and what is kept."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import operator
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

from pointer_rl.errors import PluginError
from pointer_rl.types import Candidate, Generator, Policy, Pool, QueryBatch

__all__ = [
    "Dedup",
    "deduplicate",
    "propose",
    "random_source",
]

Dedup = Literal["ordered", "unordered"]


_NUMBERS = [each.name for each in dataclasses.fields(Candidate) if "float" in str(each.type)]


def random_source(seed: int, query_id: str, generator: str) -> np.random.Generator:
    """The randomness of one generator for one query, whatever was asked before.

    So a run that is cut, resumed, sharded or windowed differently draws the same candidates.
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
    """Each query's candidates: from every generator in turn, without repeats.

    Raises PluginError when a generator breaks the mask or the number of shots.
    """
    proposed: list[list[Candidate]] = [[] for _ in queries.examples]
    allowed = queries.allowed.cpu().numpy()
    for name, generator in generators.items():
        rngs = [random_source(seed, query.id, name) for query in queries.examples]
        candidates = generator.propose(policy, queries, pool, rngs)
        if len(candidates) != len(proposed):
            raise PluginError(
                f"generator {name} proposed for {len(candidates)} of {len(proposed)} queries"
            )
        for query, mine, kept, new in zip(
            queries.examples, allowed, proposed, candidates, strict=True
        ):
            try:
                kept.extend(_checked(candidate, mine, queries.shots) for candidate in new)
            except ValueError as error:
                raise PluginError(f"generator {name}, query {query.id}: {error}") from error
    return [deduplicate(candidates, dedup) for candidates in proposed]


def _checked(candidate: Candidate, allowed: npt.NDArray[np.bool_], shots: int) -> Candidate:
    """The candidate, its rows Python integers (a generator may well return numpy's).

    Raises ValueError, which says what is wrong with it.
    """
    try:
        rows = tuple(map(operator.index, candidate.pointer))
    except TypeError as error:
        raise ValueError(f"{candidate.pointer!r} is no pointer ({error})") from error
    for name in _NUMBERS:
        number = getattr(candidate, name)
        if number is not None and not math.isfinite(number):
            raise ValueError(f"{name} of {list(rows)} is {number}")
    size = len(allowed)
    if (
        len(rows) != shots
        or len(set(rows)) != shots
        or not all(0 <= row < size and allowed[row] for row in rows)
    ):
        raise ValueError(
            f"proposed {list(rows)}; a pointer is {shots} different rows that the query may choose"
        )
    if set(map(type, candidate.pointer)) == {int} and type(candidate.pointer) is tuple:
        return candidate
    return dataclasses.replace(candidate, pointer=rows)


def deduplicate(candidates: Iterable[Candidate], dedup: Dedup) -> list[Candidate]:
    """The first candidate of each pointer; `unordered`: whatever the order of its rows."""
    kept: dict[tuple[int, ...], Candidate] = {}
    for candidate in candidates:
        key = candidate.pointer if dedup == "ordered" else tuple(sorted(candidate.pointer))
        kept.setdefault(key, candidate)
    return list(kept.values())
