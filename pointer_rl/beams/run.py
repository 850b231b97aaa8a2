"""A run of `pointer-rl beams`: InfoScore beams of each query, from which a policy starts."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pointer_rl.beams.infoscore import AnswerScorer, Found, most_trials, search
from pointer_rl.beams.sub_pools import Sampler, SubPool, SubPools, similarity_space
from pointer_rl.datasets.leakage import AllowedRows
from pointer_rl.errors import InputError
from pointer_rl.files import check_writable
from pointer_rl.records.beams import to_beam_record
from pointer_rl.records.formats import open_writer
from pointer_rl.records.records import describe_query
from pointer_rl.records.writer import RecordWriter
from pointer_rl.session.caching import StoredBackend
from pointer_rl.session.session import Named, TrialOptions, Workbench
from pointer_rl.types import BackendError, Example

__all__ = ["BeamConfig", "BeamRun", "BeamSummary", "run_beams"]

SCHEMA_VERSION = "1.0"
TOGETHER = 4096
"""Trials of one step that go to the backend together: a window has as many queries as make them."""


@dataclass(frozen=True, kw_only=True)
class BeamConfig:
    """What decides the beams, beside the trials."""

    shots: int = 2
    """Demonstrations in a pointer."""
    beam_size: int = 5
    """Pointers kept at each step, and in the end."""
    sampler: Sampler = "random"
    """How the sub-pool of a query is drawn."""
    sub_pool: int = 64
    """Demonstrations tried for a query; all that it may choose where there are no more."""
    encoder: Named | None = None
    """Of the samplers that compare; by default the dataset's companion."""
    seed: int = 0
    """Of random sub-pools."""

    def __post_init__(self) -> None:
        if min(self.shots, self.beam_size) < 1:
            raise InputError("shots and beam_size are at least 1")
        if self.sub_pool < self.shots:
            raise InputError(f"{self.shots} shots need a sub-pool of at least as many examples")


@dataclass(frozen=True, kw_only=True)
class BeamRun:
    """All that decides a file of beam data."""

    output_path: Path
    """The .json or .jsonl file to write."""
    trials: TrialOptions
    config: BeamConfig = BeamConfig()
    max_calls: int | None = None
    """Stop before a query with which the backend might be asked more trials than that."""
    overwrite: bool = False
    """Replace an existing output file."""


@dataclass
class BeamSummary:
    """What came out."""

    queries: int = 0
    """Written."""
    beams: int = 0
    left_out: int = 0
    """Queries for which no pointer could be scored."""
    not_begun: int = 0
    """Queries that `max_calls` left no trials for."""
    asked: int = 0
    """Of the trials, those put to the backend, each once."""
    from_store: int = 0
    """Those whose response was in the store."""
    trials: int = 0
    failed: int = 0
    """Of the trials."""
    first_failure: str | None = None
    helped: int = 0
    """Queries whose best beam has an InfoScore above 0."""
    scores: list[float] = field(default_factory=list)
    """By number of demonstrations, from 0: the InfoScore of the best beams' so many first, summed
    over the queries."""
    probabilities: list[float] = field(default_factory=list)
    """Likewise, P(answers)."""

    def add(self, found: Found | None) -> None:
        """Count one query."""
        if found is None:
            self.left_out += 1
            return
        self.queries += 1
        self.beams += len(found.beams)
        best = found.beams[0]
        self.helped += best.score > 0
        scores = [math.fsum(best.step_scores[:n]) for n in range(len(best.pointer) + 1)]
        probabilities = [math.exp(found.logprob + score) for score in scores]
        if self.queries == 1:
            self.scores, self.probabilities = scores, probabilities
        else:
            self.scores = [a + b for a, b in zip(self.scores, scores, strict=True)]
            self.probabilities = [
                a + b for a, b in zip(self.probabilities, probabilities, strict=True)
            ]

    def add_trial(self, result: float | BackendError) -> None:
        """Count one trial."""
        self.trials += 1
        if isinstance(result, BackendError):
            self.failed += 1
            self.first_failure = self.first_failure or result.message

    def rows(self) -> list[tuple[str, ...]]:
        """Header and lines of a table: means over the queries' best beams."""
        return [
            ("demonstrations", "InfoScore", "P(answers)"),
            *(
                (
                    str(number),
                    f"{score / self.queries:+.2f}" if number else "-",
                    f"{probability / self.queries:.3f}",
                )
                for number, (score, probability) in enumerate(
                    zip(self.scores, self.probabilities, strict=True)
                )
            ),
        ]

    def sentences(self) -> list[str]:
        """What was asked, and whether demonstrations help at all."""
        said = [f"{self.trials:,} trials, {self.from_store:,} of them from the store"]
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
        if self.not_begun:
            said.append(f"--max-calls: stopped before the last {self.not_begun:,} queries")
        return said


