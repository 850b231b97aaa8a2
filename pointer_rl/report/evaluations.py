"""An evaluation as a report shows it: verdict, arms with their intervals, and its figures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pointer_rl.errors import InputError, first_line
from pointer_rl.evaluate.conclusions import in_words
from pointer_rl.json_stream import stream_members
from pointer_rl.report.forest import Axis, ForestRow, Interval, in_points
from pointer_rl.report.inputs import Input
from pointer_rl.report.svg import Chart, Series, line_chart
from pointer_rl.report.tally import method_name

_RANDOM, _ORACLE, _ATTAINABLE, _ZERO_SHOT = "random", "oracle", "attainable", "zero-shot"
_VOTE = "vote "


@dataclass(frozen=True)
class ArmRow:
    """An arm at a number of shots."""

    arm: str
    primary: bool
    queries: int
    calls: str
    accuracy: float | None
    """In percent."""
    seeds: tuple[float, ...]
    interval: Interval | None
    """Against random."""
    recovered: str


@dataclass(frozen=True)
class ArmTable:
    """The arms at a number of shots, or the primary arm against others."""

    shots: int
    rows: Sequence[ArmRow]
    axis: Axis

    def chart(self) -> Chart:
        """The arms as a forest plot."""
        rows = [
            ForestRow(
                each.arm,
                each.interval,
                ("–" if each.accuracy is None else f"{each.accuracy:.1f}", each.calls),
                each.primary,
            )
            for each in self.rows
        ]
        described = "; ".join(f"{each.name} {each.numbers[0]} %" for each in rows)
        return self.axis.chart(
            rows,
            heads=("arm", "accuracy (%)", "calls", "difference from random"),
            title=f"Accuracy at {in_words(self.shots)}: {described}",
        )


@dataclass(frozen=True)
class Evaluation:
    """What the file of an evaluation says, without its answers."""

    input: Input
    content: Mapping[str, Any]

    @classmethod
    def read(cls, input: Input) -> Evaluation:
        """Read the file. Raises InputError for one that cannot be read or lacks something."""
        content = {
            each.key: each.value
            for each in stream_members(input.path)
            if each.key not in ("records", "pointers")
        }
        return cls.of(input, content)

    @classmethod
    def of(cls, input: Input, content: Mapping[str, Any]) -> Evaluation:
        """From the content of a file. Raises InputError if a field is missing."""
        found = cls(input, content)
        try:
            found._check()
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{input.path}: a damaged evaluation ({type(error).__name__}: {first_line(error)});"
                " write it again"
            ) from error
        return found

    def _check(self) -> None:
        """Raise any error for content that the page could not show."""
        rows = [row for table in self.tables() for row in table.rows]
        numbers = [each.accuracy or 0.0 for each in rows] + [float(each.queries) for each in rows]
        numbers += [each.mean + each.low + each.high for _, each in self.rivals()[1]]
        for values in self.by_query().values():
            if len(values) != len(self.content["query_ids"]):
                raise ValueError("an arm does not have an accuracy for each query")
            numbers += [each or 0.0 for each in values]
        if not math.isfinite(math.fsum(numbers)):
            raise ValueError("a number is not finite")
        self.chart()
        _ = self.sentences, self.warnings
        for number in (*self.content["leakage"]["trained_on"].values(), self.leaks):
            int(number)

    @property
    def leaks(self) -> int:
        """Queries that may be shown their own image."""
        return int(self.content["leakage"]["shown"])

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that decides it."""
        settings: Mapping[str, Any] = self.content["settings"]
        return settings

    @property
    def primary(self) -> str:
        """The arm that the verdict is about."""
        return str(self.settings["primary"])

    @property
    def primary_shots(self) -> int:
        """At how many shots."""
        return int(self.settings["primary_shots"])

    @property
    def verdict(self) -> str:
        """Its verdict."""
        return str(self.content["verdict"])

    @property
    def sentences(self) -> list[str]:
        """What the verdict rests on; warnings are apart."""
        found = [str(each) for each in self.content["sentences"]]
        return [each for each in found if each != self.verdict and not _warns(each)]

    @property
    def warnings(self) -> list[str]:
        """All warnings, without the word."""
        found = [str(each) for each in (*self.content["sentences"], *self.content["warnings"])]
        return [each.removeprefix("WARNING: ") for each in found if _warns(each)] + [
            str(each) for each in self.content["warnings"] if not _warns(str(each))
        ]

    # --- tables ---

    def tables(self) -> list[ArmTable]:
        """The arms at each number of shots, the primary's first. Zero-shot is in each."""
        shots = sorted(
            {int(row["shots"]) for row in self.content["rows"]} - {0},
            key=lambda each: (each != self.primary_shots, each),
        )
        return [self._table(each) for each in shots]

    def _table(self, shots: int) -> ArmTable:
        rows = [row for row in self.content["rows"] if row["shots"] in (0, shots)]
        against = {
            (each["arm"], each["shots"]): each
            for each in self.content["comparisons"]
            if each["reference"] == _RANDOM
        }
        # Zero-shot is compared with random at the primary's shots alone.
        found = [(row, against.get((row["arm"], shots))) for row in rows]
        axis = Axis.of([_points(each) for _, each in found if each is not None])
        return ArmTable(shots, [self._row(row, each, axis) for row, each in found], axis)

    def _row(
        self, row: Mapping[str, Any], compared: Mapping[str, Any] | None, axis: Axis
    ) -> ArmRow:
        accuracy, share = row["accuracy"], row["gap_recovered"]
        trained, asked = row["training_calls"], row["calls"]
        before = "" if trained == 0 else f"{'–' if trained is None else f'{trained:,}'} + "
        return ArmRow(
            arm=str(row["arm"]),
            primary=row["arm"] == self.primary and row["shots"] == self.primary_shots,
            queries=int(row["queries"]),
            calls=f"{before}{asked:,}",
            accuracy=None if accuracy is None else 100 * accuracy,
            seeds=tuple(100 * each for each in row["accuracy_by_seed"]),
            interval=None if compared is None else _interval(compared, axis),
            recovered=""
            if share is None
            else f"{share['share']:.2f} ({share['low']:.2f} to {share['high']:.2f})",
        )

    def rivals(self) -> tuple[Axis, list[tuple[str, Interval]]]:
        """The primary arm against every other arm, the hardest first."""
        compared = [
            each
            for each in self.content["comparisons"]
            if each["arm"] == self.primary and each["reference"] != _RANDOM
        ]
        axis = Axis.of([_points(each) for each in compared])
        compared.sort(key=lambda each: float(each["mean"]))
        return axis, [(str(each["reference"]), _interval(each, axis)) for each in compared]

    def rivals_chart(self) -> Chart:
        """The primary arm against every other arm, as a forest plot."""
        axis, rivals = self.rivals()
        described = "; ".join(f"{arm} {in_points(interval)}" for arm, interval in rivals)
        return axis.chart(
            [ForestRow(*each) for each in rivals],
            heads=("other arm", "difference"),
            title=f"{self.primary} against every other arm, in points: {described}",
        )

    # --- figures ---

    def _styles(self) -> dict[str, int | str]:
        """Arm → its line style: the primary's is the first, references have their own."""
        styles: dict[str, int | str] = {_RANDOM: "random", _ORACLE: "bound", _ATTAINABLE: "bound"}
        arms = dict.fromkeys([self.primary, *(str(row["arm"]) for row in self.content["rows"])])
        others = [arm for arm in arms if arm not in styles and not arm.startswith(_VOTE)]
        for number, arm in enumerate(each for each in others if each != _ZERO_SHOT):
            styles[arm] = number
        return styles

    def chart(self) -> Chart | None:
        """Accuracy by demonstrations, a line for each arm but votes, all from zero-shot.

        None at one number of shots.
        """
        shots = sorted({int(row["shots"]) for row in self.content["rows"]})
        if len(shots) < 3:
            return None
        zero = [(0.0, each) for each in self._accuracies(_ZERO_SHOT, 0)]
        series = []
        for arm, style in self._styles().items():
            points = [(float(n), each) for n in shots if n for each in self._accuracies(arm, n)]
            if points:
                series.append(Series(arm, [*zero, *points], style, markers=True))
        described = "; ".join(f"{each.name} {each.points[-1][1]:.1f} %" for each in series)
        return line_chart(
            series,
            title=f"Accuracy by number of demonstrations, at {shots[-1]}: {described}",
            x_label="demonstrations",
            y_label="accuracy (%)",
            y_range=(0.0, 104.0),
            end_labels=True,
            x_ticks=[float(each) for each in shots],
        )

    def _accuracies(self, arm: str, shots: int) -> Iterator[float]:
        for row in self.content["rows"]:
            if row["arm"] == arm and row["shots"] == shots and row["accuracy"] is not None:
                yield 100 * float(row["accuracy"])

    # --- query by query ---

    def by_query(self) -> dict[str, list[float | None]]:
        """Arm at a number of shots → its accuracy on each query; None if the query is left out."""
        return {
            method_name(arm, int(shots)): values
            for shots, arms in self.content["accuracies"].items()
            for arm, values in arms.items()
            if not arm.endswith(" by seed")
        }


def _warns(sentence: str) -> bool:
    return sentence.startswith("WARNING")


def _points(comparison: Mapping[str, Any]) -> tuple[float, float]:
    return 100 * float(comparison["low"]), 100 * float(comparison["high"])


def _interval(comparison: Mapping[str, Any], axis: Axis) -> Interval:
    low, high = _points(comparison)
    mean = 100 * float(comparison["mean"])
    at = (axis.at(low), axis.at(mean), axis.at(high))
    return Interval(mean, low, high, at, bool(comparison["distinguishable"]))
