"""Generating RL data: propose, judge, give back query by query.

Queries go through in windows: candidates are proposed for a whole window at once, and its trials
go to the backend together, so that both can batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from pointer_rl.data.embeddings import check_dims
from pointer_rl.errors import InputError
from pointer_rl.generate.proposing import AllowedRows, Dedup, propose
from pointer_rl.trials.judging import Judge, Trial
from pointer_rl.types import Candidate, Example, Generator, Outcome, Policy, Pool, QueryBatch

__all__ = ["GenerateConfig", "Judged", "generate"]

WINDOW = 128
"""Queries proposed for and judged together."""


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """What decides the candidates, beside the policy and the generators."""

    shots: int = 2
    """Demonstrations in a pointer."""
    seed: int = 0
    """Of all that is drawn."""
    dedup: Dedup = "ordered"
    """Whether pointers of the same rows in another order are different candidates."""

    def __post_init__(self) -> None:
        if self.shots < 1:
            raise InputError(f"shots is {self.shots}: a pointer has at least one demonstration")


@dataclass(frozen=True)
class Judged:
    """A query and its candidates with their outcomes."""

    query: Example
    candidates: tuple[tuple[Candidate, Outcome], ...]
    excluded: tuple[int, ...] = ()
    """Rows that the query may not choose: training must not either."""


def generate(
    queries: Sequence[Example],
    query_embeddings: Tensor,
    pool: Pool,
    policy: Policy,
    generators: Mapping[str, Generator],
    judge: Judge,
    config: GenerateConfig,
    on_outcome: Callable[[Outcome], object] = lambda outcome: None,
) -> Iterator[Judged]:
    """Judged candidates of each query, in the queries' order, a window at a time.

    queries: N examples with their embeddings [N, d]; pool: K examples, [K, d]. `generators` in
    order of precedence: of two that propose a pointer, the first one's candidate is kept.
    Raises InputError, before the first trial, where these do not fit together.
    """
    check_dims(query_embeddings, pool.embeddings)
    allowed_rows = AllowedRows(pool.examples)
    allowed_rows.check(queries, config.shots)
    for start in range(0, len(queries), WINDOW):
        window = slice(start, start + WINDOW)
        batch = QueryBatch(
            examples=queries[window],
            embeddings=query_embeddings[window],
            allowed=allowed_rows.mask(queries[window]),
            shots=config.shots,
        )
        proposed = propose(policy, batch, pool, generators, config.seed, config.dedup)
        for judged in _judge_window(batch.examples, proposed, pool, judge, on_outcome):
            yield replace(judged, excluded=allowed_rows.excluded(judged.query))


def _judge_window(
    queries: Sequence[Example],
    proposed: Sequence[Sequence[Candidate]],
    pool: Pool,
    judge: Judge,
    on_outcome: Callable[[Outcome], object],
) -> Iterator[Judged]:
    trials = [
        Trial(query, [pool.examples[row] for row in candidate.pointer])
        for query, candidates in zip(queries, proposed, strict=True)
        for candidate in candidates
    ]
    waiting = deque(zip(queries, proposed, strict=True))
    outcomes: dict[int, Outcome] = {}
    first = 0  # trial of the query that is next
    for index, outcome in judge.judge(trials):
        outcomes[index] = outcome
        on_outcome(outcome)
        # Not at the window's end: an interrupt then loses as little as it can.
        while waiting and all(first + k in outcomes for k in range(len(waiting[0][1]))):
            query, candidates = waiting.popleft()
            mine = [outcomes.pop(first + k) for k in range(len(candidates))]
            first += len(candidates)
            yield Judged(query, tuple(zip(candidates, mine, strict=True)))
    for query, candidates in waiting:
        assert not candidates, "every trial has an outcome"
        yield Judged(query, ())
