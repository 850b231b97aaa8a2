"""Searches: they see the outcome of a trial before they decide on the next one.

Both begin with the pointers of `ProbeGenerator`, so that the rewards of a query say which row
earned them. A failed trial is neither a success nor a failure of its pointer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pointer_rl.types import Candidate, Outcome, Policy, Pool, QueryBatch, Search
from pointer_rl_standard.generators import ProbeGenerator, Rngs
from pointer_rl_standard.options import FirstSuccessOptions, GreedyOptions, ProbeOptions

Told = Sequence[tuple[Candidate, Outcome]]


@dataclass(frozen=True)
class FirstSuccess:
    """Probes, best first, until the query has a success and a failure to compare it with.

    Which rows a query needs is known by then: further trials teach more on another query.
    """

    options: FirstSuccessOptions

    @property
    def budget(self) -> int:
        """Most trials per query."""
        return self.options.budget

    def start(
        self, policy: Policy, queries: QueryBatch, pool: Pool, rngs: Rngs
    ) -> Sequence[Search]:
        """A search per query."""
        probes = ProbeGenerator(ProbeOptions(num=self.budget, by=self.options.by))
        return [
            _UntilSuccess(_named("first-success", each), self.options.success)
            for each in probes.propose(policy, queries, pool, rngs)
        ]


class _UntilSuccess:
    def __init__(self, candidates: Sequence[Candidate], success: float) -> None:
        self._left = list(candidates)
        self._success = success
        self._seen: set[bool] = set()

    def ask(self) -> Sequence[Candidate]:
        # The first two in one call of the backend: a single one teaches nothing.
        number = 1 if self._seen else 2
        asked, self._left = self._left[:number], self._left[number:]
        return asked

    def tell(self, outcomes: Told) -> None:
        for _, outcome in outcomes:
            if outcome.accuracy is not None:
                self._seen.add(outcome.accuracy >= self._success)
        if len(self._seen) == 2:
            self._left = []


@dataclass(frozen=True)
class Greedy:
    """The best first row, then the best second row beside it, and so on (forward selection).

    At each step the rows are tried in the next place, in one round, with all other places fixed.
    Places that are still to be chosen hold the probes' random rows. The row with the highest
    accuracy stays; of equal ones, the one with the highest `gt_prob`, if that is recorded, then the
    first. It ends early where the accuracy is 1.
    """

    options: GreedyOptions

    @property
    def budget(self) -> int:
        """Most trials per query."""
        return self.options.budget

    def start(
        self, policy: Policy, queries: QueryBatch, pool: Pool, rngs: Rngs
    ) -> Sequence[Search]:
        """A search per query."""
        rows = max(1, self.budget // queries.shots)
        probes = ProbeGenerator(ProbeOptions(num=rows, by=self.options.by))
        return [
            _ForwardSelection(_named("greedy", each))
            for each in probes.propose(policy, queries, pool, rngs)
        ]


class _ForwardSelection:
    def __init__(self, probes: Sequence[Candidate]) -> None:
        self._next = list(probes)
        self._rows = [probe.pointer[0] for probe in probes]
        self._place = 0

    def ask(self) -> Sequence[Candidate]:
        return self._next

    def tell(self, outcomes: Told) -> None:
        self._next = []
        judged = [each for each in outcomes if each[1].accuracy is not None]
        if not judged:
            return
        best, outcome = max(judged, key=_worth)
        self._place += 1
        if outcome.accuracy == 1 or self._place == len(best.pointer):
            return
        before, after = best.pointer[: self._place], best.pointer[self._place + 1 :]
        self._next = [
            replace(best, pointer=(*before, row, *after)) for row in self._rows if row not in before
        ]


def _worth(judged: tuple[Candidate, Outcome]) -> tuple[float, float]:
    outcome = judged[1]
    return outcome.accuracy or 0.0, outcome.gt_prob or 0.0


def _named(gen_method: str, candidates: Sequence[Candidate]) -> list[Candidate]:
    return [replace(each, gen_method=gen_method) for each in candidates]
