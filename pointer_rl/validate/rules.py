"""Rules that a JSON Schema cannot say: each looks at one record, whose form is already sound."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

from pointer_rl.errors import PointerRLError
from pointer_rl.types import Metric

__all__ = [
    "Accuracy",
    "CorrectAccuracy",
    "DuplicateCandidate",
    "Group",
    "OwnDemonstration",
    "QueryId",
    "RowInQueryPool",
    "RowInRange",
    "Rule",
    "Shots",
]

Path = tuple[str | int, ...]
Found = tuple[Path, str]
"""Where in the record, and what is wrong there."""


class Group:
    """A record, without the candidates in which the schema found a fault."""

    def __init__(
        self,
        key: str,
        candidates: list[tuple[int, dict[str, Any]]],
        query: dict[str, Any],
        pool: list[int] | None,
    ) -> None:
        self.key = key
        self.candidates = candidates
        """(its index in the record, the candidate)"""
        self.query = query
        """Empty where the record has none."""
        self.pool = pool
        self.judged = [each for each in candidates if not each[1].get("eval_failed")]
        """Those whose evaluation did not fail."""
        self.pointers = [candidate["pointer"] for _, candidate in candidates]
        self.rows: set[int] = set().union(*self.pointers)
        """All rows of all pointers: by these most records pass a rule at once."""


class Rule(ABC):
    """One rule. A record without what the rule needs is counted and passed over."""

    id: ClassVar[str]
    fix: ClassVar[str]
    """What to do about what it finds."""
    needs: ClassVar[str] = ""
    """What `skipped` records lack."""

    def __init__(self) -> None:
        self.skipped = 0

    @abstractmethod
    def check(self, group: Group) -> Iterator[Found]:
        """What is wrong with this record."""


class QueryId(Rule):
    """A record's `query` is the one that its key names."""

    id = "query-id"
    fix = "write the record under its own query's id"

    def check(self, group: Group) -> Iterator[Found]:
        recorded = group.query.get("query_id", group.key)
        if str(recorded) != group.key:
            yield ("query", "query_id"), f"query_id is {recorded!r}, in the record of {group.key!r}"


class RowInRange(Rule):
    """Pointers hold rows that the pool has."""

    id = "row-in-range"
    fix = "write rows of the whole pool, counted from 0, or give the pool's true size"

    def __init__(self, pool_size: int) -> None:
        super().__init__()
        self._pool_size = pool_size

    def check(self, group: Group) -> Iterator[Found]:
        if max(group.rows, default=0) < self._pool_size:
            return
        for index, candidate in group.candidates:
            for place, row in enumerate(candidate["pointer"]):
                if row >= self._pool_size:
                    path = ("pointer_candidates", index, "pointer", place)
                    yield path, f"row {row} is not in the pool, which ends at {self._pool_size - 1}"


class RowInQueryPool(Rule):
    """Pointers hold rows that this query could choose from, where the record lists them."""

    id = "row-in-query-pool"
    fix = "write rows of the whole pool (not positions in `pool`), and list in `pool` all it offers"

    def check(self, group: Group) -> Iterator[Found]:
        if group.pool is None or group.rows.issubset(group.pool):
            return
        offered = set(group.pool)
        for index, candidate in group.candidates:
            for place, row in enumerate(candidate["pointer"]):
                if row not in offered:
                    path = ("pointer_candidates", index, "pointer", place)
                    yield path, f"row {row} is not in this query's `pool`"


class OwnDemonstration(Rule):
    """A query is not shown its own answer."""

    id = "own-demonstration"
    fix = "remove the candidate: its answer was given away"
    needs = "`query.row`"

    def check(self, group: Group) -> Iterator[Found]:
        own = group.query.get("row")
        if own is None:
            self.skipped += 1
            return
        if own not in group.rows:
            return
        for index, candidate in group.candidates:
            if own in candidate["pointer"]:
                place = candidate["pointer"].index(own)
                path = ("pointer_candidates", index, "pointer", place)
                yield path, f"row {own} is the query itself"


class DuplicateCandidate(Rule):
    """A pointer stands once in a group."""

    id = "duplicate-candidate"
    fix = "keep one of them: a repeated pointer counts twice when its group is compared"

    def __init__(self, ordered: bool) -> None:
        super().__init__()
        self._ordered = ordered

    def check(self, group: Group) -> Iterator[Found]:
        if self._ordered and len({*map(tuple, group.pointers)}) == len(group.pointers):
            return
        first: dict[tuple[int, ...], int] = {}
        for index, candidate in group.candidates:
            pointer = candidate["pointer"]
            known = first.setdefault(tuple(pointer if self._ordered else sorted(pointer)), index)
            if known != index:
                same = "pointer" if self._ordered else "rows"
                yield ("pointer_candidates", index), f"the same {same} as candidate {known}"


class Shots(Rule):
    """Every pointer has as many rows as `_meta.shots` says."""

    id = "shots"
    fix = "generate the candidate with that many demonstrations, or set _meta.shots to null"

    def __init__(self, shots: int) -> None:
        super().__init__()
        self._shots = shots

    def check(self, group: Group) -> Iterator[Found]:
        if {*map(len, group.pointers)} <= {self._shots}:
            return
        for index, candidate in group.candidates:
            length = len(candidate["pointer"])
            if length != self._shots:
                path = ("pointer_candidates", index, "pointer")
                yield path, f"{length} row(s), where _meta.shots is {self._shots}"


class CorrectAccuracy(Rule):
    """`vqa_correct` and `vqa_acc_score` do not contradict each other.

    Where no metric is named, correct means an accuracy above 0. A metric may set its threshold
    elsewhere: where one is named, only what no threshold explains is found here.
    """

    id = "correct-accuracy"
    fix = "judge the answer again: one of the two is wrong"

    def __init__(self, metric_named: bool) -> None:
        super().__init__()
        self._metric_named = metric_named

    def check(self, group: Group) -> Iterator[Found]:
        for index, candidate in group.judged:
            correct, accuracy = candidate["vqa_correct"], candidate["vqa_acc_score"]
            if correct == (accuracy > 0):
                continue
            if correct or accuracy == 1 or not self._metric_named:
                path = ("pointer_candidates", index, "vqa_correct")
                yield path, f"vqa_correct is {correct}, with a vqa_acc_score of {accuracy}"


class Accuracy(Rule):
    """The recorded judgement is the one that the named metric passes on the recorded answer."""

    id = "accuracy"
    fix = "judge the answer again, or name the metric that did"
    needs = "`query.gt_answers_raw`"
    _TOLERANCE = 1e-6

    def __init__(self, metric: Metric) -> None:
        super().__init__()
        self._metric = metric

    def check(self, group: Group) -> Iterator[Found]:
        answers = group.query.get("gt_answers_raw")
        if not answers:
            self.skipped += 1
            return
        try:
            judgements = {
                answer: self._metric.judge(answer, answers)
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
