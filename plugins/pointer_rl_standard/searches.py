"""Searches: they see the outcome of a trial before they decide on the next one.

Both begin with the pointers of `ProbeGenerator`, so that the rewards of a query say which row
earned them. A failed trial is neither a success nor a failure of its pointer.

Sets of rows are found row by row. No accuracy says whether a row is a part of one, since half of
what a question asks for is wrong. The probability of the annotators' answers does, if outcomes have
it (`Outcome.gt_prob`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pointer_rl.types import Candidate, Outcome, Pointer, Policy, Pool, QueryBatch, Search
from pointer_rl_standard.generators import ProbeGenerator, Rngs, best_rows
from pointer_rl_standard.options import FirstSuccessOptions, GreedyOptions, ProbeOptions

Told = Sequence[tuple[Candidate, Outcome]]
_TINY = 1e-300
"""A probability of 0 has no logarithm."""


@dataclass(frozen=True)
class FirstSuccess:
    """Probes, best first, until the query has a success and a failure to compare it with.

    Which rows a query needs is known by then: further trials teach more on another query.

    If outcomes have the probability p of the answers, a row that makes them much likelier, while
    none is a success, stays, and the rows after it are tried beside it: up to `shots` rows. It is
    one whose log p is above half that of the least likely pointer so far or, beside rows that
    stayed, half that without it. At the end each row of a success of several is left out once, to
    see whether it was needed.

    If pointers may have any length, the empty one is the first, rows that were not chosen yet are
    left out, and at the end the success is tried with one row more.
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
            _Walk(each, self.options, queries)
            for each in probes.propose(policy, queries, pool, rngs)
        ]


class _Walk:
    """One pass over the rows, the best first; those that help stay."""

    def __init__(
        self, probes: Sequence[Candidate], options: FirstSuccessOptions, queries: QueryBatch
    ) -> None:
        pointers = [each.pointer for each in probes if each.pointer]
        self._left = [pointer[0] for pointer in pointers]
        self._companions = pointers[0][1:] if pointers else ()
        """Random rows in the places of those that are not chosen yet; none if lengths vary."""
        self._options = options
        self._shots, self._any_length = queries.shots, queries.any_length
        self._kept: Pointer = ()
        self._tried: list[int] = []
        """Rows that were tried beside the kept ones."""
        self._told: dict[Pointer, Outcome] = {}
        self._rounds = self._walk()

    def ask(self) -> Sequence[Candidate]:
        return [Candidate(pointer, "first-success") for pointer in next(self._rounds, ())]

    def tell(self, outcomes: Told) -> None:
        self._told |= {candidate.pointer: outcome for candidate, outcome in outcomes}

    def _walk(self) -> Iterator[Sequence[Pointer]]:
        """The pointers of each round; it goes on when their outcomes are told."""
        # The first two in one call of the backend: a single one teaches nothing.
        first: list[Pointer] = [()] if self._any_length else []
        while self._left and len(first) < 2:
            first.append(self._next())
        yield first
        while len(set(self._judged().values())) < 2:
            self._keep()
            if not self._left or len(self._told) >= self._options.budget:
                return
            yield [self._next()]
        yield self._neighbours()[: self._options.budget - len(self._told)]

    def _next(self) -> Pointer:
        self._tried.append(self._left.pop(0))
        return self._pointer((*self._kept, self._tried[-1]))

    def _pointer(self, rows: Pointer) -> Pointer:
        """One or more chosen rows, and companions in the places after them."""
        return (*rows, *self._companions[len(rows) - 1 :])

    def _judged(self) -> dict[Pointer, bool]:
        """Whether each pointer is a success; without those whose trial failed."""
        return {
            pointer: outcome.accuracy >= self._options.success
            for pointer, outcome in self._told.items()
            if outcome.accuracy is not None
        }

    def _keep(self) -> None:
        """Keep the best of the rows that were tried, if it helps; others that do come next."""
        if len(self._kept) + 1 == self._shots or any(self._judged().values()):
            return
        known = {
            pointer: math.log(max(outcome.gt_prob, _TINY))
            for pointer, outcome in self._told.items()
            if outcome.gt_prob is not None
        }
        if not known:
            return
        base = known[self._pointer(self._kept)] if self._kept else min(known.values())
        helping = {
            row: known[pointer]
            for row in self._tried
            for pointer in [self._pointer((*self._kept, row))]
            if pointer in known and known[pointer] > base / 2
        }
        if helping:
            best = max(helping, key=helping.__getitem__)
            self._kept, self._tried = (*self._kept, best), []
            self._left = [*(row for row in helping if row != best), *self._left]

    def _neighbours(self) -> list[Pointer]:
        """The success without each of its rows and, if lengths vary, with one row more."""
        success = next(pointer for pointer, succeeded in self._judged().items() if succeeded)
        rows = success[: len(self._kept) + 1]
        found = [
            self._pointer((*rows[:place], *rows[place + 1 :])) for place in range(len(rows) - 1)
        ]
        if self._any_length and 0 < len(success) < self._shots and self._left:
            found.append((*success, self._left[0]))
        return [pointer for pointer in found if pointer not in self._told]


