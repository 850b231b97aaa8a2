"""A run of `pointer-rl generate`: from names and files to a file of RL data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pointer_rl.data.json_stream import stream_members
from pointer_rl.data.records import RecordWriter, to_record
from pointer_rl.errors import InputError
from pointer_rl.generate.pipeline import GenerateConfig, generate
from pointer_rl.generate.proposing import AllowedRows
from pointer_rl.generate.summary import Summary
from pointer_rl.registry import registry
from pointer_rl.trials.inputs import describe_policy
from pointer_rl.trials.workbench import Named, TrialOptions, Workbench
from pointer_rl.types import Example, Outcome

__all__ = ["GenerateRun", "run_generate"]

SCHEMA_VERSION = "1.0"
log = logging.getLogger(__name__)


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
    overwrite: bool = False
    """Replace an existing output file."""


def run_generate(
    run: GenerateRun,
    on_start: Callable[[int], object] = lambda queries: None,
    on_query: Callable[[], object] = lambda: None,
    on_outcome: Callable[[Outcome], object] = lambda outcome: None,
) -> Summary:
    """Write run.output_path. Whatever ends it early, the queries that are done are there.

    `on_start` is told the number of queries, `on_query` and `on_outcome` what gets done.
    Raises PointerRLError, before the first trial, for anything that is missing or does not fit.
    """
    if run.output_path.exists() and not run.overwrite:
        raise InputError(f"{run.output_path}: exists; remove it, or give --overwrite")
    _check_writable(run.output_path)
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
    # Checked before the backend loads: answers, shots, embeddings and selector.
    workbench.check_answers(queries)
    AllowedRows(workbench.dataset.pool).check(queries, run.config.shots)
    query_embeddings, pool = workbench.embeddings(queries)
    policy = workbench.policy(run.sft_ckpt, pool.embeddings.shape[1], run.config.seed)
    judge = workbench.judge(score_answers=run.score_answers)
    meta = {
        "schema_version": SCHEMA_VERSION,
        **workbench.describe(queries, judge),
        "policy": describe_policy(policy),
        "generators": [each.describe() for each in generators.values()],
        **asdict(run.config),
    }
    summary = Summary()
    on_start(len(queries))
    with RecordWriter(run.output_path, meta) as writer:
        for judged in generate(
            queries,
            query_embeddings,
            pool,
            policy,
            {name: each.create() for name, each in generators.items()},
            judge,
            run.config,
            on_outcome,
        ):
            writer.write(
                judged.query.id,
                to_record(
                    judged.query, judged.candidates, workbench.metric.normalise, judged.excluded
                ),
            )
            summary.add(judged)
            on_query()
    summary.from_store = workbench.backend.hits
    summary.used, summary.cost = workbench.backend.used, workbench.backend.cost
    return summary


# --- what is asked ------------------------------------------------------------------------------


def _check_writable(path: Path) -> None:
    """Open and discard: a folder that cannot be written is found before anything is loaded."""
    RecordWriter(path).discard()


def _of_beam_data(queries: Sequence[Example], path: Path) -> Sequence[Example]:
    """The queries whose ids are the file's keys or, where none is (in ancestors'), whose rows."""
    keys = [member.key for member in stream_members(path) if not member.key.startswith("_")]
    by_id = {query.id: query for query in queries}
    if not any(key in by_id for key in keys):
        by_id = {str(query.row): query for query in queries}
        log.warning("%s: its keys are no query ids; taken as rows of the queries", path)
    unknown = [key for key in keys if key not in by_id]
    if len(set(keys)) < len(keys):
        raise InputError(f"{path}: names a query twice; keep one of its entries")
    if unknown or not keys:
        what = f"no query {unknown[0]!r} in the dataset" if unknown else "it names no query"
        raise InputError(f"{path}: {what} ({len(keys) - len(unknown)} of {len(keys)} keys found)")
    return [by_id[key] for key in keys]
