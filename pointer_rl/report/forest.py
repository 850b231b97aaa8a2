"""Intervals on a common axis: in the cells of a table, or as a forest plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pointer_rl.report.svg import Chart, shortened, tag, text, ticks

_CELL = 30
"""Height of a table's row."""
_WIDTH, _ROW, _HEAD = 720.0, 24.0, 24.0
_NAMES, _PLOT, _WORDS = 24, (318.0, 566.0), _WIDTH
"""The chart's columns: longest name in characters, edges of the plot, right edge of the text."""
_NUMBERS = (212.0, 302.0)
"""Right edges of the columns of numbers. Without numbers, the plot takes their place."""


@dataclass(frozen=True)
class Interval:
    """A difference in points, and its position on the axis in percent."""

    mean: float
    low: float
    high: float
    at: tuple[float, float, float]
    """Positions of low, mean and high."""
    distinguishable: bool


@dataclass(frozen=True)
class Axis:
    """The axis of several intervals."""

    low: float
    high: float

    @classmethod
    def of(cls, intervals: Sequence[tuple[float, float]]) -> Axis:
        """An axis that shows all intervals, in points, and 0."""
        low = min((each for each, _ in intervals), default=0.0)
        high = max((each for _, each in intervals), default=0.0)
        space = 0.04 * max(high - low, 1.0)
        return cls(min(low, 0.0) - space, max(high, 0.0) + space)

    def at(self, value: float) -> float:
        """Position of a value, in percent."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """(position in percent, label) of round numbers."""
        return [
            (self.at(value), f"{value:+g}".replace("-", "−") if value else "0")
            for value in ticks(self.low, self.high, most=7)
        ]

    def cell(self, interval: Interval | None) -> Markup:
        """The interval in a row of a table; the axis alone if there is none."""
        return self._row(interval, "100%", _CELL)

    def labels(self) -> Markup:
        """The numbers of the axis, in the last row of a table."""
        return self._labels("100%")

    def _row(
        self, interval: Interval | None, width: str, height: float, x: float = 0, y: float = 0
    ) -> Markup:
        marks = [_line("grid", at, at, 0, height) for at, _ in self.ticks]
        marks.append(_line("zero", self.at(0), self.at(0), 0, height))
        clear = ""
        if interval is not None:
            low, mean, high = interval.at
            clear = " clear" if interval.distinguishable else ""
            marks.append(_line("reach", low, high, height / 2, height / 2))
            marks.append(tag("circle", "mean", cx=f"{mean}%", cy=height / 2, r=3.5))
        return Markup(
            '<svg class="interval{}" x="{:g}" y="{:g}" width="{}" height="{:g}"'
            ' aria-hidden="true">{}</svg>'
        ).format(clear, x, y, width, height, Markup("").join(marks))

    def _labels(self, width: str, x: float = 0, y: float = 0) -> Markup:
        marks = [
            Markup('<text x="{}%" y="13" text-anchor="middle">{}</text>').format(at, label)
            for at, label in self.ticks
        ]
        return Markup(
            '<svg class="axis-row" x="{:g}" y="{:g}" width="{}" height="18"'
            ' aria-hidden="true">{}</svg>'
        ).format(x, y, width, Markup("").join(marks))

    def chart(self, rows: Sequence[ForestRow], *, heads: Sequence[str], title: str) -> Chart:
        """A forest plot. `heads`: headings of the names, the numbers and the plot."""
        start, end = _PLOT
        if len(heads) == 2:
            start = _NUMBERS[0] - 40
        width = f"{end - start:g}"
        columns = [text(0, 12, heads[0], "tick"), text(start, 12, heads[-1], "tick")]
        columns += [
            text(x, 12, head, "tick", "end") for x, head in zip(_NUMBERS, heads[1:-1], strict=False)
        ]
        columns.append(text(_WORDS, 12, "points", "tick", "end"))
        marks = [*columns, tag("line", "axis", x1=0.0, x2=_WIDTH, y1=_HEAD - 4, y2=_HEAD - 4)]
        for number, row in enumerate(rows):
            y = _HEAD + _ROW * number
            cells = [text(0, y + 16, shortened(row.name, _NAMES), "name")]
            cells += [
                text(x, y + 16, each, "name", "end")
                for x, each in zip(_NUMBERS, row.numbers, strict=False)
            ]
            cells.append(self._row(row.interval, width, _ROW, start, y))
            if row.interval is not None:
                cells.append(text(_WORDS, y + 16, in_points(row.interval), "name", "end"))
            marks.append(
                Markup('<g class="{}">{}</g>').format(
                    "primary" if row.primary else "other", Markup("").join(cells)
                )
            )
        below = _HEAD + _ROW * len(rows)
        marks.append(self._labels(width, start, below))
        return Chart(title, Markup("").join(marks), _WIDTH, below + 20)


@dataclass(frozen=True)
class ForestRow:
    """A row of a forest plot."""

    name: str
    interval: Interval | None
    numbers: Sequence[str] = ()
    primary: bool = False


def in_points(interval: Interval) -> str:
    """`+12.0 (+3.1 to +20.9)`."""
    return f"{interval.mean:+.1f} ({interval.low:+.1f} to {interval.high:+.1f})"


def _line(css: str, x1: float, x2: float, y1: float, y2: float) -> Markup:
    """A line; x1 and x2 are in percent."""
    return tag("line", css, x1=f"{x1}%", x2=f"{x2}%", y1=float(y1), y2=float(y2))
