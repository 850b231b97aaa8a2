"""Judging stored generations anew: another metric, another way to cut the answer out; no VLM call.

What a trial cost is its generation, and that is in the file (`vqa_raw_generation`). From it and
from the annotators' answers all the rest of an outcome follows, but for `vqa_gt_prob`, which the
model gave and which stays as it is.

No reward is written: it follows from the outcome by a formula, and whatever trains computes it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pointer_rl_schemas
from pointer_rl.errors import InputError, PointerRLError
from pointer_rl.records.closeness import edit_similarity, word_f1
from pointer_rl.records.convert import Rewriter
from pointer_rl.records.formats import open_writer, read_meta, stream_records
from pointer_rl.records.layouts import detect_layout, upgrade_record
from pointer_rl.registry import ConfiguredEntry, registry
from pointer_rl.types import Metric, PromptBuilder

__all__ = ["RescoreRun", "Rescored", "rescore_file"]

Record = dict[str, Any]
Answers = Sequence[str]


@dataclass(frozen=True, kw_only=True)
class RescoreRun:
    """All that decides what is written."""

    source: Path
    """RL data, of any layout and form."""
    output_path: Path
    """The .json, .jsonl or .parquet file to write."""
    metric: str | None = None
    """Name of the metric that judges; None: the one that `_meta` names, with its options."""
    metric_options: Mapping[str, object] = field(default_factory=dict)
    prompt: str | None = None
    """Name of the prompt builder whose `parse` cuts the answers out of the raw generations; None:
    the answers stay as they are."""
    prompt_options: Mapping[str, object] = field(default_factory=dict)
    overwrite: bool = False
    """Replace an existing output file."""


@dataclass
class Rescored:
    """What became of a file."""

    queries: int = 0
    judged: int = 0
    """Candidates that were judged anew."""
    failed: int = 0
    """Candidates whose evaluation had failed: left as they are."""
    answers: int = 0
    """Of those judged, whose answer changed."""
    became_right: int = 0
    became_wrong: int = 0
    accuracies: int = 0
    """Whose accuracy changed."""
    accuracy_before: float = 0.0
    """Sum of the recorded accuracies."""
    accuracy_after: float = 0.0
    other_normalisation: int = 0
    """With a `vqa_gt_prob` of answers that the new metric normalises to others."""


def rescore_file(run: RescoreRun) -> Rescored:
    """Judge the candidates of `run.source` anew and write them to `run.output_path`.

    All of it is written, or nothing. Raises InputError where the output exists (unless `overwrite`)
    or cannot be written, for what is no RL data, and where a query has no annotators' answers, a
    candidate no answer or no raw generation, or the metric cannot judge; PluginError for a name
    that is not registered.
    """
    if run.output_path.exists() and not run.overwrite:
        raise InputError(f"{run.output_path}: exists; remove it, or give --overwrite")
    meta = read_meta(run.source)
    metric = _metric(run, meta)
    parse = None
    if run.prompt is not None:
        parse = registry().configure("prompt", run.prompt, run.prompt_options)
    rescorer = _Rescorer(metric.create(), None if parse is None else parse.create())
    new_meta = _describe(run.source, meta, metric, rescorer.metric.version, parse)
    with open_writer(run.output_path, new_meta) as writer:
        rewriter = Rewriter(writer)
        for key, value in stream_records(run.source):
            where = f"{run.source}: {key!r}"
            if key.startswith("_"):
                if key != "_meta":
                    rewriter.add(where, key, value)
                continue
            try:
                record = rescorer.record(key, value)
            except PointerRLError as error:
                raise InputError(f"{where}: {error}") from error
            if record is not None:
                rewriter.add(where, key, record)
        rescorer.check(run.source)
    return rescorer.done


class _Rescorer:
    """Judges records, and counts what became of them."""

    def __init__(self, metric: Metric, prompt: PromptBuilder | None) -> None:
        self.metric = metric
        self.done = Rescored()
        self._prompt = prompt
        self._missing: dict[str, tuple[str, int]] = {}  # what → (the first place, how many)

    def record(self, key: str, value: Any) -> Record | None:
        """The record, judged anew; None where something that is needed is missing."""
        layout = detect_layout(value)
        if layout in ("beams", "beam"):
            raise InputError("beam data, which has no answers: generate RL data from it")
        record = upgrade_record(value, layout)
        self.done.queries += 1
        if all(candidate.get("eval_failed") for candidate in record["pointer_candidates"]):
            self.done.failed += len(record["pointer_candidates"])
            return record
        query = record.get("query")
        answers = query.get("gt_answers_raw") if isinstance(query, dict) else None
        if not isinstance(answers, list) or not all(isinstance(each, str) for each in answers):
            self._miss("query.gt_answers_raw", f"query {key!r}")
            return None
        normal = [self.metric.normalise(each) for each in answers]
        judge = _Judge(self.metric, answers, normal)
        recorded = record["query"].get("gt_answers_norm")
        if recorded is not None:
            record = {**record, "query": {**record["query"], "gt_answers_norm": normal}}
        other = isinstance(recorded, list) and Counter(map(str, recorded)) != Counter(normal)
        candidates = [
            self._candidate(candidate, judge, f"query {key!r}, candidate {index}", other)
            for index, candidate in enumerate(record["pointer_candidates"])
        ]
        return None if self._missing else {**record, "pointer_candidates": candidates}

    def check(self, source: Path) -> None:
        """Raise InputError where something was missing, or there was nothing at all."""
        for what, (first, count) in self._missing.items():
            raise InputError(f"{source}: {first} has no {what} ({count:,} in all have none)")
        if not self.done.queries:
            raise InputError(f"{source}: no query in it")

    def _candidate(self, candidate: Record, judge: _Judge, place: str, other: bool) -> Record:
        if candidate.get("eval_failed"):
            self.done.failed += 1
            return candidate
        wanted = "vqa_pred_answer" if self._prompt is None else "vqa_raw_generation"
        text = candidate.get(wanted)
        if not isinstance(text, str):
            self._miss(wanted, place)
            return candidate
        new = judge.outcome(text if self._prompt is None else self._prompt.parse(text))
        self._count(candidate, new, other)
        kept = {key: value for key, value in candidate.items() if key not in _OF_THE_OLD_METRIC}
        finer = {key: new.pop(key) for key in _FINER}
        return {**kept, **new, **{key: finer[key] for key in _FINER if key in candidate}}

    def _count(self, old: Record, new: Record, other_normalisation: bool) -> None:
        done = self.done
        done.judged += 1
        done.answers += old.get("vqa_pred_answer") != new["vqa_pred_answer"]
        done.became_right += not old.get("vqa_correct") and new["vqa_correct"]
        done.became_wrong += bool(old.get("vqa_correct")) and not new["vqa_correct"]
        accuracy = old.get("vqa_acc_score")
        done.accuracies += accuracy != new["vqa_acc_score"]
        done.accuracy_before += accuracy if isinstance(accuracy, (int, float)) else 0.0
        done.accuracy_after += new["vqa_acc_score"]
        done.other_normalisation += other_normalisation and old.get("vqa_gt_prob") is not None

    def _miss(self, what: str, place: str) -> None:
        first, count = self._missing.get(what, (place, 0))
        self._missing[what] = (first, count + 1)


_OF_THE_OLD_METRIC = ("vqa_eval_mode",)
"""What Lever-Plus says of how it judged."""
_FINER = ("vqa_rel_token_f1", "vqa_rel_edit_sim")
"""The parts of `vqa_rel_score`, which are kept true where a file has them."""


class _Judge:
    """The outcomes of one query's answers: candidates mostly give the same few."""

    def __init__(self, metric: Metric, answers: Answers, normal: Answers) -> None:
        self._metric = metric
        self._answers = answers
        self._normal = set(normal)
        self._known: dict[str, Record] = {}

    def outcome(self, answer: str) -> Record:
        """The fields of a candidate that an answer decides. A new dict each time."""
        if answer not in self._known:
            judgement = self._metric.judge(answer, self._answers)
            normal = self._metric.normalise(answer)
            words, edits = word_f1(normal, self._normal), edit_similarity(normal, self._normal)
            self._known[answer] = {
                "vqa_pred_answer": answer,
                "vqa_correct": int(judgement.correct),
                "vqa_acc_score": judgement.accuracy,
                "vqa_rel_score": max(words, edits),
                "vqa_rel_token_f1": words,
                "vqa_rel_edit_sim": edits,
            }
        return dict(self._known[answer])


