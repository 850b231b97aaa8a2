"""A file of trials as the page shows it: what it counts, its queries, its dataset."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pointer_rl.datasets.recorded import open_recorded
from pointer_rl.errors import InputError, PointerRLError, first_line
from pointer_rl.records.formats import read_meta
from pointer_rl.report.evaluations import Evaluation
from pointer_rl.report.gallery import Sample, share_out
from pointer_rl.report.inputs import Input
from pointer_rl.report.tally import (
    FEWEST_QUERIES,
    JOINT_LEVEL,
    Mean,
    MethodTally,
    RowLift,
    Tally,
    method_name,
)
from pointer_rl.report.trials import QueryTrials, read_trials
from pointer_rl.types import Dataset, Example
from pointer_rl.validate import Report as Validation
from pointer_rl.validate import ValidationConfig, validate_file

FINDINGS = 20
"""Findings of validate that are shown of a file."""
_RANKED = 8
"""Rows that help, and rows that hurt."""


class Datasets:
    """The datasets of the files, each opened once; or why one could not be opened."""

    def __init__(self, name: str | None, options: Mapping[str, object]) -> None:
        """`name` and `options` are the user's, if any; see `recorded_dataset`."""
        self._name, self._options = name, options
        self._by_description: dict[str, int | None] = {}
        self._reason_of: dict[str, str] = {}
        self.opened: list[Dataset] = []
        self.reasons: dict[str, str] = {}
        """Name of a file → why its dataset is not known."""

    def number_of(self, described: Mapping[str, Any], input: Input) -> int | None:
        """The number of the dataset that a file describes; None if it cannot be opened.

        Raises PointerRLError if the user named the dataset and it cannot be opened.
        """
        key = repr(described)
        if key not in self._by_description:
            try:
                dataset = open_recorded(described, input.path, self._name, self._options)
                self.opened.append(dataset)
                self._by_description[key] = len(self.opened) - 1
            except PointerRLError as error:
                if self._name is not None or self._options:
                    raise
                self._by_description[key] = None
                self._reason_of[key] = first_line(error)
        if key in self._reason_of:
            self.reasons[input.name] = self._reason_of[key]
        return self._by_description[key]


@dataclass
class TrialFile:
    """A file of trials, or an evaluation."""

    input: Input
    meta: Mapping[str, Any]
    """Its `_meta`; the settings of an evaluation."""
    dataset_number: int | None
    dataset: Dataset | None
    tally: Tally
    sample: Sample
    evaluation: Evaluation | None = None
    validation: Validation | None = None
    unread: str | None = None
    """Why an evaluation has no trials; None if it has."""
    unusable: list[str] = field(default_factory=list)
    """Ids of queries whose records cannot be counted: they are in no figure."""

    @property
    def highlight(self) -> str | None:
        """The method to look at first: an evaluation's primary arm."""
        found = self.evaluation
        return None if found is None else method_name(found.primary, found.primary_shots)

    @property
    def methods(self) -> list[tuple[str, MethodTally]]:
        """Methods of RL data; of an evaluation, the arms at the primary's shots."""
        if self.evaluation is None:
            return list(self.tally.methods.items())
        shots = self.evaluation.primary_shots
        arms = dict.fromkeys(str(row["arm"]) for row in self.evaluation.content["rows"])
        names = [method_name(arm, shots) for arm in arms]
        return [(name, self.tally.methods[name]) for name in names if name in self.tally.methods]

    # --- demonstrations ---

    @cached_property
    def _lifts(self) -> list[RowLift]:
        return self.tally.ranked_lifts()

    @property
    def ranked(self) -> list[tuple[str, list[RowLift]]]:
        """Title and rows of the tables of rows that help and of rows that hurt."""
        helps = [each for each in self._lifts if each.lift > 0][:_RANKED]
        hurts = [each for each in reversed(self._lifts) if each.lift < 0][:_RANKED]
        titled = (("Rows that help", helps), ("Rows that hurt", hurts))
        return [(title, rows) for title, rows in titled if rows]

    @property
    def usage_in_words(self) -> Iterator[str]:
        """How many rows were shown, how many help or hurt, and whether order matters."""
        tally = self.tally
        pool = "" if self.dataset is None else f", of a pool of {len(self.dataset.pool):,}"
        yield f"{len(tally.trials_of_row):,} different rows were shown{pool}."
        if self._lifts:
            beyond = sum(each.beyond_chance for each in self._lifts)
            yield (
                f"{len(self._lifts):,} rows were compared in {FEWEST_QUERIES} queries or more; "
                f"{beyond:,} of them help or hurt beyond chance (*), with intervals that hold "
                f"together at {100 * JOINT_LEVEL:.0f} %."
            )
        if tally.orders:
            share = 100 * tally.orders_differ / tally.orders
            yield (
                f"{tally.orders:,} pairs of trials show a query the same rows in another order: "
                f"{tally.orders_differ:,} ({share:.1f} %) differ in accuracy."
            )

    @property
    def position_rows(self) -> list[tuple[int, int, Mean]]:
        """(demonstrations, position from 1, accuracy)."""
        found = sorted(self.tally.positions.items())
        return [(shown, place + 1, mean) for (shown, place), mean in found]

    def pool_row(self, row: int) -> Example | None:
        """The example of a pool row; None if it is not known."""
        return None if self.dataset is None else _at(self.dataset.pool, row)

    def query_row(self, row: int) -> Example | None:
        """The example of a row of the queries; None if it is not known."""
        return None if self.dataset is None else _at(self.dataset.queries, row)

    def describe_row(self, row: int) -> str:
        """Question and answer of a pool row."""
        example = self.pool_row(row)
        return "" if example is None else f"{example.question} → {example.answer}"


