"""Proposals: which rows a query may choose, the randomness it has, and what is kept."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pointer_rl.errors import InputError, PluginError
from pointer_rl.types import Candidate, Example, Generator, Policy, Pool, QueryBatch

__all__ = ["AllowedRows", "Dedup", "deduplicate", "propose", "random_source"]

Dedup = Literal["ordered", "unordered"]


class AllowedRows:
    """The mask of a query: never an example with the query's image, thus never the query itself.

    Images are the same when their image_id is, or, for examples without one, their content. (Ids
    say nothing here: a query file and a pool file may both count from 0.)
    """

    def __init__(self, pool: Sequence[Example]) -> None:
        self._size = len(pool)
        self._rows: dict[Hashable, list[int]] = defaultdict(list)
        for row, example in enumerate(pool):
            self._rows[_image_of(example)].append(row)

    def mask(self, queries: Sequence[Example]) -> Tensor:
        """[B, K] bool."""
        allowed = torch.ones(len(queries), self._size, dtype=torch.bool)
        for index, query in enumerate(queries):
            allowed[index, self._rows.get(_image_of(query), [])] = False
        return allowed


def _image_of(example: Example) -> Hashable:
    if example.image_id is not None:
        return ("image_id", example.image_id)
    try:
        return ("content", example.image.key)
    except InputError:
        return object()  # equal to no other: the trials of this example fail, and say why


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
            for candidate in new:
                _check(candidate, name, queries, index)
            kept.extend(new)
    return [deduplicate(candidates, dedup) for candidates in proposed]


def _check(candidate: Candidate, generator: str, queries: QueryBatch, index: int) -> None:
    rows = candidate.pointer
    allowed = queries.allowed[index]
    if (
        len(rows) != queries.shots
        or len(set(rows)) != len(rows)
        or not all(0 <= row < len(allowed) and bool(allowed[row]) for row in rows)
    ):
        raise PluginError(
            f"generator {generator} proposed {list(rows)} for query {queries.examples[index].id}: "
            f"a pointer is {queries.shots} different rows that the query may choose"
        )


def deduplicate(candidates: Iterable[Candidate], dedup: Dedup) -> list[Candidate]:
    """The first candidate of each pointer; `unordered`: whatever the order of its rows."""
    kept: dict[tuple[int, ...], Candidate] = {}
    for candidate in candidates:
        key = candidate.pointer if dedup == "ordered" else tuple(sorted(candidate.pointer))
        kept.setdefault(key, candidate)
    return list(kept.values())
