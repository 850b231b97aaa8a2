"""Proposals: which rows a query may choose, the randomness it has, and what is kept."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import operator
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pointer_rl.errors import InputError, PluginError
from pointer_rl.types import Candidate, Example, Generator, Policy, Pool, QueryBatch

__all__ = [
    "AllowedRows",
    "Dedup",
    "deduplicate",
    "image_content",
    "propose",
    "random_source",
]

Dedup = Literal["ordered", "unordered"]


class AllowedRows:
    """The mask of a query: never an example with the query's image, thus never the query itself.

    Images are the same when their image_id is or, where the query or any example of the pool has
    none, when their content is. (The examples' ids say nothing here: a query file and a pool file
    may both count from 0.)
    """

    def __init__(self, pool: Sequence[Example]) -> None:
        self._pool = pool
        self._size = len(pool)
        self._have_ids = all(example.image_id is not None for example in pool)

    @cached_property
    def _by_id(self) -> dict[str, list[int]]:
        return _group(str(example.image_id) for example in self._pool)

    @cached_property
    def _by_content(self) -> dict[str, list[int]]:
        return _group(map(image_content, self._pool))

    def excluded(self, query: Example) -> tuple[int, ...]:
        """The rows that a query may not choose, ascending."""
        return tuple(self._blocked(query))

    def _blocked(self, query: Example) -> list[int]:
        if self._have_ids and query.image_id is not None:
            return self._by_id.get(str(query.image_id), [])
        return self._by_content.get(image_content(query), [])

    def check(self, queries: Sequence[Example], shots: int) -> None:
        """Raise InputError for the first query that may choose fewer rows than `shots`."""
        if shots > self._size:
            raise InputError(
                f"{shots} shots need a pool of at least as many examples; this one has {self._size}"
            )
        groups = self._by_id if self._have_ids else self._by_content
        if self._size - max(map(len, groups.values()), default=0) >= shots:
            return
        for query in queries:
            left = self._size - len(self._blocked(query))
            if left < shots:
                raise InputError(
                    f"query {query.id} may choose {left} of the pool's {self._size} examples (the "
                    f"others have its image), fewer than {shots} shots: enlarge the pool"
                )

    def mask(self, queries: Sequence[Example]) -> Tensor:
        """[B, K] bool."""
        allowed = torch.ones(len(queries), self._size, dtype=torch.bool)
        for index, query in enumerate(queries):
            allowed[index, self._blocked(query)] = False
        return allowed


def _group(marks: Iterable[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = defaultdict(list)
    for row, mark in enumerate(marks):
        rows[mark].append(row)
    return rows


def image_content(example: Example) -> str:
    """A key of the example's image, equal for equal content."""
    try:
        return example.image.key
    except InputError:
        # Equal to no other image: the trials of this example fail, and say why.
        return f"unreadable {id(example)}"


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
    for name, generator in generators.items():
        rngs = [random_source(seed, query.id, name) for query in queries.examples]
        candidates = generator.propose(policy, queries, pool, rngs)
        if len(candidates) != len(proposed):
            raise PluginError(
                f"generator {name} proposed for {len(candidates)} of {len(proposed)} queries"
            )
        for index, (kept, new) in enumerate(zip(proposed, candidates, strict=True)):
            kept.extend(_checked(candidate, name, queries, index) for candidate in new)
    return [deduplicate(candidates, dedup) for candidates in proposed]


def _checked(candidate: Candidate, generator: str, queries: QueryBatch, index: int) -> Candidate:
    """The candidate, its rows Python integers (a generator may well return numpy's)."""
    where = f"generator {generator}, query {queries.examples[index].id}"
    try:
        rows = tuple(map(operator.index, candidate.pointer))
    except TypeError as error:
        raise PluginError(f"{where}: {candidate.pointer!r} is no pointer ({error})") from error
    numbers = {
        each.name: getattr(candidate, each.name)
        for each in dataclasses.fields(candidate)
        if isinstance(getattr(candidate, each.name), float)
    }
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise PluginError(f"{where}: {name} of {list(rows)} is {number}")
    allowed = queries.allowed[index]
    if (
        len(rows) != queries.shots
        or len(set(rows)) != len(rows)
        or not all(0 <= row < len(allowed) and bool(allowed[row]) for row in rows)
    ):
        raise PluginError(
            f"{where}: proposed {list(rows)}; "
            f"a pointer is {queries.shots} different rows that the query may choose"
        )
    return dataclasses.replace(candidate, pointer=rows)


def deduplicate(candidates: Iterable[Candidate], dedup: Dedup) -> list[Candidate]:
    """The first candidate of each pointer; `unordered`: whatever the order of its rows."""
    kept: dict[tuple[int, ...], Candidate] = {}
    for candidate in candidates:
        key = candidate.pointer if dedup == "ordered" else tuple(sorted(candidate.pointer))
        kept.setdefault(key, candidate)
    return list(kept.values())
