"""A run of `pointer-rl generate`: from names and files to a file of RL data."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pointer_rl.data.json_stream import stream_members
from pointer_rl.data.records import RecordWriter, to_record
from pointer_rl.errors import InputError
from pointer_rl.generate.inputs import dataset_embeddings, describe_policy, make_policy
from pointer_rl.generate.pipeline import GenerateConfig, generate
from pointer_rl.generate.proposing import AllowedRows
from pointer_rl.generate.summary import Summary
from pointer_rl.registry import Configured, registry
from pointer_rl.trials.judging import Judge
from pointer_rl.types import Dataset, Decoding, Example, Metric, Outcome, Pool

__all__ = ["GenerateRun", "Named", "run_generate"]

SCHEMA_VERSION = "1.0"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Named:
    """A plugin by its registered name, with values for its options."""

    name: str
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GenerateRun:
    """All that decides a file of RL data."""

    output_path: Path
    """The .json or .jsonl file to write."""
    dataset: Named
    backend: Named
    prompt: Named
    metric: Named
    generators: Sequence[Named]
    """In order of precedence: of two that propose a pointer, the first keeps it."""
    config: GenerateConfig = GenerateConfig()
    decoding: Decoding = Decoding()
    score_answers: bool = False
    """Also record the probability of the annotators' answers (vqa_gt_prob)."""
    sft_ckpt: Path | None = None
    """Selector checkpoint; for a dataset with companions, a seeded one by default."""
    query_emb: Path | None = None
    """Embeddings of the queries; for a dataset with companions, made on first use."""
    cand_emb: Path | None = None
    """Embeddings of the pool; likewise."""
    beam_data: Path | None = None
    """Only the queries of this beam file."""
    limit: int | None = None
    """Only the first so many of them."""
    device: str | None = None
    """Of the backend, where it has that option, and of the selector."""
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
    dataset_plugin = registry().configure("dataset", run.dataset.name, run.dataset.options)
    prompt = registry().configure("prompt", run.prompt.name, run.prompt.options)
    metric = registry().configure("metric", run.metric.name, run.metric.options)
    generators = {
        each.name: registry().configure("generator", each.name, each.options)
        for each in run.generators
    }
    if not generators:
        raise InputError("no generator: ask for beams, samples, retrieval or random pointers")

    dataset: Dataset = dataset_plugin.create()
    _check_ids(dataset.queries, f"dataset {dataset.name}")
    queries = _select(dataset.queries, run)
    judging: Metric = metric.create()
    _check_answers(queries, judging)
    # Checked before the backend loads: shots, its options, embeddings and selector.
    AllowedRows(dataset.pool).check(queries, run.config.shots)
    backend_plugin = _configure_backend(run, dataset)
    query_embeddings, pool_embeddings = dataset_embeddings(
        dataset, dataset_plugin, queries, run.query_emb, run.cand_emb
    )
    policy = make_policy(
        run.sft_ckpt, dataset, pool_embeddings.shape[1], run.config.seed, run.device
    )
    judge = Judge(
        prompt=prompt.create(),
        backend=backend_plugin.create(),
        metric=judging,
        decoding=run.decoding,
        score_answers=run.score_answers,
    )
    meta = {
        "schema_version": SCHEMA_VERSION,
        "pointer_rl_version": version("pointer-rl"),
        "dataset": {**dataset_plugin.describe(), **_describe_dataset(dataset, queries)},
        "backend": {
            **_describe_backend(backend_plugin, dataset),
            "fingerprint": judge.backend.fingerprint,
        },
        "prompt": prompt.describe(),
        "metric": {**metric.describe(), "version": judging.version},
        "decoding": asdict(run.decoding),
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
            Pool(dataset.pool, pool_embeddings),
            policy,
            {name: each.create() for name, each in generators.items()},
            judge,
            run.config,
            on_outcome,
        ):
            writer.write(
                judged.query.id,
                to_record(judged.query, judged.candidates, judging.normalise),
            )
            summary.add(judged)
            on_query()
    return summary


def _describe_dataset(dataset: Dataset, queries: Sequence[Example]) -> dict[str, Any]:
    pool_ids = json.dumps([example.id for example in dataset.pool])
    return {
        "num_queries": len(queries),
        "pool_size": len(dataset.pool),
        "pool_sha256": hashlib.sha256(pool_ids.encode()).hexdigest(),
        "shared_pool": dataset.pool is dataset.queries,
    }


def _describe_backend(plugin: Configured, dataset: Dataset) -> dict[str, Any]:
    """A companion's folder differs between machines; the same run must give the same bytes."""
    described = plugin.describe()
    companion = dataset.companions and dataset.companions.model
    if companion is not None and described["options"].get("model") == companion:
        described["options"]["model"] = f"companion of {dataset.name}"
    return described


# --- what is asked ------------------------------------------------------------------------------


def _check_writable(path: Path) -> None:
    """Open and discard: a folder that cannot be written is found before anything is loaded."""
    RecordWriter(path).discard()


def _check_ids(examples: Sequence[Example], where: str) -> None:
    seen: set[str] = set()
    for example in examples:
        if not example.id or example.id.startswith("_"):
            raise InputError(
                f"{where}: the query id {example.id!r} cannot be a key of RL data, where keys that "
                "begin with _ are no queries: give it another"
            )
        if example.id in seen:
            raise InputError(f"{where}: two queries have the id {example.id}")
        seen.add(example.id)


def _check_answers(queries: Sequence[Example], metric: Metric) -> None:
    """Raise InputError when not one of the queries can be judged (some: their trials fail)."""
    refusal = None
    for query in queries:
        try:
            metric.judge("", query.answers)
        except InputError as error:
            refusal = refusal or InputError(f"query {query.id}, like all others: {error}")
        else:
            return
    if refusal is not None:
        raise refusal


def _select(queries: Sequence[Example], run: GenerateRun) -> Sequence[Example]:
    if run.beam_data is not None:
        queries = _of_beam_data(queries, run.beam_data)
    return queries if run.limit is None else queries[: run.limit]


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


def _configure_backend(run: GenerateRun, dataset: Dataset) -> Configured:
    entry = registry().find("backend", run.backend.name)
    options = dict(run.backend.options)
    if run.device is not None and entry.has_option("device"):
        options.setdefault("device", run.device)
    alias = entry.aliases.get(run.backend.name, {})
    if entry.requires("model") and "model" not in options and "model" not in alias:
        if dataset.companions is None:
            raise InputError(
                f"backend {run.backend.name} needs a model for the dataset {dataset.name}: "
                "give --backend-opt model=FOLDER_OR_HUB_ID"
            )
        options["model"] = dataset.companions.model
    return registry().configure("backend", run.backend.name, options)