@dataclass(frozen=True)
class Greedy:
    """The best first row, then the best second row beside it, and so on (forward selection).

    At each step as many rows are tried in the next place, in one round, with all other places
    fixed: first the best ones, then the two best others of the step before, and rows that were not
    tried. Places that are still to be chosen hold the probes' random rows. The row with the highest
    accuracy stays; of equal ones, the one with the highest `gt_prob`, if that is recorded, then the
    first. It ends early where the accuracy is 1.

    If pointers may have any length, those places stay empty, the empty pointer is tried too, and it
    ends where every further row makes it worse.
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
        number, by = max(1, self.budget // queries.shots), self.options.by
        probes = ProbeGenerator(ProbeOptions(num=number, by=by))
        return [
            _ForwardSelection(_named("greedy", each), rows, number, queries)
            for each, rows in zip(
                probes.propose(policy, queries, pool, rngs),
                best_rows(policy, queries, pool, self.budget, by),
                strict=True,
            )
        ]


class _ForwardSelection:
    def __init__(
        self, probes: Sequence[Candidate], rows: Sequence[int], number: int, queries: QueryBatch
    ) -> None:
        self._next = list(probes)
        probed = {row for each in probes for row in each.pointer[:1]}
        self._untried = [row for row in rows if row not in probed]
        self._number = number
        self._shots, self._any_length = queries.shots, queries.any_length
        self._place = 0
        self._best = (-math.inf, -math.inf)
        """Worth of the rows so far."""

    def ask(self) -> Sequence[Candidate]:
        return self._next

    def tell(self, outcomes: Told) -> None:
        self._next = []
        judged = [each for each in outcomes if each[1].accuracy is not None]
        if not judged:
            return
        (best, outcome), *others = sorted(judged, key=_worth, reverse=True)
        place, self._place = self._place, self._place + 1
        worse = self._any_length and _worth((best, outcome)) < self._best
        if outcome.accuracy == 1 or not best.pointer or worse or self._place == self._shots:
            return
        self._best = _worth((best, outcome))
        before, after = best.pointer[: place + 1], best.pointer[place + 2 :]
        tried = [each.pointer[place] for each, _ in others if each.pointer]
        rows = [*tried[:2], *self._untried, *tried[2:]]
        rows = [row for row in rows if row not in best.pointer][: self._number]
        self._untried = [row for row in self._untried if row not in rows]
        self._next = [replace(best, pointer=(*before, row, *after)) for row in rows]


def _worth(judged: tuple[Candidate, Outcome]) -> tuple[float, float]:
    outcome = judged[1]
    return outcome.accuracy or 0.0, outcome.gt_prob or 0.0


def _named(gen_method: str, candidates: Sequence[Candidate]) -> list[Candidate]:
    return [replace(each, gen_method=gen_method) for each in candidates]
