"""The learning curves of training folders."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pointer_rl.report.figures import Figure, line_swatch
from pointer_rl.report.inputs import Input, read_document, read_metrics
from pointer_rl.report.svg import Panel, Rule, Series, line_chart
from pointer_rl.report.tally import Tally

_ROUNDS = "rounds"
_REWARD, _RANDOM, _BEST = "held_out_reward", "held_out_random_reward", "held_out_best"
_PANELS = {
    _REWARD: "Held-out reward",
    "held_out_cross_entropy": "Held-out cross-entropy (nats)",
    "cross_entropy": "Cross-entropy in training (nats)",
    "rce": "RCE loss",
    "ppo": "GRPO loss",
    "kl": "KL from the reference (nats)",
    "entropy": "Entropy of the policy (nats)",
    "zero_variance_groups": "Share of zero-variance groups",
    "clipped": "Share of clipped ratios",
}
"""Key in metrics.jsonl → the title of its panel, in the order of the panels."""


@dataclass(frozen=True)
class Round:
    """A round of an online training, or all of an offline one."""

    number: int
    calls: int | None
    """Trials up to its end, those of the data and of the policy that it started from included."""
    last: Mapping[str, Any]
    """Its last line in metrics.jsonl."""
    accuracy: float | None
    """Mean accuracy of the trials of the round; None without them."""


@dataclass(frozen=True)
class Training:
    """What a training folder says."""

    input: Input
    lines: Sequence[Mapping[str, Any]]
    document: Mapping[str, Any]
    """Its bundle.json; empty if there is none."""
    tallies: Mapping[Path, Tally]
    """RL data of the report, among them that of the rounds."""

    @classmethod
    def read(cls, input: Input, tallies: Mapping[Path, Tally]) -> Training:
        """Read the folder. Raises InputError for a damaged file."""
        return cls(input, read_metrics(input.path), read_document(input.path), tallies)

    @property
    def kept_by(self) -> str:
        """What chose the epoch: `reward`, or `cross_entropy` on beams. Their rewards differ."""
        return str(self.lines[0].get("keep_by", "reward")) if self.lines else "reward"

    @property
    def settings(self) -> Mapping[str, Any]:
        """The bundle's `training`."""
        found = self.document.get("training")
        return found if isinstance(found, Mapping) else {}

    @property
    def calls(self) -> int | None:
        """Trials that the policy needed in all; None if that is not known."""
        calls = self.settings.get("calls")
        return calls if isinstance(calls, int) else None

    def points(self, key: str) -> list[tuple[float, float]]:
        """(epoch counted over stages and rounds, value) where the metric is known."""
        return [
            (float(index), float(line[key]))
            for index, line in enumerate(self.lines)
            if _is_number(line.get(key))
        ]

    @cached_property
    def rounds(self) -> list[Round]:
        """Its rounds in order; one, of number 0, if it was offline."""
        by_round: dict[int, Mapping[str, Any]] = {}
        for line in self.lines:
            by_round[_round_of(line)] = line
        asked = {number: self._calls_of(number) for number in by_round if number > 0}
        known = self.calls is not None and None not in asked.values()
        spent = (self.calls or 0) - sum(each or 0 for each in asked.values())
        found = []
        for number, last in by_round.items():
            spent += asked.get(number) or 0
            tally = self.tallies.get(self._file_of(number))
            found.append(
                Round(
                    number,
                    spent if known else None,
                    last,
                    _accuracy(tally) if tally is not None else None,
                )
            )
        return found

    def _file_of(self, number: int) -> Path:
        return self.input.path / _ROUNDS / f"round-{number:02d}.json"

    def _calls_of(self, number: int) -> int | None:
        """Trials that the bundle counts for a round; its file is named by its hash."""
        path, counts = self._file_of(number), self.settings.get("calls_by_file")
        if not isinstance(counts, Mapping) or not path.is_file():
            return None
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found = counts.get(digest)
        return found if isinstance(found, int) else None

    def against_calls(self, key: str) -> list[tuple[float, float]]:
        """(calls, value) where each round ended, as far as both are known."""
        return [
            (float(each.calls), float(each.last[key]))
            for each in self.rounds
            if each.calls is not None and _is_number(each.last.get(key))
        ]

    def rules(self) -> list[Rule]:
        """Where rounds begin."""
        starts: dict[int, int] = {}
        for index, line in enumerate(self.lines):
            starts.setdefault(_round_of(line), index)
        return [Rule(x, f"round {number}") for number, x in starts.items() if number > 0]


