"""A run of `pointer-rl generate`: from names and files to a file of RL data."""

from __future__ import annotations

import contextlib
import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pointer_rl.datasets.embed import digest_examples
from pointer_rl.datasets.embeddings import digest_vectors
from pointer_rl.datasets.examples import KeyIndex, select, values
from pointer_rl.datasets.leakage import AllowedRows
from pointer_rl.errors import InputError
from pointer_rl.generate.pipeline import GenerateConfig, Generation, Proposed
from pointer_rl.generate.summary import Summary
from pointer_rl.records.formats import open_writer, stream_members
from pointer_rl.records.records import to_record
from pointer_rl.records.shards import Shard
from pointer_rl.registry import registry
from pointer_rl.session.journal import Journal
from pointer_rl.session.judge import Judge
from pointer_rl.session.resolve import describe_policy
from pointer_rl.session.session import Named, TrialOptions, Workbench
from pointer_rl.types import Example, Outcome, Pool

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["GenerateRun", "Limits", "Prepared", "prepare", "run_generate"]

SCHEMA_VERSION = "1.0"
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a run may spend before it stops; the same run goes on from there."""

    max_calls: int | None = None
    """Trials put to the backend: those that the store answers are free."""
    max_seconds: float | None = None
    """No window of queries is begun after that."""


@dataclass(frozen=True, kw_only=True)
class GenerateRun:
    """All that decides a file of RL data."""

    output_path: Path
    """The .json or .jsonl file to write."""
    trials: TrialOptions
    generators: Sequence[Named]
    """In order of precedence: of two that propose a pointer, the first keeps it."""
    config: GenerateConfig = GenerateConfig()
    score_answers: bool = False
    """Also record the probability of the annotators' answers (vqa_gt_prob)."""
    sft_ckpt: Path | None = None
    """Selector checkpoint; for a dataset with companions, a seeded one by default."""
    beam_data: Path | None = None
    """Only the queries of this beam file."""
    shard: Shard | None = None
    """Only these queries of all."""
    limits: Limits = Limits()
    overwrite: bool = False
    """Start anew, whatever there is."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run with all that it needs loaded."""

    workbench: Workbench
    queries: Sequence[Example]
    """Those of the shard."""
    generation: Generation
    judge: Judge
    meta: dict[str, Any]


def prepare(run: GenerateRun) -> Prepared:
    """Load what the run names, from the cheapest to the dearest; the backend last.

    Raises PointerRLError for anything that is missing or does not fit.
    """
    workbench = Workbench(run.trials)
    generators = {
        each.name: registry().configure("generator", each.name, each.options)
        for each in run.generators
    }
    if not generators:
        raise InputError("no generator: ask for beams, samples, retrieval or random pointers")

    queries = workbench.queries
    if run.beam_data is not None:
        queries = _of_beam_data(workbench.dataset.queries, run.beam_data)[: run.trials.limit]
    workbench.check_answers(queries)
    allowed = AllowedRows(workbench.dataset.pool)
    allowed.check(queries, run.config.shots)
    query_embeddings, pool = workbench.embeddings(queries)
    policy = workbench.policy(run.sft_ckpt, pool.embeddings.shape[1], run.config.seed)
    judge = workbench.judge(score_answers=run.score_answers)
    meta = {
        "schema_version": SCHEMA_VERSION,
        **workbench.describe(queries, judge),
        "inputs": _digests(queries, query_embeddings, pool),
        "policy": describe_policy(policy),
        "generators": [each.describe() for each in generators.values()],
        **asdict(run.config),
        "score_answers": run.score_answers,
    }
    if run.shard is not None:
        meta["shard"] = str(run.shard)
        rows = run.shard.rows(len(queries), run.config.window)
        if not rows:
            raise InputError(
                f"shard {run.shard}: no query is left for it, of windows of {run.config.window}: "
                "make fewer shards"
            )
        queries, query_embeddings = select(queries, rows), query_embeddings[rows]
    generation = Generation(
        queries,
        query_embeddings,
        pool,
        allowed,
        policy,
        {name: each.create() for name, each in generators.items()},
        judge,
        run.config,
    )
    return Prepared(
        workbench=workbench, queries=queries, generation=generation, judge=judge, meta=meta
    )


def _digests(queries: Sequence[Example], embeddings: Tensor, pool: Pool) -> dict[str, str]:
    """What the run reads, by content; images, which may be many gigabytes, by name alone."""
    return {
        "queries_sha256": digest_examples(queries),
        "pool_sha256": digest_examples(pool.examples),
        "query_embeddings_sha256": digest_vectors(embeddings),
        "pool_embeddings_sha256": digest_vectors(pool.embeddings),
    }


