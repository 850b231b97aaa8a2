"""What a file of trials says as a whole: counted query by query, in the memory of the pool's rows.

A trial's accuracy depends on its query most of all. So demonstrations and orders are compared
within a query: the lift of a row in a query is the mean accuracy of the query's trials that show
it, less the mean of all its trials with as many demonstrations.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations
from statistics import NormalDist
from typing import Any

from pointer_rl.records.fields import has_failed
from pointer_rl.report.trials import QueryTrials
from pointer_rl.types import Pointer

JOINT_LEVEL = 0.95
"""Confidence with which the intervals of all rows' lifts hold together."""
FEWEST_QUERIES = 5
"""Queries in which a row must have been compared to be ranked."""
_LARGEST_GROUP = 64
"""Trials of a query up to which every pair of orders is compared."""


@dataclass
class Mean:
    """A mean that is added up, with its standard deviation."""

    number: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        """Take in a value."""
        self.number += 1
        self.total += value
        self.squares += value * value

    @property
    def value(self) -> float | None:
        """The mean; None without values."""
        return self.total / self.number if self.number else None

    def interval(self, level: float) -> tuple[float, float]:
        """Of the mean of differences in [-1, 1]: two are added, 1 and -1.

        See `pointer_rl.evaluate.statistics`, whose interval it is.
        """
        number = self.number + 2
        mean = self.total / number
        variance = max((self.squares + 2) / number - mean * mean, 0.0) * number / (number - 1)
        reach = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(variance / number)
        return max(mean - reach, -1.0), min(mean + reach, 1.0)


@dataclass
class MethodTally:
    """The trials of a generation method, or of an arm at a number of shots."""

    queries: int = 0
    candidates: int = 0
    failed: int = 0
    correct: int = 0
    accuracy: Mean = field(default_factory=Mean)
    pointers: set[Pointer] = field(default_factory=set)
    rows: Counter[int] = field(default_factory=Counter)
    """Row → number of trials that show it."""

    @property
    def share_right(self) -> float | None:
        """Of the judged trials; None without any."""
        return self.correct / self.accuracy.number if self.accuracy.number else None

    @property
    def shown(self) -> float:
        """Demonstrations in a trial, on average."""
        return self.rows.total() / self.candidates if self.candidates else 0.0

    def top_share(self, number: int) -> float:
        """Share of all demonstrations shown that are the `number` most frequent rows."""
        top = sum(count for _, count in self.rows.most_common(number))
        return top / self.rows.total() if self.rows else 0.0

    @property
    def effective_rows(self) -> float:
        """exp(entropy) of the rows shown: as concentrated as so many rows shown equally often."""
        total = self.rows.total()
        shares = (count / total for count in self.rows.values())
        return math.exp(-sum(share * math.log(share) for share in shares)) if total else 0.0


