"""Generating RL data: propose, judge, give back.

Queries go through in windows: candidates are proposed for a whole window at once, and its trials
go to the backend in one call, so that both can batch. Windows begin at multiples of their size,
whatever has been done before: what shares a batch follows from the queries alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from torch import Tensor

from pointer_rl.datasets.embeddings import check_dims
from pointer_rl.datasets.leakage import AllowedRows
from pointer_rl.errors import InputError
from pointer_rl.records.shards import WINDOW, windows
from pointer_rl.session.judge import Judge, Trial
from pointer_rl.session.proposing import Dedup, propose
from pointer_rl.types import Candidate, Example, Generator, Outcome, Policy, Pool, QueryBatch

__all__ = ["GenerateConfig", "Generation", "Judged", "Proposed", "generate"]


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """What decides the candidates, beside the policy and the generators."""

    shots: int = 2
    """Demonstrations in a pointer."""
    seed: int = 0
    """Of all that is drawn."""
    dedup: Dedup = "ordered"
    """Whether pointers of the same rows in another order are different candidates."""

    window: int = WINDOW
    """Queries proposed for and judged together: the last digits depend on it."""

    def __post_init__(self) -> None:
        if self.shots < 1:
            raise InputError(f"shots is {self.shots}: a pointer has at least one demonstration")
        if self.window < 1:
            raise InputError(f"window is {self.window}: at least one query is asked at a time")


@dataclass(frozen=True)
class Proposed:
    """A query and the candidates for it, without repeats."""

    index: int
    """Of the query in its run."""
    query: Example
    candidates: Sequence[Candidate]


@dataclass(frozen=True)
class Judged:
    """A query and its candidates with their outcomes."""

    query: Example
    candidates: tuple[tuple[Candidate, Outcome], ...]
    excluded: tuple[int, ...] = ()
    """Rows that the query may not choose: training must not either."""


class Generation:
    """All that candidates and outcomes come from.

    queries: N examples with their embeddings [N, d]; pool: K examples, [K, d], with the rows of
    them that a query may choose. `generators` in
    order of precedence: of two that propose a pointer, the first one's candidate is kept.
    Raises InputError where these do not fit together.
    """

    def __init__(
        self,
        queries: Sequence[Example],
        query_embeddings: Tensor,
        pool: Pool,
        allowed: AllowedRows,
        policy: Policy,
        generators: Mapping[str, Generator],
        judge: Judge,
        config: GenerateConfig,
    ) -> None:
        check_dims(query_embeddings, pool.embeddings)
        self._queries = queries
        self._embeddings = query_embeddings
        self._pool = pool
        self._policy = policy
        self._generators = generators
        self._judge = judge
        self._config = config
        self._allowed = allowed
        allowed.check(queries, config.shots)

    def windows(self) -> Iterator[range]:
        """The queries' indices, a window at a time."""
        return windows(len(self._queries), self._config.window)

    def propose(self, window: range) -> list[Proposed]:
        """Candidates for each of these queries."""
        queries = list(self._queries[window.start : window.stop])
        batch = QueryBatch(
            examples=queries,
            embeddings=self._embeddings[window.start : window.stop],
            allowed=self._allowed.mask(queries),
            shots=self._config.shots,
        )
        config, pool, policy = self._config, self._pool, self._policy
        found = propose(policy, batch, pool, self._generators, config.seed, config.dedup)
        return [Proposed(*each) for each in zip(window, queries, found, strict=True)]

    def trials(self, proposed: Proposed) -> list[Trial]:
        """What a query's candidates ask the backend."""
        examples = self._pool.examples
        return [
            Trial(proposed.query, [examples[row] for row in candidate.pointer])
            for candidate in proposed.candidates
        ]

    def judge(
        self,
        proposed: Sequence[Proposed],
        on_outcome: Callable[[Outcome], object] = lambda outcome: None,
    ) -> list[Judged]:
        """These queries with their candidates judged, in one call of the backend."""
        trials = [trial for each in proposed for trial in self.trials(each)]
        outcomes: dict[int, Outcome] = {}
        for place, outcome in self._judge.judge(trials):
            outcomes[place] = outcome
            on_outcome(outcome)
        places = count()
        judged = []
        for each in proposed:
            pairs = tuple((candidate, outcomes[next(places)]) for candidate in each.candidates)
            judged.append(Judged(each.query, pairs, self._allowed.excluded(each.query)))
        return judged


def generate(
    generation: Generation, on_outcome: Callable[[Outcome], object] = lambda outcome: None
) -> Iterator[Judged]:
    """Judged candidates of each query, in the queries' order."""
    for window in generation.windows():
        yield from generation.judge(generation.propose(window), on_outcome)
