"""Rules that a JSON Schema cannot express. Each looks at one record that follows the schema."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pointer_rl.errors import PointerRLError
from pointer_rl.records.fields import has_failed
from pointer_rl.types import Metric

Path = tuple[str | int, ...]
Found = tuple[Path, str]
"""The place in the record, and what is wrong there."""


class Group:
    """A record without the candidates that break the schema."""

    def __init__(
        self,
        key: str,
        candidates: list[tuple[int, dict[str, Any]]],
        query: dict[str, Any],
        pool: list[int] | None,
    ) -> None:
        self.key = key
        self.candidates = candidates
        """Pairs of (index in the record, candidate)."""
        self.query = query
        """Empty if the record has none."""
        self.pool = pool
        self.judged = [each for each in candidates if not has_failed(each[1])]
        """The candidates whose trial did not fail."""
        self.pointers = [candidate["pointer"] for _, candidate in candidates]
        self.rows: set[int] = set().union(*self.pointers)
        """All rows of all pointers. With these, most records pass a rule in one step."""

    def find_rows(self, is_wrong: Callable[[int], bool]) -> Iterator[tuple[Path, int]]:
        """Yield the place of each wrong row, and the row."""
        for index, candidate in self.candidates:
            for place, row in enumerate(candidate["pointer"]):
                if is_wrong(row):
                    yield ("pointer_candidates", index, "pointer", place), row


@dataclass
class Rule(ABC):
    """One rule. It counts and skips records without the field that it needs."""

    id: ClassVar[str]
    fix: ClassVar[str]
    """What to do about a finding."""
    needs: ClassVar[str] = ""
    """The field that skipped records lack."""
    skipped: int = field(default=0, init=False)

    @abstractmethod
    def check(self, group: Group) -> Iterator[Found]:
        """Yield what is wrong with a record."""


class QueryId(Rule):
    """A record's `query` has the id that is the record's key."""

    id = "query-id"
    fix = "write the record under its own query's id"

    def check(self, group: Group) -> Iterator[Found]:
        recorded = group.query.get("query_id", group.key)
        if str(recorded) != group.key:
            yield ("query", "query_id"), f"query_id is {recorded!r}, in the record of {group.key!r}"


@dataclass
class RowInRange(Rule):
    """The rows of pointers are rows of the pool."""

    id = "row-in-range"
    fix = "write rows of the whole pool, counted from 0, or give the pool's true size"

    pool_size: int

    def check(self, group: Group) -> Iterator[Found]:
        size = self.pool_size
        if max(group.rows, default=0) >= size:
            for path, row in group.find_rows(lambda row: row >= size):
                yield path, f"row {row} is not in the pool, which ends at {size - 1}"


class RowInQueryPool(Rule):
    """The rows of pointers were available to the query, if the record lists the available rows."""

    id = "row-in-query-pool"
    fix = "write rows of the whole pool (not positions in `pool`), and list in `pool` all it offers"

    def check(self, group: Group) -> Iterator[Found]:
        if group.pool is not None and not group.rows.issubset(group.pool):
            missing = group.rows.difference(group.pool)
            for path, row in group.find_rows(missing.__contains__):
                yield path, f"row {row} is not in this query's `pool`"


class OwnDemonstration(Rule):
    """A query is not among its own demonstrations, which would give away the answer."""

    id = "own-demonstration"
    fix = "remove the candidate: its answer was given away"
    needs = "`query.row`"

    def check(self, group: Group) -> Iterator[Found]:
        own = group.query.get("row")
        if own is None:
            self.skipped += 1
        elif own in group.rows:
            for path, row in group.find_rows(lambda row: row == own):
                yield path, f"row {row} is the query itself"


@dataclass
class DuplicateCandidate(Rule):
    """A pointer occurs once in a group."""

    id = "duplicate-candidate"
    fix = "keep one of them: a repeated pointer counts twice when its group is compared"

    ordered: bool

    def check(self, group: Group) -> Iterator[Found]:
        if self.ordered and len({*map(tuple, group.pointers)}) == len(group.pointers):
            return
        first: dict[tuple[int, ...], int] = {}
        for index, candidate in group.candidates:
            pointer = candidate["pointer"]
            known = first.setdefault(tuple(pointer if self.ordered else sorted(pointer)), index)
            if known != index:
                same = "pointer" if self.ordered else "rows"
                yield ("pointer_candidates", index), f"the same {same} as candidate {known}"


@dataclass
class Shots(Rule):
    """Every pointer has exactly `_meta.shots` rows, and at most `_meta.max_shots`."""

    id = "shots"
    fix = (
        "generate the candidate with as many demonstrations as _meta says, or correct _meta.shots "
        "and _meta.max_shots"
    )

    shots: int | None
    max_shots: int | None

    def check(self, group: Group) -> Iterator[Found]:
        wrong = {
            length: problem
            for length in {*map(len, group.pointers)}
            if (problem := self._problem(length))
        }
        if not wrong:
            return
        for index, candidate in group.candidates:
            length = len(candidate["pointer"])
            if length in wrong:
                yield ("pointer_candidates", index, "pointer"), wrong[length]

    def _problem(self, length: int) -> str:
        if self.shots is not None and length != self.shots:
            return f"{length} row(s), where _meta.shots is {self.shots}"
        if self.max_shots is not None and length > self.max_shots:
            return f"{length} row(s), where _meta.max_shots is {self.max_shots}"
        return ""


@dataclass
class CorrectAccuracy(Rule):
    """`vqa_correct` and `vqa_acc_score` do not contradict each other.

    Without a named metric, correct means an accuracy above 0. A named metric may have another
    threshold, so that only what contradicts every threshold is a finding.
    """

    id = "correct-accuracy"
    fix = "judge the answer again: one of the two is wrong"

    metric_named: bool

    def check(self, group: Group) -> Iterator[Found]:
        for index, candidate in group.judged:
            correct, accuracy = candidate["vqa_correct"], candidate["vqa_acc_score"]
            if correct == (accuracy > 0):
                continue
            if correct or accuracy == 1 or not self.metric_named:
                path = ("pointer_candidates", index, "vqa_correct")
                yield path, f"vqa_correct is {correct}, with a vqa_acc_score of {accuracy}"


@dataclass
class Accuracy(Rule):
    """The recorded judgement is what the named metric says of the recorded answer."""

    id = "accuracy"
    fix = "judge the answer again, or name the metric that did"
    needs = "`query.gt_answers_raw`"
    _TOLERANCE = 1e-6

    metric: Metric

    def check(self, group: Group) -> Iterator[Found]:
        answers = group.query.get("gt_answers_raw")
        if not answers:
            self.skipped += 1
            return
        try:
            judgements = {
                answer: self.metric.judge(answer, answers)
                for answer in {candidate["vqa_pred_answer"] for _, candidate in group.judged}
            }
        except PointerRLError as error:
            yield ("query", "gt_answers_raw"), str(error)
            return
        for index, candidate in group.judged:
            answer = candidate["vqa_pred_answer"]
            judgement = judgements[answer]
            place = ("pointer_candidates", index)
            if abs(candidate["vqa_acc_score"] - judgement.accuracy) > self._TOLERANCE:
                yield (
                    (*place, "vqa_acc_score"),
                    f"vqa_acc_score is {candidate['vqa_acc_score']}, where the metric gives "
                    f"{answer!r} {judgement.accuracy}",
                )
            elif candidate["vqa_correct"] != judgement.correct:
                yield (
                    (*place, "vqa_correct"),
                    f"vqa_correct is {candidate['vqa_correct']}, where the metric finds {answer!r} "
                    f"{'correct' if judgement.correct else 'wrong'}",
                )