def run_generate(
    run: GenerateRun,
    on_start: Callable[[int, int], object] = lambda queries, done: None,
    on_query: Callable[[], object] = lambda: None,
    on_outcome: Callable[[Outcome], object] = lambda outcome: None,
) -> Summary:
    """Write run.output_path. Whatever ends it early, the same run goes on from there.

    What is done stands in the journal (`generate/journal.py`) until all is. `on_start` is told the
    number of queries and how many are done already, `on_query` and `on_outcome` what gets done.
    Raises PointerRLError, before the first trial, for anything that is missing or does not fit,
    and for a journal or a file of another run.
    """
    begun = time.monotonic()
    open_writer(run.output_path).discard()  # found before anything is loaded
    ready = prepare(run)
    backend = ready.workbench.backend
    summary = Summary()
    output, meta, queries = run.output_path, ready.meta, ready.queries
    with _settled(), Journal(output, meta, queries, overwrite=run.overwrite) as journal:
        on_start(len(queries), len(journal))
        counted = np.zeros(len(queries), dtype=bool)
        for window in ready.generation.windows():
            todo = _to_do(window, journal, stored=run.trials.store is not None)
            if not todo:
                continue
            summary.stopped_by = _reached(run.limits, begun)
            if summary.stopped_by:
                break
            proposed = [each for each in ready.generation.propose(window) if each.index in todo]
            if run.limits.max_calls is not None:
                proposed = _affordable(proposed, run.limits.max_calls - backend.asked, ready)
            judged = ready.generation.judge(proposed, on_outcome)
            normalise = ready.workbench.metric.normalise
            journal.append(
                [
                    (to.index, to_record(each.query, each.candidates, normalise, each.excluded))
                    for to, each in zip(proposed, judged, strict=True)
                ]
            )
            for each in judged:
                summary.add(each.candidates)
                on_query()
            counted[[each.index for each in proposed]] = True
            if len(proposed) < len(todo):
                summary.stopped_by = "--max-calls"
                break
        for record in journal.records(~counted):
            summary.add(record)
        summary.left = journal.left
        if not summary.left:
            journal.finish()
    summary.asked, summary.from_store = backend.asked, backend.hits
    summary.used, summary.cost = backend.used, backend.cost
    return summary


@contextlib.contextmanager
def _settled() -> Iterator[None]:
    """Garbage collections leave alone what is loaded by now.

    Going through a model, its libraries and a dataset again and again is a tenth of the time of a
    run that the store answers.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _to_do(window: range, journal: Journal, *, stored: bool) -> set[int]:
    """The queries of a window that have to be asked.

    Without a store, a window that was cut is asked again whole: in the same batches.
    """
    if not stored and not all(map(journal.has, window)):
        return set(window)
    return {index for index in window if not journal.is_done(index)}


def _reached(limits: Limits, begun: float) -> str | None:
    if limits.max_seconds is not None and time.monotonic() - begun >= limits.max_seconds:
        return "--max-seconds"
    return None


def _affordable(proposed: list[Proposed], calls: int, ready: Prepared) -> list[Proposed]:
    """As many of the first of these queries as the backend need not be asked more trials for."""
    for place, each in enumerate(proposed):
        requests = ready.judge.requests(ready.generation.trials(each))
        calls -= len(ready.workbench.backend.sort_out(requests)[1])
        if calls < 0:
            return proposed[:place]
    return proposed


def _of_beam_data(queries: Sequence[Example], path: Path) -> Sequence[Example]:
    """The queries whose ids are the file's keys or, where none is (in ancestors'), whose rows."""
    keys = [member.key for member in stream_members(path) if not member.key.startswith("_")]
    by_id = KeyIndex(values(queries, "id"), lambda row: queries[row].id)
    found = [by_id.rows(key) for key in keys]
    are_rows = not any(found)
    if are_rows:
        given = (str(query.row) for query in queries)
        by_row = KeyIndex(given, lambda row: str(queries[row].row))
        found = [by_row.rows(key) for key in keys]
    unknown = [key for key, rows in zip(keys, found, strict=True) if not rows]
    if len(set(keys)) < len(keys):
        raise InputError(f"{path}: names a query twice; keep one of its entries")
    if unknown or not keys:
        what = f"no query {unknown[0]!r} in the dataset" if unknown else "it names no query"
        raise InputError(f"{path}: {what} ({len(keys) - len(unknown)} of {len(keys)} keys found)")
    if are_rows:
        log.warning("%s: its keys are no query ids; taken as rows of the queries", path)
    return select(queries, (rows[0] for rows in found))