def run_beams(
    run: BeamRun,
    on_start: Callable[[int], object] = lambda queries: None,
    on_query: Callable[[], object] = lambda: None,
    on_trial: Callable[[float | BackendError], object] = lambda result: None,
) -> BeamSummary:
    """Write run.output_path. Whatever ends it early, the queries that are done are there.

    `on_start` is told the number of queries, `on_query` and `on_trial` what gets done. Raises
    PointerRLError, before the first trial, for anything that is missing or does not fit, and
    InputError when every trial of the first window fails (a backend that cannot score).
    """
    check_writable(run.output_path, overwrite=run.overwrite)
    open_writer(run.output_path).discard()
    workbench = Workbench(run.trials)
    config, queries, pool = run.config, workbench.queries, workbench.dataset.pool
    if not any(query.answers for query in queries):
        raise InputError(f"dataset {workbench.dataset.name}: no query has annotators' answers")
    allowed = AllowedRows(pool)
    allowed.check(queries, config.shots)
    space = similarity_space(workbench, queries, config.sampler, config.encoder)
    sub_pools = SubPools(allowed, config.sub_pool, config.seed, space)
    _check_calls(run, sub_pools.draw(0, queries[0]))

    judge = workbench.judge()
    described = workbench.describe(queries, judge)
    meta = {
        "schema_version": SCHEMA_VERSION,
        # No answer is generated or judged here.
        **{key: value for key, value in described.items() if key not in ("decoding", "metric")},
        **asdict(config),
        "similarity": None if space is None else space.pool.encoder,
    }
    summary = BeamSummary()

    def count(result: float | BackendError) -> None:
        summary.add_trial(result)
        on_trial(result)

    on_start(len(queries))
    with _kept(open_writer(run.output_path, meta), summary) as writer:
        for window in _windows(run, queries, sub_pools, workbench.backend):
            found = search(
                [query for query, _ in window],
                [sub_pool.rows for _, sub_pool in window],
                pool,
                AnswerScorer(judge.prompt, judge.backend),
                shots=config.shots,
                beam_size=config.beam_size,
                on_trial=count,
            )
            if summary.failed == summary.trials:
                raise InputError(
                    f"not one of {summary.trials:,} trials has a score, and beams are made of "
                    f"scores; the first: {summary.first_failure}"
                )
            for (query, sub_pool), each in zip(window, found, strict=True):
                summary.add(each)
                if each is not None:
                    rows = None if sub_pool.is_whole else sub_pool.rows
                    about, excluded = describe_query(query), allowed.excluded(query)
                    writer.write(query.id, to_beam_record(about, each.beams, rows, excluded))
                on_query()
    summary.not_begun = len(queries) - summary.queries - summary.left_out
    summary.asked, summary.from_store = workbench.backend.asked, workbench.backend.hits
    return summary


@contextmanager
def _kept(writer: RecordWriter, summary: BeamSummary) -> Iterator[RecordWriter]:
    """The writer of a file that keeps the queries that were written, if the run is interrupted."""
    try:
        yield writer
    except BaseException:
        if not summary.queries:
            writer.discard()
        raise
    finally:
        writer.close()


def _most_trials(run: BeamRun, sub_pool: SubPool) -> int:
    return most_trials(len(sub_pool.rows), run.config.shots, run.config.beam_size)


def _check_calls(run: BeamRun, first: SubPool) -> None:
    most = _most_trials(run, first)
    if run.max_calls is not None and most > run.max_calls:
        raise InputError(
            f"--max-calls {run.max_calls}: one query may take {most:,} trials; allow that many, or "
            "take a smaller --sub-pool or --beam-size"
        )


def _windows(
    run: BeamRun, queries: Sequence[Example], sub_pools: SubPools, backend: StoredBackend
) -> Iterator[list[tuple[Example, SubPool]]]:
    """Queries with their sub-pools, so many together as the backend should see and may be asked.

    Each window begins when the one before is done, and ends before `max_calls` could be exceeded.
    """
    waiting = deque(enumerate(queries))
    drawn: SubPool | None = None  # of the first that waits
    while waiting:
        window: list[tuple[Example, SubPool]] = []
        together = 0
        left = math.inf if run.max_calls is None else run.max_calls - backend.asked
        while waiting:
            drawn = drawn or sub_pools.draw(*waiting[0])
            most = _most_trials(run, drawn)
            together += 1 + len(drawn.rows) * (run.config.beam_size if run.config.shots > 1 else 1)
            if most > left or (window and together > TOGETHER):
                break
            left -= most
            window.append((waiting.popleft()[1], drawn))
            drawn = None
        if not window:
            return
        yield window
