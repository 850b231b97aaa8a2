"""A run of `pointer-rl beams`: the InfoScore beams of each query, from which a policy starts."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import pointer_rl_schemas
from pointer_rl.beams.infoscore import AnswerScorer, most_trials, search
from pointer_rl.beams.sub_pools import Sampler, SubPool, SubPools, sampler_space
from pointer_rl.datasets.leakage import AllowedRows
from pointer_rl.errors import InputError
from pointer_rl.records.beams import to_beam_record
from pointer_rl.records.formats import open_writer
from pointer_rl.records.provenance import Change
from pointer_rl.records.records import describe_query, describe_shots
from pointer_rl.session.journal import RUN, Journal, earlier_meta, locked_run
from pointer_rl.session.observer import Observer
from pointer_rl.session.session import Session, SessionOptions
from pointer_rl.session.windows import Budget, RunSummary, complete, windows_of
from pointer_rl.types import BackendError, Window

_SHOTS = ("shots", "any_length")
TRIALS_TOGETHER = 4096
"""Trials of one step that go to the backend together: a window has as many queries as give them."""


@dataclass(frozen=True, kw_only=True)
class BeamConfig:
    """What decides the beams, apart from the trials."""

    shots: int = 2
    """Demonstrations in a pointer."""
    any_length: bool = False
    """Keep of each beam only its first rows, as many as have the highest InfoScore, or none."""
    beam_size: int = 5
    """Pointers kept at each step."""
    sampler: Sampler = "random"
    """How the sub-pool of a query is drawn."""
    sub_pool: int = 64
    """Demonstrations tried for each query."""
    seed: int = 0
    """Seed of random sub-pools."""

    def __post_init__(self) -> None:
        if min(self.shots, self.beam_size) < 1:
            raise InputError("shots and beam_size are at least 1")
        if self.sub_pool < self.shots:
            raise InputError(f"{self.shots} shots need a sub-pool of at least as many examples")


@dataclass(frozen=True, kw_only=True)
class BeamRun:
    """Everything that decides a file of beam data."""

    output_path: Path
    """The file to write."""
    session: SessionOptions
    config: BeamConfig = BeamConfig()
    max_calls: int | None = None
    """Trials that the backend may be asked at most; see `Budget`."""
    overwrite: bool = False
    """Start over, whatever there is."""
    accept_changed: Collection[Change] = ()
    """What of the run may have changed since it began."""


@dataclass(frozen=True, kw_only=True)
class BeamJob:
    """Search the best pointers of queries by InfoScore; see `pointer_rl.types.Job`."""

    session: Session
    sub_pools: SubPools
    shots: int
    beam_size: int
    any_length: bool

    def __getstate__(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @cached_property
    def _scorer(self) -> AnswerScorer:
        judge = self.session.judge()
        return AnswerScorer(judge.prompt, judge.backend)

    def run(self, window: Window) -> dict[int, dict[str, Any]]:
        """The beam record of every query in `window.todo`.

        A query without a beam has an empty list of them, and is left out of the finished file.
        """
        queries = [self.session.queries[index] for index in window.todo]
        sub_pools = [self.sub_pools.draw(*each) for each in zip(window.todo, queries, strict=True)]
        trials = [_Trials() for _ in queries]
        self.session.observer.window(len(queries), sum(map(self._most_trials, sub_pools)))

        def count(query: int, result: float | BackendError) -> None:
            trials[query].add(result)
            self.session.observer.trial(None)

        with self.session.backend.window():
            found = search(
                queries,
                [each.rows for each in sub_pools],
                self.session.dataset.pool,
                self._scorer,
                shots=self.shots,
                beam_size=self.beam_size,
                any_length=self.any_length,
                on_trial=count,
            )
        excluded = self.sub_pools.allowed.excluded
        return {
            index: {
                **to_beam_record(
                    describe_query(query),
                    () if each is None else each.beams,
                    None if sub_pool.is_whole else sub_pool.rows,
                    excluded(query),
                    asked.trials,
                ),
                RUN: {"logprob": None if each is None else each.logprob, **asdict(asked)},
            }
            for index, query, each, sub_pool, asked in zip(
                window.todo, queries, found, sub_pools, trials, strict=True
            )
        }

    def most_calls(self, window: Window) -> int:
        """The most requests that a window could put to the backend."""
        sub_pools = (self.sub_pools.draw(i, self.session.queries[i]) for i in window.todo)
        return sum(map(self._most_trials, sub_pools))

    def _most_trials(self, sub_pool: SubPool) -> int:
        return most_trials(len(sub_pool.rows), self.shots, self.beam_size)


@dataclass
class _Trials:
    """What was asked for one query."""

    trials: int = 0
    failed: int = 0
    first_failure: str | None = None

    def add(self, result: float | BackendError) -> None:
        self.trials += 1
        if isinstance(result, BackendError):
            self.failed += 1
            self.first_failure = self.first_failure or result.message


@dataclass
class BeamSummary(RunSummary):
    """What a run of `beams` produced; `queries` are those with beams."""

    beams: int = 0
    left_out: int = 0
    """Queries for which no pointer could be scored."""
    trials: int = 0
    failed: int = 0
    """Of the trials."""
    helped: int = 0
    """Queries whose best beam has an InfoScore above 0."""
    scores: list[float] = field(default_factory=list)
    """`scores[n]`: summed InfoScore of each best beam's first n demonstrations, or of all."""
    probabilities: list[float] = field(default_factory=list)
    """`probabilities[n]`: summed P(answers) after as many."""

    def add(self, record: Mapping[str, Any]) -> None:
        """Count the record of a query."""
        run = record.get(RUN) or {}  # a finished file has no notes
        self.trials += run.get("trials", 0)
        self.failed += run.get("failed", 0)
        self.first_failure = self.first_failure or run.get("first_failure")
        if not record["beams"]:
            self.left_out += 1
            return
        self.queries += 1
        self.beams += len(record["beams"])
        best = record["beams"][0]
        self.helped += best["score"] > 0
        scores = [math.fsum(best["step_scores"][:n]) for n in range(len(best["pointer"]) + 1)]
        self.scores = _added(self.scores, scores)
        probabilities = [math.exp(run.get("logprob", math.nan) + score) for score in scores]
        self.probabilities = _added(self.probabilities, probabilities)

    def rows(self) -> list[tuple[str, ...]]:
        """Header and lines of a table: means over the queries' best beams."""
        return [
            ("demonstrations", "InfoScore", "P(answers)"),
            *(
                (
                    str(number),
                    f"{score / self.queries:+.2f}" if number else "-",
                    "-" if math.isnan(probability) else f"{probability / self.queries:.3f}",
                )
                for number, (score, probability) in enumerate(
                    zip(self.scores, self.probabilities, strict=True)
                )
            ),
        ]

    def sentences(self) -> list[str]:
        """What was asked, and whether demonstrations help at all."""
        said = [f"{self.trials:,} trials, {self.from_cache:,} of them from the response cache"]
        if self.queries:
            said.insert(
                0,
                f"the best beam makes the answers likelier for {self.helped:,} of "
                f"{self.queries:,} queries",
            )
        return said

    def warnings(self) -> list[str]:
        """What is missing from the file, and why."""
        said = []
        if self.failed:
            said.append(f"{self.failed:,} trials failed; first: {self.first_failure}")
        if self.left_out:
            said.append(f"{self.left_out:,} queries are left out: their trials failed")
        return said


