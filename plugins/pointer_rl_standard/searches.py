"""Searches: they see the outcome of a trial before they decide on the next one.

Both begin with the pointers of `ProbeGenerator`, so that the rewards of a query say which row
earned them. A failed trial is neither a success nor a failure of its pointer.

Sets of rows are found row by row. No accuracy says whether a row is a part of one, since half of
what a question asks for is wrong. The probability of the annotators' answers does, if outcomes have
it (`Outcome.gt_prob`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pointer_rl.types import Candidate, Outcome, Pointer, Policy, Pool, QueryBatch, Search
from pointer_rl_standard.generators import (
    ProbeGenerator,
    Rngs,
    best_rows,
    other_rows,
    rows_by_answer,
    with_companions,
)
from pointer_rl_standard.options import FirstSuccessOptions, GreedyOptions, ProbeOptions

Told = Sequence[tuple[Candidate, Outcome]]
_TINY = 1e-300
"""A probability of 0 has no logarithm."""
_HELPS = 0.75
"""A row stays if it brings log p below this share of what it was, as does a row that makes one of
three parts of the answer certain. A row that stays in vain costs a place; a row that is missed can
cost the success."""


@dataclass(frozen=True)
class FirstSuccess:
    """Probes, best first, until the query has a success and a failure to compare it with.

    Which rows a query needs is known by then: further trials teach more on another query. With
    the option `answers`, rows that have the query's answer, which are likely to succeed, take turns
    with rows that have not.

    With the probability p of the answers, sets are found, too. As long as nothing succeeded, a row
    that makes the answers much likelier stays, and the next rows are tried beside it: the best one
    whose log p is at least a quarter nearer to 0 than that of the least likely pointer so far or,
    beside rows that stayed, than theirs. At the end each row of a successful set is left out once,
    to see whether it was needed. Places of rows that are not chosen yet hold random companions;
    what these are worth by themselves is asked as soon as the first probes failed.

    If pointers may have any length there are no companions. The first trial is the empty pointer.
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
        rank = rows_by_answer if self.options.answers else best_rows
        ranked = rank(policy, queries, pool, self.budget, self.options.by)
        likeliest: Sequence[Pointer] = [()] * len(ranked)
        if self.options.by == "policy":
            likeliest = [each[0] for each in policy.beam(queries, pool, 1).pointers()]
        if queries.any_length:
            return [
                _Walk(rows, [], (), best, queries, self.options)
                for rows, best in zip(ranked, likeliest, strict=True)
            ]
        found = with_companions(ranked, queries, queries.shots - 1, rngs)
        walks = []
        for (rows, companions), best, mask, rng in zip(
            found, likeliest, queries.allowed, rngs, strict=True
        ):
            others = other_rows(mask.cpu().numpy(), [*rows, *companions])
            nothing = (int(rng.choice(others)), *companions) if len(others) else None
            walks.append(_Walk(rows, companions, nothing, best, queries, self.options))
        return walks


class _Walk:
    """One pass over the rows, the best first; those that help stay."""

    def __init__(
        self,
        rows: Sequence[int],
        companions: Sequence[int],
        nothing: Pointer | None,
        likeliest: Pointer,
        queries: QueryBatch,
        options: FirstSuccessOptions,
    ) -> None:
        self._left = list(rows)
        self._companions = companions
        self._nothing = nothing
        """A pointer without any of the rows; None if there is none."""
        self._likeliest = likeliest
        """The policy's likeliest pointer."""
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
        while len(set(self._judged().values())) < 2 and len(self._told) < self._options.budget:
            known = self._log_probs()
            if known and len(self._kept) + 1 < self._shots and not any(self._judged().values()):
                if self._nothing is not None and self._nothing not in self._told:
                    yield [self._nothing]
                    continue
                self._keep(known)
            if not self._left:
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

    def _log_probs(self) -> dict[Pointer, float]:
        """log p of each pointer, where it is known."""
        return {
            pointer: math.log(max(outcome.gt_prob, _TINY))
            for pointer, outcome in self._told.items()
            if outcome.gt_prob is not None
        }

    def _keep(self, known: Mapping[Pointer, float]) -> None:
        """Keep the best of the rows that were tried, if it helps.

        Next comes what the policy would choose after it, then others that helped.
        """
        base = known[self._pointer(self._kept)] if self._kept else min(known.values())
        helping = {
            row: known[pointer]
            for row in self._tried
            for pointer in [self._pointer((*self._kept, row))]
            if pointer in known and known[pointer] > _HELPS * base
        }
        if helping:
            best = max(helping, key=helping.__getitem__)
            self._kept, self._tried = (*self._kept, best), []
            chosen = len(self._kept)
            foreseen = self._likeliest[chosen:] if self._likeliest[:chosen] == self._kept else ()
            following = dict.fromkeys([*foreseen, *helping, *self._left])
            self._left = [row for row in following if row not in (*self._kept, *self._companions)]

    def _neighbours(self) -> list[Pointer]:
        """The success without each of its rows."""
        success = next((pointer for pointer, each in self._judged().items() if each), ())
        rows = success[: len(self._kept) + 1]
        found = [
            self._pointer((*rows[:place], *rows[place + 1 :])) for place in range(len(rows) - 1)
        ]
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