@dataclass(frozen=True)
class CurveGroup:
    """Trainings whose rewards mean the same, in one set of panels."""

    kept_by: str
    trainings: Sequence[Training]

    def figure(self) -> Figure:
        """A chart of each metric that any training has."""
        legend = [
            (line_swatch(style), each.input.name) for style, each in enumerate(self.trainings)
        ]
        if self.kept_by == "reward":
            bounds = "random choice (lower) and best choice (upper) among the judged pointers"
            legend.append((line_swatch("bound"), bounds))
        return Figure(list(self._panels()), legend)

    def _panels(self) -> Iterator[Panel]:
        by_calls = self._against_calls()
        if by_calls is not None:
            yield by_calls
        online = [each.rules() for each in self.trainings if each.rules()]
        for key, title in _PANELS.items():
            series = [
                Series(training.input.name, points, style, gap=1.5)
                for style, training in enumerate(self.trainings)
                if len(points := training.points(key)) > 1
            ]
            if not any(y for each in series for _, y in each.points):
                continue
            if key == _REWARD:
                series += self._bounds()
            share = key in ("zero_variance_groups", "clipped")
            yield Panel(
                title,
                line_chart(
                    series,
                    title=f"{title} by epoch: " + "; ".join(_in_words(each) for each in series),
                    x_label="epoch",
                    y_range=(0.0, max(1e-3, *(y for s in series for _, y in s.points)) * 1.08)
                    if share
                    else None,
                    rules=online[0] if len(online) == 1 else (),
                ),
            )

    def _bounds(self) -> Iterator[Series]:
        """A random choice among the judged pointers, and the best one."""
        for training in self.trainings:
            for key, what in ((_RANDOM, "random choice"), (_BEST, "best choice")):
                if points := training.points(key):
                    yield Series(f"{training.input.name}: {what}", points, "bound", gap=1.5)

    def _against_calls(self) -> Panel | None:
        """Where the rounds ended. Later rounds have other held-out queries, as random choice."""
        series = []
        for style, training in enumerate(self.trainings):
            if points := training.against_calls(_REWARD):
                series.append(Series(training.input.name, points, style, markers=True))
            if points := training.against_calls(_RANDOM):
                series.append(Series(f"{training.input.name}: random choice", points, "bound"))
        if self.kept_by != "reward" or len({x for each in series for x, _ in each.points}) < 2:
            return None
        title = "Held-out reward against calls"
        described = "; ".join(_in_words(each) for each in series)
        return Panel(title, line_chart(series, title=f"{title}: {described}", x_label="calls"))


def group_trainings(trainings: Sequence[Training]) -> list[CurveGroup]:
    """Those with metrics, by what their rewards are."""
    kinds = dict.fromkeys(each.kept_by for each in trainings if each.lines)
    return [
        CurveGroup(kind, [each for each in trainings if each.lines and each.kept_by == kind])
        for kind in kinds
    ]


def _round_of(line: Mapping[str, Any]) -> int:
    number = line.get("round")
    return number if isinstance(number, int) else 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _accuracy(tally: Tally) -> float | None:
    total = sum(each.accuracy.total for each in tally.methods.values())
    number = sum(each.accuracy.number for each in tally.methods.values())
    return total / number if number else None


def _in_words(series: Series) -> str:
    first, last = series.points[0][1], series.points[-1][1]
    return f"{series.name} from {first:.3g} to {last:.3g}"
