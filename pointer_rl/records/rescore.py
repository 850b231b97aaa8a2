"""Judge recorded generations again with another metric or another answer extraction, without a VLM.

A trial's cost is its generation, which the file holds (`vqa_raw_generation`). The rest of an
outcome follows from the generation and the annotators' answers, except `vqa_gt_prob`, which came
from the model and stays as it is. Rewards are not in the file: training computes them from the
outcomes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pointer_rl_schemas
from pointer_rl.errors import InputError, PointerRLError
from pointer_rl.files import check_writable, locked, sha256
from pointer_rl.records.closeness import edit_similarity, word_f1
from pointer_rl.records.convert import Rewriter
from pointer_rl.records.fields import has_failed
from pointer_rl.records.formats import open_writer, read_meta, stream_records
from pointer_rl.records.layouts import BEAM_LAYOUTS, detect_layout, upgrade_record
from pointer_rl.records.provenance import PLUGINS
from pointer_rl.registry import ConfiguredEntry, code_of, registry
from pointer_rl.types import Metric, PromptBuilder

Record = dict[str, Any]


@dataclass
class Rescored:
    """Counts of what changed in a file."""

    queries: int = 0
    judged: int = 0
    """Candidates that were judged again."""
    failed: int = 0
    """Candidates whose trial had failed. They stay as they are."""
    answers: int = 0
    """Judged candidates whose answer changed."""
    became_right: int = 0
    became_wrong: int = 0
    accuracies: int = 0
    """Judged candidates whose accuracy changed."""
    accuracy_before: float = 0.0
    """Sum of the recorded accuracies."""
    accuracy_after: float = 0.0
    other_normalisation: int = 0
    """Candidates with a `vqa_gt_prob` of answers that the new metric normalises differently."""


def rescore_file(
    source: Path,
    output_path: Path,
    *,
    metric: str | None = None,
    metric_options: Mapping[str, object] | None = None,
    prompt: str | None = None,
    prompt_options: Mapping[str, object] | None = None,
    overwrite: bool = False,
) -> Rescored:
    """Judge the candidates of `source`, in any layout and container, and write `output_path`.

    `metric` defaults to the one that `_meta` names, with its options. The `parse` of the prompt
    builder `prompt` extracts the answers from the raw generations; by default the recorded answers
    stay. The output is written completely or not at all.

    Raises InputError if the output exists (unless `overwrite`) or cannot be written, if `source` is
    not RL data, if a query has no annotators' answers, if a candidate has no answer or raw
    generation, and if the metric cannot judge; PluginError for a name that is not registered.
    """
    with locked(output_path):
        check_writable(output_path, overwrite=overwrite)
        meta = read_meta(source)
        judge = _configure_metric(source, meta, metric, metric_options)
        parse = None if prompt is None else registry().configure("prompt", prompt, prompt_options)
        return _rescore(source, output_path, meta, judge, parse)


def _rescore(
    source: Path,
    output_path: Path,
    meta: Mapping[str, Any] | None,
    judge: ConfiguredEntry,
    parse: ConfiguredEntry | None,
) -> Rescored:
    rescorer = _Rescorer(judge.create(), None if parse is None else parse.create())
    new_meta = _describe(source, meta, judge, rescorer.metric.version, parse)
    with open_writer(output_path, new_meta) as writer:
        rewriter = Rewriter(writer)
        for key, value in stream_records(source):
            where = f"{source}: {key!r}"
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
        rescorer.check(source)
    return rescorer.done


class _Rescorer:
    """Judges records and counts the changes."""

    def __init__(self, metric: Metric, prompt: PromptBuilder | None) -> None:
        self.metric = metric
        self.done = Rescored()
        self._prompt = prompt
        self._missing: dict[str, tuple[str, int]] = {}  # field → (first place, number of places)

    def record(self, key: str, value: Any) -> Record | None:
        """Return the record with new judgements; None if a field that this needs is missing."""
        layout = detect_layout(value)
        if layout in BEAM_LAYOUTS:
            raise InputError("beam data, which has no answers: generate RL data from it")
        record = upgrade_record(value, layout)
        self.done.queries += 1
        if all(map(has_failed, record["pointer_candidates"])):
            self.done.failed += len(record["pointer_candidates"])
            return record
        query = record.get("query")
        answers = query.get("gt_answers_raw") if isinstance(query, dict) else None
        if not isinstance(answers, list) or not all(isinstance(each, str) for each in answers):
            self._miss("query.gt_answers_raw", f"query {key!r}")
            return None
        normalised = [self.metric.normalise(each) for each in answers]
        recorded = record["query"].get("gt_answers_norm")
        if recorded is not None:
            record = {**record, "query": {**record["query"], "gt_answers_norm": normalised}}
        other = isinstance(recorded, list) and Counter(map(str, recorded)) != Counter(normalised)
        judge = _judge(self.metric, answers, set(normalised))
        candidates = [
            self._candidate(candidate, judge, f"query {key!r}, candidate {index}", other)
            for index, candidate in enumerate(record["pointer_candidates"])
        ]
        return None if self._missing else {**record, "pointer_candidates": candidates}

    def check(self, source: Path) -> None:
        """Raise InputError if a field was missing or the file had no query."""
        for what, (first, count) in self._missing.items():
            raise InputError(f"{source}: {first} has no {what} ({count:,} in all have none)")
        if not self.done.queries:
            raise InputError(f"{source}: no query in it")

    def _candidate(
        self, candidate: Record, judge: Callable[[str], Record], place: str, other: bool
    ) -> Record:
        if has_failed(candidate):
            self.done.failed += 1
            return candidate
        wanted = "vqa_pred_answer" if self._prompt is None else "vqa_raw_generation"
        text = candidate.get(wanted)
        if not isinstance(text, str):
            self._miss(wanted, place)
            return candidate
        new = judge(text if self._prompt is None else self._prompt.parse(text))
        self._count(candidate, new, other)
        kept = {key: value for key, value in candidate.items() if key != "vqa_eval_mode"}
        return kept | {
            key: value for key, value in new.items() if key not in _IF_RECORDED or key in candidate
        }

    def _count(self, old: Record, new: Record, other_normalisation: bool) -> None:
        done = self.done
        done.judged += 1
        done.answers += old.get("vqa_pred_answer") != new["vqa_pred_answer"]
        done.became_right += not old.get("vqa_correct") and new["vqa_correct"]
        done.became_wrong += bool(old.get("vqa_correct")) and not new["vqa_correct"]
        accuracy = old.get("vqa_acc_score")
        done.accuracies += accuracy != new["vqa_acc_score"]
        if isinstance(accuracy, (int, float)) and 0 <= accuracy <= 1:
            done.accuracy_before += accuracy
        done.accuracy_after += new["vqa_acc_score"]
        done.other_normalisation += other_normalisation and old.get("vqa_gt_prob") is not None

    def _miss(self, what: str, place: str) -> None:
        first, count = self._missing.get(what, (place, 0))
        self._missing[what] = (first, count + 1)


_IF_RECORDED = ("vqa_rel_token_f1", "vqa_rel_edit_sim")
"""The parts of `vqa_rel_score`. They are updated, but not added."""


def _judge(metric: Metric, answers: list[str], normalised: set[str]) -> Callable[[str], Record]:
    """Return a function from an answer to a query to the fields of an outcome that follow from it.

    It keeps its results, because most candidates of a query give the same few answers.
    """

    @cache
    def judge(answer: str) -> Record:
        judgement = metric.judge(answer, answers)
        own = metric.normalise(answer)
        words = max((word_f1(own, each) for each in normalised), default=0.0)
        edits = max((edit_similarity(own, each) for each in normalised), default=0.0)
        return {
            "vqa_pred_answer": answer,
            "vqa_correct": int(judgement.correct),
            "vqa_acc_score": judgement.accuracy,
            "vqa_rel_score": max(words, edits),
            "vqa_rel_token_f1": words,
            "vqa_rel_edit_sim": edits,
        }

    return judge


# --- provenance ---------------------------------------------------------------------------------


def _configure_metric(
    source: Path,
    meta: Mapping[str, Any] | None,
    name: str | None,
    options: Mapping[str, object] | None,
) -> ConfiguredEntry:
    if name is None:
        named = meta.get("metric") if meta is not None and "schema_version" in meta else None
        if isinstance(named, dict):
            name, options = named.get("name"), named.get("options", {})
        if not isinstance(name, str) or not isinstance(options, dict):
            raise InputError(f"{source}: its _meta names no metric: give --metric")
    return registry().configure("metric", name, options)


def _describe(
    source: Path,
    meta: Mapping[str, Any] | None,
    metric: ConfiguredEntry,
    metric_version: str,
    parse: ConfiguredEntry | None,
) -> dict[str, Any]:
    """Return the new `_meta`: it names the new metric, the source file, and its metric."""
    origin = {"file": source.name, "sha256": sha256(source)}
    if meta is not None and "schema_version" in meta:
        before = {key: meta[key] for key in ("metric", "parse") if key in meta}
        new = dict(meta)
    else:
        before = {} if meta is None else {"meta": meta}
        new = {
            "schema_version": pointer_rl_schemas.version("pointer_candidates"),
            "pointer_rl_version": version("pointer-rl"),
        }
    new["rescored_from"] = {**origin, **before}
    new["metric"] = {**metric.describe(), "version": metric_version}
    if parse is not None:
        new["parse"] = parse.describe()
    code = code_of([metric.entry, *([] if parse is None else [parse.entry])])
    if code:
        new["rescored_from"][PLUGINS] = new.get(PLUGINS, {})
        new[PLUGINS] = {**new.get(PLUGINS, {}), **code}
    return new