def _added(sums: list[float], values: list[float]) -> list[float]:
    """Element by element; the shorter list goes on with its last element."""
    sums = sums or [0.0]
    length = max(len(sums), len(values))
    padded = ([*each, *each[-1:] * (length - len(each))] for each in (sums, values))
    return [a + b for a, b in zip(*padded, strict=True)]


def run_beams(run: BeamRun, observer: Observer = Observer()) -> BeamSummary:
    """Write run.output_path. However the run ends, the same run continues it.

    Raises PointerRLError, before the first trial, for anything that is missing or does not fit, and
    InputError if every trial of the first window fails (a backend that cannot score).
    """
    open_writer(run.output_path).discard()  # fails at once if it cannot be written
    with locked_run(run.output_path):
        return _run_beams(run, observer)


def _run_beams(run: BeamRun, observer: Observer) -> BeamSummary:
    earlier = earlier_meta(run.output_path, overwrite=run.overwrite)
    session = Session(run.session, observer, earlier)
    config, queries = run.config, session.queries
    if not any(query.answers for query in queries):
        raise InputError(f"dataset {session.dataset.name}: no query has annotators' answers")
    allowed = AllowedRows(session.dataset.pool)
    allowed.check(queries, config.shots)
    space = sampler_space(session, queries, config.sampler)
    job = BeamJob(
        session=session,
        sub_pools=SubPools(allowed, config.sub_pool, config.seed, space),
        shots=config.shots,
        beam_size=config.beam_size,
        any_length=config.any_length,
    )
    size = _window(config, len(session.dataset.pool))
    budget = Budget(
        max_calls=run.max_calls, calls=lambda: session.backend.asked, most_calls=job.most_calls
    )
    budget.check(next(windows_of(range(len(queries)), size)))
    embedded = None if space is None else (space.queries, space.pool)
    described = session.describe(queries, embedded=embedded)
    meta = {
        "schema_version": pointer_rl_schemas.version("beams"),
        # No answer is generated or judged here.
        **{key: value for key, value in described.items() if key not in ("decoding", "metric")},
        **describe_shots(config.shots, config.any_length),
        **{key: value for key, value in asdict(config).items() if key not in _SHOTS},
        "similarity": None if space is None else space.pool.encoder,
    }
    summary = BeamSummary()
    ids = [query.id for query in queries]
    with Journal(
        run.output_path, meta, ids, overwrite=run.overwrite, accept=run.accept_changed
    ) as journal:
        fresh = not len(journal)
        for _ in complete(summary, job, size, session, journal, budget):
            if fresh and summary.failed == summary.trials:
                raise InputError(
                    f"not one of {summary.trials:,} trials has a score, and beams are made of "
                    f"scores; the first: {summary.first_failure}"
                )
    return summary


def _window(config: BeamConfig, pool_size: int) -> int:
    """How many queries have TRIALS_TOGETHER trials in one step."""
    rows = min(config.sub_pool, pool_size)
    per_query = 1 + rows * (config.beam_size if config.shots > 1 else 1)
    return max(1, TRIALS_TOGETHER // per_query)
