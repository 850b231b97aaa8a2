"""From the arms' pointers to accuracies: every trial asked once, failures left out in pairs.

Shapes: N queries, S seeds of the random arm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pointer_rl.errors import InputError
from pointer_rl.evaluate.arms import ORACLE, RANDOM, VOTE, Arms
from pointer_rl.session.judge import Judge, Trial
from pointer_rl.types import Example, Metric, Outcome, Pointer

__all__ = ["Asked", "Measured", "ask", "majority", "measure"]

Floats = NDArray[np.float64]

WINDOW = 64
"""Queries whose trials go to the backend together: thousands of trials, so that it can batch."""


@dataclass
class Asked:
    """Accuracy by query number and pointer; NaN where the trial failed."""

    accuracies: dict[tuple[int, Pointer], float] = field(default_factory=dict)
    failed: int = 0
    first_failure: str | None = None


@dataclass(frozen=True)
class Measured:
    """What came out at one number of shots.

    A query of which any trial failed at these shots is left out of every arm: NaN in all.
    """

    shots: int
    accuracies: Mapping[str, Floats]
    """By arm, [N]."""
    by_seed: Floats
    """The random arm, seed by seed: [S, N]; at 0 shots [0, N]."""
    oracle_sizes: NDArray[np.int64]
    """[N] pointers of which the oracle's is the best; all 0 at 0 shots."""

    @property
    def kept(self) -> NDArray[np.bool_]:
        """[N] whether the query counts."""
        first = next(iter(self.accuracies.values()))
        return ~np.isnan(first)

    @property
    def left_out(self) -> int:
        """Queries that do not count."""
        return int((~self.kept).sum())

    def accuracy(self, arm: str) -> float | None:
        """Mean over the queries that count; None where none does."""
        values = self.accuracies[arm][self.kept]
        return float(values.mean()) if len(values) else None


def ask(
    queries: Sequence[Example],
    pool: Sequence[Example],
    arms: Sequence[Arms],
    judge: Judge,
    on_query: Callable[[], object],
    on_outcome: Callable[[Outcome], object],
) -> Asked:
    """Ask each query with each of its pointers once, however many arms show it.

    `arms` are of different numbers of shots.
    """
    asked = Asked()
    for start in range(0, len(queries), WINDOW):
        window = range(start, min(start + WINDOW, len(queries)))
        keys = [
            (number, pointer)
            for number in window
            for each in arms
            for pointer in each.oracle[number]
        ]
        trials = [
            Trial(queries[number], [pool[row] for row in pointer]) for number, pointer in keys
        ]
        for index, outcome in judge.judge(trials):
            accuracy = outcome.accuracy
            if accuracy is None:
                asked.failed += 1
                asked.first_failure = asked.first_failure or outcome.failure
            asked.accuracies[keys[index]] = math.nan if accuracy is None else accuracy
            on_outcome(outcome)
        for _ in window:
            on_query()
    return asked


def measure(
    arms: Arms,
    asked: Asked,
    queries: Sequence[Example],
    pool: Sequence[Example],
    metric: Metric,
    voters: Sequence[str],
) -> Measured:
    """Accuracies of the arms, of the oracle, and as `vote ARM` of the demonstrations' majority.

    `voters` are arms of one pointer a query.
    """

    def outcomes(number: int, pointers: Sequence[Pointer]) -> list[float]:
        return [asked.accuracies[number, pointer] for pointer in pointers]

    every = [outcomes(number, pointers) for number, pointers in enumerate(arms.oracle)]
    out = np.isnan([sum(values) for values in every])
    accuracies = {
        name: np.array([np.mean(outcomes(number, each)) for number, each in enumerate(pointers)])
        for name, pointers in arms.pointers.items()
    }
    by_seed = np.empty((0, len(queries)))
    if arms.shots:
        by_seed = np.array([outcomes(*each) for each in enumerate(arms.pointers[RANDOM])]).T
        for name in voters:
            shown = [[pool[row] for row in pointer] for (pointer,) in arms.pointers[name]]
            votes = [_vote(*each, metric) for each in zip(queries, shown, strict=True)]
            accuracies[VOTE + name] = np.array(votes)
        accuracies[ORACLE] = np.array([max(values) for values in every])
    return Measured(
        shots=arms.shots,
        accuracies={name: np.where(out, np.nan, each) for name, each in accuracies.items()},
        by_seed=np.where(out, np.nan, by_seed),
        oracle_sizes=np.array([len(values) if arms.shots else 0 for values in every]),
    )


def majority(answers: Sequence[str]) -> str:
    """The most frequent answer; of equals, the one shown last, next to the query."""
    return max(dict.fromkeys(reversed(answers)), key=answers.count)


def _vote(query: Example, demonstrations: Sequence[Example], metric: Metric) -> float:
    answer = majority([metric.normalise(each.answer) for each in demonstrations])
    try:
        return metric.judge(answer, query.answers).accuracy
    except InputError:  # its trials fail as well: the query is left out
        return math.nan