# --- provenance ---------------------------------------------------------------------------------


def _metric(run: RescoreRun, meta: Mapping[str, Any] | None) -> ConfiguredEntry:
    if run.metric is not None:
        return registry().configure("metric", run.metric, run.metric_options)
    told = meta.get("metric") if meta is not None and "schema_version" in meta else None
    name, options = (
        (told.get("name"), told.get("options", {})) if isinstance(told, dict) else (None, None)
    )
    if not isinstance(name, str) or not isinstance(options, dict):
        raise InputError(f"{run.source}: its _meta names no metric: give --metric")
    return registry().configure("metric", name, options)


def _describe(
    source: Path,
    meta: Mapping[str, Any] | None,
    metric: ConfiguredEntry,
    metric_version: str,
    parse: ConfiguredEntry | None,
) -> dict[str, Any]:
    """The new `_meta`: what was asked stays, what judged is named, and what it was before."""
    with source.open("rb") as file:
        origin = {"file": source.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    new: dict[str, Any]
    if meta is not None and "schema_version" in meta:
        before = {key: meta[key] for key in ("metric", "parse") if key in meta}
        new = {**meta, "rescored_from": {**origin, **before}}
    else:
        before = {} if meta is None else {"meta": meta}
        new = {
            "schema_version": pointer_rl_schemas.version("pointer_candidates"),
            "pointer_rl_version": version("pointer-rl"),
            "rescored_from": {**origin, **before},
        }
    new["metric"] = {**metric.describe(), "version": metric_version}
    if parse is not None:
        new["parse"] = parse.describe()
    return new