@dataclass(frozen=True)
class RowLift:
    """How a row changes the accuracy of the queries that it is shown to."""

    row: int
    queries: int
    trials: int
    lift: float
    low: float
    """Of an interval that holds for all ranked rows together."""
    high: float

    @property
    def beyond_chance(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


@dataclass
class Tally:
    """The counts of one file of trials."""

    answers_of: Callable[[int], str | None] = lambda _row: None
    """The answer that a pool row shows; None where it is not known."""
    queries: int = 0
    candidates: int = 0
    failed: int = 0
    methods: dict[str, MethodTally] = field(default_factory=dict)
    failures: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Reason → the ids of queries with such trials, one for each trial."""
    groups: int = 0
    """Queries with two judged trials or more."""
    zero_variance: int = 0
    """Those of them whose trials all have the same accuracy."""
    best: Mean = field(default_factory=Mean)
    """The best accuracy of a query's trials."""
    orders: int = 0
    """Pairs of a query's trials that show the same rows in another order."""
    orders_differ: int = 0
    """Those of them that differ in accuracy."""
    positions: dict[tuple[int, int], Mean] = field(default_factory=lambda: defaultdict(Mean))
    """(demonstrations, position of the only one with an annotator's answer) → accuracy."""
    lifts: dict[int, Mean] = field(default_factory=lambda: defaultdict(Mean))
    trials_of_row: Counter[int] = field(default_factory=Counter)
    duplicates: int = 0
    """Trials that show a query what another one of the same method shows it."""
    excluded_shown: list[str] = field(default_factory=list)
    """Ids of queries that were shown a row that is excluded for them."""
    ids: list[str] = field(default_factory=list)
    _means: dict[str, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    """Method → place of a query → its mean accuracy there."""

    def add(self, trials: QueryTrials) -> None:
        """Take in the trials of a query."""
        self.queries += 1
        described = trials.record.get("query", {})
        if trials.are_beams:
            self._beams(trials)
            return
        excluded = set(trials.record.get("excluded", ()))
        seen_by: dict[str, set[Pointer]] = defaultdict(set)
        means: dict[str, Mean] = defaultdict(Mean)
        judged: list[tuple[Pointer, float]] = []
        for one in trials.candidates:
            self.candidates += 1
            pointer = tuple(map(int, one["pointer"]))
            accuracy = self._judge(trials.id, one)
            if accuracy is not None:
                judged.append((pointer, accuracy))
            if not excluded.isdisjoint(pointer):
                self.excluded_shown.append(trials.id)
            for method in methods_of(trials, one):
                self.duplicates += pointer in seen_by[method]
                seen_by[method].add(pointer)
                self._method(method, pointer, one, accuracy)
                if accuracy is not None:
                    means[method].add(accuracy)
        self.ids.append(trials.id)
        for method in seen_by:
            self.methods[method].queries += 1
            mean = means[method].value
            if mean is not None:
                self._means[method][len(self.ids) - 1] = mean
        self._group(judged)
        self._positions(judged, described)

    def _beams(self, trials: QueryTrials) -> None:
        self.candidates += len(trials.candidates)
        tally = self.methods.setdefault("beam", MethodTally())
        tally.queries += 1
        for one in trials.candidates:
            pointer = tuple(map(int, one["pointer"]))
            tally.candidates += 1
            tally.accuracy.add(float(one["score"]))
            tally.pointers.add(pointer)
            tally.rows.update(pointer)

    def _judge(self, id: str, candidate: Mapping[str, Any]) -> float | None:
        """The accuracy of a trial; None, counted with its reason, if it failed or has none."""
        if has_failed(candidate):
            self.failed += 1
            self.failures[str(candidate.get("eval_error") or "no reason recorded")].append(id)
            return None
        accuracy = candidate.get("vqa_acc_score")
        return None if accuracy is None else float(accuracy)

    def _method(
        self, name: str, pointer: Pointer, one: Mapping[str, Any], accuracy: float | None
    ) -> None:
        tally = self.methods.setdefault(name, MethodTally())
        tally.candidates += 1
        tally.pointers.add(pointer)
        tally.rows.update(pointer)
        if accuracy is None:
            tally.failed += has_failed(one)
            return
        tally.correct += bool(one.get("vqa_correct"))
        tally.accuracy.add(accuracy)

    def _group(self, judged: Sequence[tuple[Pointer, float]]) -> None:
        """What the trials of a query say of each other."""
        if not judged:
            return
        accuracies = [accuracy for _, accuracy in judged]
        self.best.add(max(accuracies))
        if len(judged) > 1:
            self.groups += 1
            self.zero_variance += len(set(accuracies)) == 1
        by_length: dict[int, list[tuple[Pointer, float]]] = defaultdict(list)
        for each in judged:
            by_length[len(each[0])].append(each)
        for same in by_length.values():
            self._lifts(same)
        for (one, first), (other, second) in combinations(judged[:_LARGEST_GROUP], 2):
            if len(one) == len(other) > 1 and one != other and sorted(one) == sorted(other):
                self.orders += 1
                self.orders_differ += first != second

    def _lifts(self, judged: Sequence[tuple[Pointer, float]]) -> None:
        mean = sum(accuracy for _, accuracy in judged) / len(judged)
        with_row: dict[int, list[float]] = defaultdict(list)
        for pointer, accuracy in judged:
            for row in set(pointer):
                with_row[row].append(accuracy)
        for row, accuracies in with_row.items():
            self.trials_of_row[row] += len(accuracies)
            if len(accuracies) < len(judged):  # otherwise there is nothing to compare it with
                self.lifts[row].add(sum(accuracies) / len(accuracies) - mean)

    def _positions(
        self, judged: Sequence[tuple[Pointer, float]], described: Mapping[str, Any]
    ) -> None:
        answers = {_folded(each) for each in described.get("gt_answers_raw", ())}
        for pointer, accuracy in judged:
            shown = [self.answers_of(row) for row in pointer]
            places = [n for n, each in enumerate(shown) if each and _folded(each) in answers]
            if len(places) == 1 and len(pointer) > 1:
                self.positions[len(pointer), places[0]].add(accuracy)

    def by_query(self) -> dict[str, list[float | None]]:
        """Method → its mean accuracy on each of `ids`; None where none of its trials was judged."""
        places = range(len(self.ids))
        return {name: [each.get(place) for place in places] for name, each in self._means.items()}

    def ranked_lifts(self) -> list[RowLift]:
        """Rows that were compared in FEWEST_QUERIES queries or more, highest lift first."""
        compared = {row: mean for row, mean in self.lifts.items() if mean.number >= FEWEST_QUERIES}
        level = 1 - (1 - JOINT_LEVEL) / max(len(compared), 1)
        ranked = [
            RowLift(row, mean.number, self.trials_of_row[row], mean.value or 0.0, *interval)
            for row, mean in compared.items()
            for interval in [mean.interval(level)]
        ]
        # By the centre of the interval, which is nearer to 0 where few queries speak.
        return sorted(ranked, key=lambda each: (-(each.low + each.high), each.row))


def methods_of(trials: QueryTrials, candidate: Mapping[str, Any]) -> list[str]:
    """The methods that a candidate counts for: in an evaluation, an arm at each number of shots."""
    if trials.arms is None:
        return trials.methods_of(candidate)
    return list(
        chain.from_iterable(
            (method_name(arm, shots) for shots in of_arm)
            for arm, of_arm in trials.arms_of(candidate).items()
        )
    )


def method_name(arm: str, shots: int) -> str:
    """What the report calls an arm at a number of shots."""
    return arm if shots == 0 else f"{arm}, {shots} shot{'' if shots == 1 else 's'}"


def _folded(answer: str) -> str:
    return answer.strip().casefold()
