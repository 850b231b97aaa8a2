"""Proposals: which rows a query may choose, the randomness it has, and what is kept."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pointer_rl.errors import InputError, PluginError
from pointer_rl.examples import KeyIndex, values
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


_NUMBERS = [each.name for each in dataclasses.fields(Candidate) if "float" in str(each.type)]


class AllowedRows:
    """The mask of a query: never an example with the query's image, thus never the query itself.

    Images are the same when their image_id is or, where the query or any example of the pool has
    none, when their content is. (The examples' ids say nothing here: a query file and a pool file
    may both count from 0.)
    """

    def __init__(self, pool: Sequence[Example]) -> None:
        self._pool = pool
        self._size = len(pool)
        self._have_ids = all(image_id is not None for image_id in values(pool, "image_id"))

    @cached_property
    def _by_id(self) -> KeyIndex:
        marks = map(str, values(self._pool, "image_id"))
        return KeyIndex(marks, lambda row: str(self._pool[row].image_id))

    @cached_property
    def _by_content(self) -> KeyIndex:
        marks = map(image_content, self._pool)
        return KeyIndex(marks, lambda row: image_content(self._pool[row]))

    def excluded(self, query: Example) -> tuple[int, ...]:
        """The rows that a query may not choose, ascending."""
        return tuple(self._blocked(query))

    def _blocked(self, query: Example) -> list[int]:
        if self._have_ids and query.image_id is not None:
            return self._by_id.rows(str(query.image_id))
        return self._by_content.rows(image_content(query))

    def check(self, queries: Sequence[Example], shots: int) -> None:
        """Raise InputError for the first query that may choose fewer rows than `shots`."""
        if shots > self._size:
            raise InputError(
                f"{shots} shots need a pool of at least as many examples; this one has {self._size}"
            )
        index = self._by_id if self._have_ids else self._by_content
        if self._size - index.most >= shots:
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


def image_content(example: Example) -> str:
    """A key of the example's image, equal for equal content."""
    try:
        return example.image.key
    except InputError:
        # Equal to no image that can be read: the trials of this example fail, and say why.
        return f"unreadable {example.row}"


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
