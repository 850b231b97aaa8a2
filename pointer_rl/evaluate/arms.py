"""The arms of an evaluation: which pointers each shows each query.

Every arm is a list of pointers a query. Its accuracy on a query is their mean; the oracle's, whose
pointers are all those that any arm shows and a fixed number more, is their best.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from pointer_rl.datasets.leakage import AllowedRows
from pointer_rl.errors import InputError
from pointer_rl.registry import registry
from pointer_rl.session.proposing import propose
from pointer_rl.session.resolve import NoPolicy
from pointer_rl.session.session import Named, Workbench
from pointer_rl.session.similarity import MODES, Space, similarities
from pointer_rl.types import Example, Generator, Pointer, Policy, QueryBatch

__all__ = [
    "MODES",
    "ORACLE",
    "RANDOM",
    "VOTE",
    "ZERO_SHOT",
    "Arms",
    "Chooser",
    "Space",
    "choose",
    "similarity_spaces",
]

ZERO_SHOT, RANDOM, ORACLE = "zero-shot", "random", "oracle"
VOTE = "vote "
"""Before the name of an arm: the majority of its demonstrations' answers, without a VLM."""
WINDOW = 64
"""Queries that pointers are chosen for together."""

Pointers = list[tuple[Pointer, ...]]
"""For each query, the pointers that an arm shows it."""


@dataclass(frozen=True)
class Arms:
    """What is shown at one number of shots."""

    shots: int
    pointers: Mapping[str, Pointers]
    """By arm, without the oracle."""
    oracle: Pointers
    """Every pointer of any arm, and the fixed number of random and retrieved ones; no repeats."""


def zero_shot(queries: Sequence[Example]) -> Arms:
    """No demonstrations."""
    nothing: Pointers = [((),)] * len(queries)
    return Arms(0, {ZERO_SHOT: nothing}, nothing)


def similarity_spaces(
    workbench: Workbench, queries: Sequence[Example], encoder: Named | None
) -> dict[str, Space]:
    """Similarity arm → what it compares; as `similarities`, all of them embedded."""
    return {arm: embed() for arm, embed in similarities(workbench, queries, encoder).items()}


@dataclass(frozen=True)
class Chooser:
    """Lets arms choose for the same queries at the same number of shots."""

    queries: Sequence[Example]
    pool: Sequence[Example]
    shots: int
    seed: int
    """Of random pointers."""

    @cached_property
    def _allowed(self) -> AllowedRows:
        return AllowedRows(self.pool)

    def _batches(self, space: Space) -> Iterator[QueryBatch]:
        for start in range(0, len(self.queries), WINDOW):
            window = slice(start, start + WINDOW)
            examples = self.queries[window]
            yield QueryBatch(
                examples, space.queries[window], self._allowed.mask(examples), self.shots
            )

    def generated(self, name: str, generator: str, num: int, space: Space) -> Pointers:
        """By a registered generator with the option `num`; `name` decides its randomness."""
        made: Generator = registry().create("generator", generator, {"num": num})
        return [
            tuple(candidate.pointer for candidate in candidates)
            for batch in self._batches(space)
            for candidates in propose(
                NoPolicy(), batch, space.pool, {name: made}, self.seed, "ordered"
            )
        ]

    def greedy(self, name: str, policy: Policy, space: Space) -> Pointers:
        """The policy's likeliest row at each step. Raises InputError, naming the policy."""
        try:
            return [
                (tuple(pointers[0]),)
                for batch in self._batches(space)
                for pointers in policy.beam(batch, space.pool, 1).rows.tolist()
            ]
        except InputError as error:
            raise InputError(f"policy {name}: {error}") from error


def choose(
    chooser: Chooser,
    similar: Mapping[str, Space],
    policies: Mapping[str, Policy],
    space: Space,
    *,
    random_seeds: int,
    oracle_random: int,
    oracle_retrieval: int,
) -> Arms:
    """Each arm's pointers; the policies choose in `space`, `similar` is not empty.

    Raises InputError for a policy that cannot take these embeddings.
    """
    by_seed = [chooser.generated(f"{RANDOM} {k}", "random", 1, space) for k in range(random_seeds)]
    arms = {RANDOM: _joined(by_seed)}
    for name, each in similar.items():
        arms[name] = chooser.generated(name, "retrieval", 1, each)
    for name, policy in policies.items():
        arms[name] = chooser.greedy(name, policy, space)
    more = []
    if oracle_random:
        more.append(chooser.generated(ORACLE, "random", oracle_random, space))
    if oracle_retrieval:
        *_, nearest = similar.values()
        more.append(chooser.generated(ORACLE, "retrieval", oracle_retrieval, nearest))
    oracle = [tuple(dict.fromkeys(every)) for every in _joined([*arms.values(), *more])]
    return Arms(chooser.shots, arms, oracle)


def _joined(several: Sequence[Pointers]) -> Pointers:
    return [
        tuple(itertools.chain.from_iterable(of_query)) for of_query in zip(*several, strict=True)
    ]
