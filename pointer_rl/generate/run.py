"""A run of `pointer-rl generate`: from names and files to a file of RL data."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import pointer_rl_schemas
from pointer_rl.datasets.leakage import AllowedRows
from pointer_rl.errors import InputError
from pointer_rl.generate.summary import Summary
from pointer_rl.records.formats import open_writer, stream_records
from pointer_rl.records.provenance import Change
from pointer_rl.records.shards import Shard
from pointer_rl.selectors import SelectorPolicy
from pointer_rl.selectors.bundle import encoder_of
from pointer_rl.session.candidates import CandidateJob
from pointer_rl.session.journal import Journal, earlier_meta, locked_run
from pointer_rl.session.observer import Observer
from pointer_rl.session.proposing import Dedup
from pointer_rl.session.resolve import NoPolicy, describe_policy, selector_entries
from pointer_rl.session.session import PluginRef, Session, SessionOptions
from pointer_rl.session.windows import Budget, affordable, complete
from pointer_rl.types import Example, Pool

log = logging.getLogger(__name__)


DEFAULT_GENERATORS = tuple(map(PluginRef, ("beam", "retrieval", "sample", "random")))


@dataclass(frozen=True, kw_only=True)
class GenerateRun:
    """Everything that decides a file of RL data."""

    output_path: Path
    """The file to write."""
    session: SessionOptions
    generators: Sequence[PluginRef] = DEFAULT_GENERATORS
    """In order of precedence: of two that propose a pointer, the first keeps it."""
    shots: int = 2
    """Demonstrations in a pointer."""
    any_length: bool = False
    """Propose shorter pointers too, the empty one included. If the policy can stop, generators
    always do."""
    seed: int = 0
    """Seed of everything that is drawn."""
    dedup: Dedup = "ordered"
    """Whether pointers with the same rows in another order are different candidates."""
    window: int | None = None
    """Queries proposed for and judged together; the last digits depend on it. By default as many as
    when the run began, or as the device needs (`Session.window`)."""
    score_answers: bool = False
    """Also record the probability of the annotators' answers (vqa_gt_prob)."""
    sft_ckpt: Path | None = None
    """Selector checkpoint; for a dataset with companions, a seeded one by default."""
    beam_data: Path | None = None
    """Only the queries of this beam file."""
    shard: Shard | None = None
    """Only this part of the queries."""
    max_calls: int | None = None
    """Trials that the backend may be asked at most; see `Budget`. Cached ones are free."""
    trials: int | None = None
    """Trials that the file may have, cached ones included: it ends with the last query that they
    suffice for. (`max_calls` ends a run, which is then continued.)"""
    max_seconds: float | None = None
    """No window is started after so many seconds."""
    overwrite: bool = False
    """Start over, whatever there is."""
    accept_changed: Collection[Change] = ()
    """What of the run may have changed since it began."""

    def __post_init__(self) -> None:
        if self.shots < 1:
            raise InputError(f"shots is {self.shots}: a pointer has at least one demonstration")
        if self.window is not None and self.window < 1:
            raise InputError(f"window is {self.window}: at least one query is asked at a time")
        if self.shard is not None and self.window is None:
            raise InputError(
                f"shard {self.shard}: give the same --window to all shards, such as --window 128, "
                "because the default depends on the machine"
            )


