"""The job behind `generate` and online rounds: propose, deduplicate, ask, judge, record.

A window's proposals are judged in one call of the backend, so that both can batch. Searches propose
again after each call, until they are over or their budget is spent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pointer_rl.datasets.leakage import AllowedRows
from pointer_rl.errors import InputError, PluginError
from pointer_rl.records.records import describe_shots, to_record
from pointer_rl.session.judge import Judge, Trial
from pointer_rl.session.observer import Observer
from pointer_rl.session.proposing import (
    Dedup,
    check_candidates,
    check_length,
    dedup_key,
    random_source,
)
from pointer_rl.session.session import PluginRef, Session
from pointer_rl.types import (
    Candidate,
    Example,
    Generator,
    Outcome,
    Pointer,
    Policy,
    Pool,
    QueryBatch,
    Request,
    Search,
    SearchGenerator,
    Window,
)

Judged = list[tuple[Candidate, Outcome]]


def judge_candidates(
    judge: Judge,
    queries: Sequence[Example],
    pool: Sequence[Example],
    candidates: Sequence[Sequence[Candidate]],
    observer: Observer,
    methods: Sequence[Sequence[str]] | None = None,
) -> list[Judged]:
    """Each query's candidates with their outcomes, in one call of the backend.

    methods: what each trial is for, which the observer is told; by default its `gen_method`.
    """
    trials = _trials(queries, pool, candidates)
    methods = methods or [(each.gen_method,) for mine in candidates for each in mine]
    outcomes: dict[int, Outcome] = {}
    for index, outcome in judge.judge(trials):
        outcomes[index] = outcome
        observer.trial(outcome, methods[index])
    ordered = (outcomes[index] for index in range(len(trials)))
    return [[(candidate, next(ordered)) for candidate in mine] for mine in candidates]


def _trials(
    queries: Sequence[Example],
    pool: Sequence[Example],
    candidates: Sequence[Sequence[Candidate]],
) -> list[Trial]:
    return [
        Trial(query, [pool[row] for row in candidate.pointer])
        for query, mine in zip(queries, candidates, strict=True)
        for candidate in mine
    ]


@dataclass(frozen=True, kw_only=True)
class CandidateJob:
    """Propose candidates for queries and judge them."""

    session: Session
    queries: Sequence[Example]
    embeddings: Tensor
    """[N, d], of the queries"""
    pool: Pool
    policy: Policy
    generators: Mapping[str, PluginRef]
    """By name, in order of precedence: of two that propose a pointer, the first keeps it."""
    shots: int
    seed: int
    dedup: Dedup = "ordered"
    score_answers: bool = False
    """Also record the probability of the annotators' answers."""
    any_length: bool = False
    """Whether generators propose shorter pointers too. If the policy can stop, they always do."""

    def __getstate__(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @cached_property
    def lengths(self) -> range:
        """How many rows pointers may have: `shots`, or 0 to `shots`."""
        shorter = self._shorter or any(
            getattr(each, "any_length", False) for each in self._generators.values()
        )
        return range(0 if shorter else self.shots, self.shots + 1)

    @property
    def described_shots(self) -> dict[str, int]:
        """For `_meta`."""
        return describe_shots(self.shots, len(self.lengths) > 1)

    @property
    def most_trials(self) -> int:
        """The most trials of a query. Raises InputError for a generator that is not a search."""
        most = 0
        for name, each in self._generators.items():
            if not isinstance(each, SearchGenerator):
                raise InputError(f"generator {name}: no search: it has no budget")
            most += each.budget
        return most

    @property
    def _shorter(self) -> bool:
        return self.any_length or getattr(self.policy, "can_stop", False)

    @cached_property
    def _allowed(self) -> AllowedRows:
        return AllowedRows(self.pool.examples)

    @cached_property
    def _judge(self) -> Judge:
        return self.session.judge(score_answers=self.score_answers)

    @cached_property
    def _generators(self) -> Mapping[str, Generator | SearchGenerator]:
        return {
            name: each.configure("generator").create() for name, each in self.generators.items()
        }

    # --- running ---

    def run(self, window: Window) -> dict[int, dict[str, Any]]:
        """The record of every query in `window.todo`; see `pointer_rl.types.Job`."""
        rounds = self._first_rounds.pop(window, None) or self._first_round(window)
        with self.session.backend.window():
            while rounds.asked:
                trials = sum(map(len, rounds.new))
                self.session.observer.window(len(window.todo), trials, rounds.budget)
                rounds.tell(
                    judge_candidates(
                        self._judge,
                        rounds.queries,
                        self.pool.examples,
                        rounds.new,
                        self.session.observer,
                    )
                )
                rounds.ask()
        normalise, excluded = self.session.metric.normalise, self._allowed.excluded
        return {
            index: to_record(query, list(judged.values()), normalise, excluded(query))
            for index, query, judged in zip(
                window.todo, rounds.queries, rounds.outcomes, strict=True
            )
        }

    def first_requests(self, window: Window) -> tuple[int, list[Request]]:
        """How many candidates a window's first round has, and what it would ask; asks nothing."""
        rounds = self._first_round(window)
        self._first_rounds.clear()  # a window that runs elsewhere is never taken out
        self._first_rounds[window] = rounds
        trials = _trials(rounds.queries, self.pool.examples, rounds.new)
        return len(trials), self._judge.requests(trials)

    def most_calls(self, window: Window) -> int:
        """The most requests that a window could put to the backend."""
        _, requests = self.first_requests(window)
        uncached = self.session.backend.split_cached(requests)[1]
        return len(uncached) + self._first_rounds[window].budget

    @cached_property
    def _first_rounds(self) -> dict[Window, _Rounds]:
        """The window whose proposals were counted last, which is often run next."""
        return {}

    def _first_round(self, window: Window) -> _Rounds:
        span = slice(window.queries.start, window.queries.stop)
        queries = list(self.queries[span])
        allowed = self._allowed.mask(queries)
        batch = QueryBatch(
            queries, self.embeddings[span], allowed, self.shots, any_length=self._shorter
        )
        chosen = [index - window.queries.start for index in window.todo]
        searches = []
        for name, generator in self._generators.items():
            rngs = [random_source(self.seed, query.id, name) for query in queries]
            started: Sequence[Search]
            if isinstance(generator, SearchGenerator):
                started = generator.start(self.policy, batch, self.pool, rngs)
            else:
                proposed = generator.propose(self.policy, batch, self.pool, rngs)
                started = list(map(_OneRound, proposed))
            check_length(f"generator {name}", batch.examples, started)
            budget = getattr(generator, "budget", None)
            searches += [
                _Running(name, place, started[index], budget) for place, index in enumerate(chosen)
            ]
        rounds = _Rounds(
            [queries[index] for index in chosen],
            [allowed[index].numpy() for index in chosen],  # views: of a large pool, no copy
            self.lengths,
            self.dedup,
            searches,
        )
        rounds.ask()
        return rounds


class _OneRound:
    """The candidates of a generator, as a search that ends after one round."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._candidates = candidates

    def ask(self) -> Sequence[Candidate]:
        candidates, self._candidates = self._candidates, ()
        return candidates

    def tell(self, outcomes: Sequence[tuple[Candidate, Outcome]]) -> None:
        pass


@dataclass
class _Running:
    """A search and the trials that it may still ask for; None: it has no budget."""

    generator: str
    query: int
    search: Search
    budget: int | None

    def ask(self) -> Sequence[Candidate]:
        candidates = self.search.ask()
        if self.budget is not None:
            self.budget -= len(candidates)
            if self.budget < 0:
                raise PluginError(f"generator {self.generator} asked for more than its budget")
            if not candidates:
                self.budget = 0  # it is over
        return candidates


class _Rounds:
    """The searches of a window's queries, round by round."""

    def __init__(
        self,
        queries: Sequence[Example],
        allowed: Sequence[npt.NDArray[np.bool_]],
        shots: range,
        dedup: Dedup,
        searches: Sequence[_Running],
    ) -> None:
        self.queries = queries
        self.outcomes: list[dict[Pointer, tuple[Candidate, Outcome]]] = [{} for _ in queries]
        """For each query its judged candidates, in the order in which they were proposed."""
        self.asked: list[tuple[_Running, list[Candidate]]] = []
        """What each search asked for in this round; empty when all are over."""
        self.new: list[list[Candidate]] = []
        """For each query the candidates of this round that no round had before."""
        self._allowed = allowed
        self._shots = shots
        self._dedup = dedup
        self._searches = searches

    @property
    def budget(self) -> int:
        """Trials that the searches may still ask for."""
        return sum(each.budget or 0 for each in self._searches)

    def ask(self) -> None:
        """Ask every search for its next candidates."""
        new: list[dict[Pointer, Candidate]] = [{} for _ in self.queries]
        self.asked = []
        for running in self._searches:
            place = running.query
            candidates = check_candidates(
                f"generator {running.generator}",
                self.queries[place],
                self._allowed[place],
                self._shots,
                running.ask(),
            )
            if candidates:
                self.asked.append((running, candidates))
            for candidate in candidates:
                key = dedup_key(candidate.pointer, self._dedup)
                if key not in self.outcomes[place]:
                    new[place].setdefault(key, candidate)
        self.new = [list(each.values()) for each in new]

    def tell(self, judged: Sequence[Judged]) -> None:
        """Hand the outcomes of `new` to the searches that asked."""
        for known, pairs in zip(self.outcomes, judged, strict=True):
            for candidate, outcome in pairs:
                known[dedup_key(candidate.pointer, self._dedup)] = (candidate, outcome)
        for running, candidates in self.asked:
            known = self.outcomes[running.query]
            running.search.tell(
                [(each, known[dedup_key(each.pointer, self._dedup)][1]) for each in candidates]
            )