def read_trial_files(
    inputs: Sequence[Input], evaluations: Sequence[Evaluation], datasets: Datasets, most: int
) -> list[TrialFile]:
    """Every file of trials; `most` bytes of queries are kept of all together.

    Raises InputError for a damaged one.
    """
    by_path = {each.input.path: each for each in evaluations}
    found: list[TrialFile] = []
    part = most
    for input in inputs:
        if input.kind == "training":
            continue
        evaluation = by_path.get(input.path)
        meta = (read_meta(input.path) or {}) if evaluation is None else evaluation.settings
        described = meta.get("dataset")
        number = datasets.number_of(described if isinstance(described, dict) else {}, input)
        dataset = None if number is None else datasets.opened[number]
        tally, sample = Tally(_answers(dataset)), Sample(input.name)
        one = TrialFile(input, meta, number, dataset, tally, sample, evaluation)
        _read_into(one, part)
        found.append(one)
        part = share_out([each.sample for each in found], most)
    return found


def _read_into(one: TrialFile, most: int) -> None:
    path = one.input.path
    try:
        for trials in read_trials(path):
            if is_usable(trials):
                one.tally.add(trials)
                one.sample.add(trials, most)
            else:
                one.unusable.append(trials.id)
    except InputError as error:
        if one.evaluation is None or one.tally.queries:
            raise
        one.unread = str(error)  # an evaluation of an earlier version
    if one.input.kind == "rl":
        one.validation = validate_file(path, ValidationConfig(max_findings=FINDINGS))


def is_usable(trials: QueryTrials) -> bool:
    """Whether a record has what is counted, in the right form; `validate` says what is wrong."""
    described = trials.record.get("query", {})
    if not isinstance(described, dict):
        return False
    answers = described.get("gt_answers_raw", [])
    return (
        isinstance(answers, list)
        and all(isinstance(each, str) for each in answers)
        and _are_rows(trials.record.get("excluded", []))
        and all(map(_is_usable_candidate, trials.candidates))
    )


def _is_usable_candidate(candidate: Mapping[str, Any]) -> bool:
    accuracy = candidate.get("vqa_acc_score")
    score = candidate.get("score", 0)  # of a beam
    return (
        _are_rows(candidate.get("pointer"))
        and (accuracy is None or (isinstance(accuracy, int | float) and 0 <= accuracy <= 1))
        and isinstance(score, int | float)
        and math.isfinite(score)
    )


def _are_rows(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(row, int) and row >= 0 for row in value)


def _answers(dataset: Dataset | None) -> Callable[[int], str | None]:
    pool = None if dataset is None else dataset.pool

    def answer_of(row: int) -> str | None:
        example = _at(pool, row)
        return None if example is None else example.answer

    return answer_of


def _at(examples: Sequence[Example] | None, row: int) -> Example | None:
    return examples[row] if examples is not None and 0 <= row < len(examples) else None