def prepare(
    run: GenerateRun, observer: Observer = Observer()
) -> tuple[CandidateJob, dict[str, Any]]:
    """The run's job and its `_meta`. Loads everything, cheapest first; the backend comes last.

    Raises PointerRLError for anything that is missing or does not fit.
    """
    earlier = earlier_meta(run.output_path, overwrite=run.overwrite)
    session = Session(run.session, observer, earlier)
    generators = {each.name: each for each in run.generators}
    configured = [each.configure("generator") for each in generators.values()]
    if not generators:
        raise InputError("no generator: ask for beams, samples, retrieval or random pointers")
    window = run.window or session.window
    queries = session.queries
    if run.beam_data is not None:
        queries = _named_by(run.beam_data, session.dataset.queries)[: run.session.limit]
    session.check_answers(queries)
    AllowedRows(session.dataset.pool).check(queries, run.shots)
    needing = [
        each.entry.name for each in configured if getattr(each.create(), "needs_embeddings", True)
    ]
    embedded = None
    if needing or run.sft_ckpt is not None:
        embedded = session.embeddings(queries, encoder_of(run.sft_ckpt), ", ".join(needing))
    policy: SelectorPolicy | NoPolicy = NoPolicy()
    if embedded is None:
        # Not numbers, so that whatever uses them in spite of what it says is noticed.
        pool = Pool(session.dataset.pool, torch.full((len(session.dataset.pool), 1), math.nan))
        embeddings = torch.full((len(queries), 1), math.nan)
    else:
        embeddings, pool = embedded
        policy = session.policy(run.sft_ckpt, pool, run.seed)
    job = CandidateJob(
        session=session,
        queries=queries,
        embeddings=embeddings,
        pool=pool,
        policy=policy,
        generators=generators,
        shots=run.shots,
        seed=run.seed,
        dedup=run.dedup,
        score_answers=run.score_answers,
        any_length=run.any_length,
    )
    described_policy = describe_policy(policy)
    if described_policy is not None and run.sft_ckpt is not None:
        described_policy["encoder"] = encoder_of(run.sft_ckpt).fingerprint
    meta = {
        "schema_version": pointer_rl_schemas.version("pointer_candidates"),
        **session.describe(
            queries,
            *(each.entry for each in configured),
            *selector_entries([policy]),
            embedded=embedded,
        ),
        "policy": described_policy,
        "generators": [each.describe() for each in configured],
        **job.described_shots,
        "seed": run.seed,
        "dedup": run.dedup,
        "window": window,
        "score_answers": run.score_answers,
    }
    if run.shard is not None:
        meta["shard"] = str(run.shard)
        rows = run.shard.rows(len(queries), window)
        if not rows:
            raise InputError(
                f"shard {run.shard}: no query is left for it, in windows of {window}: "
                "make fewer shards"
            )
        job = replace(job, queries=[queries[row] for row in rows], embeddings=embeddings[rows])
    return job, meta


def run_generate(run: GenerateRun, observer: Observer = Observer()) -> Summary:
    """Write run.output_path. However the run ends, the same run continues it.

    What is done is kept in the journal (`session/journal.py`) until everything is. Raises
    PointerRLError, before the first trial, for anything that is missing or does not fit, and for
    the journal or file of another run.
    """
    open_writer(run.output_path).discard()  # fails at once if it cannot be written
    with locked_run(run.output_path):
        return _generate(run, observer)


def _generate(run: GenerateRun, observer: Observer) -> Summary:
    job, meta = prepare(run, observer)
    backend = job.session.backend
    budget = Budget(
        max_calls=run.max_calls,
        max_seconds=run.max_seconds,
        calls=lambda: backend.asked,
        most_calls=job.most_calls,
        advice=", or start over with a smaller --window",
    )
    summary = Summary()
    ids = [query.id for query in job.queries]
    with Journal(
        run.output_path, meta, ids, overwrite=run.overwrite, accept=run.accept_changed
    ) as journal:
        waves = left = None
        if (trials := run.trials) is not None:
            if trials < job.most_trials:
                raise InputError(
                    f"{run.trials:,} trials do not suffice for a query, which may take "
                    f"{job.most_trials:,}"
                )
            waves = affordable(journal, trials, job.most_trials)

            def left() -> int:
                return max(0, trials - backend.asked - backend.hits)

        size = meta["window"]
        done = complete(summary, job, size, job.session, journal, budget, waves, left)
        deque(done, maxlen=0)
    summary.used, summary.cost = backend.used, backend.cost
    return summary


def _named_by(path: Path, queries: Sequence[Example]) -> Sequence[Example]:
    """The queries whose ids are the file's keys; if none is, those whose rows are (Lever-LM)."""
    keys = [key for key, _ in stream_records(path) if not key.startswith("_")]
    known = {query.id: query for query in queries}
    are_rows = not any(key in known for key in keys)
    if are_rows:
        known = {str(query.row): query for query in queries}
    unknown = [key for key in keys if key not in known]
    if unknown or not keys:
        what = f"no query {unknown[0]!r} in the dataset" if unknown else "it names no query"
        raise InputError(f"{path}: {what} ({len(keys) - len(unknown)} of {len(keys)} keys found)")
    if are_rows:
        log.warning("%s: its keys are not query ids; taken as rows of the queries", path)
    return [known[key] for key in keys]
