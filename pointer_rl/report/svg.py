"""Charts as SVG, with colours and fonts from `assets/figures.css`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pointer_rl.escaping import printable

STYLES = 8
"""Line styles of the style sheet: `s0` to `s7`, each a colour and a dash."""
WIDTH, HEIGHT = 360, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 14, 38
_LABELS, _LONGEST, _LINE = 92, 15, 12
"""Room for the names of lines, the longest of them, and the height of one."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A line of a chart."""

    name: str
    points: Sequence[Point]
    style: int | str
    """Number of a style, or the name of a class of its own."""
    markers: bool = False
    gap: float = math.inf
    """Points farther apart than this are not connected."""


@dataclass(frozen=True)
class Rule:
    """A vertical line with a label, such as the start of a round."""

    x: float
    label: str


@dataclass(frozen=True)
class Chart:
    """A drawing, with its natural size in pixels."""

    title: str
    """The text for screen readers."""
    marks: Markup
    width: float = WIDTH
    height: float = HEIGHT

    def __html__(self) -> Markup:
        """As an element of a page, scaled to the available width."""
        wide = " wide" if self.width > WIDTH else ""
        return Markup(
            '<svg class="chart{}" viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">{}</svg>'
        ).format(wide, self.width, self.height, printable(self.title), self.at(0, 0))

    def at(self, x: float, y: float) -> Markup:
        """As part of another drawing, at (x, y)."""
        return Markup('<g class="marks" transform="translate({:g} {:g})">{}</g>').format(
            x, y, self.marks
        )


@dataclass(frozen=True)
class Panel:
    """A chart under its title, which may be empty."""

    title: str
    chart: Chart


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str = "",
    y_range: tuple[float, float] | None = None,
    rules: Sequence[Rule] = (),
    x_ticks: Sequence[float] | None = None,
    end_labels: bool = False,
) -> Chart:
    """A chart with axes; `title` is what a screen reader says.

    `end_labels` names each line at its end; otherwise the page has a legend.
    """
    right = WIDTH - (_LABELS if end_labels else _RIGHT)
    points = [point for each in series for point in each.points]
    x_low, x_high = _range(x for x, _ in points)
    y_low, y_high = y_range or _range((y for _, y in points), around=0.06)
    x_at = _scale(x_low, x_high, _LEFT + 6, right - 6)
    y_at = _scale(y_low, y_high, HEIGHT - _BOTTOM, _TOP)
    parts = [
        *_y_axis(ticks(y_low, y_high), y_at, right),
        *_x_axis(x_ticks or ticks(x_low, x_high, whole=True), x_at, right),
    ]
    for rule in rules:
        x = x_at(rule.x)
        parts.append(tag("line", "rule", x1=x, x2=x, y1=_TOP, y2=HEIGHT - _BOTTOM))
        parts.append(text(x + 3, _TOP + 8, rule.label, "tick rule-label"))
    for each in series:
        parts.append(_line(each, x_at, y_at))
    if end_labels:
        parts += _end_labels(series, y_at, right + 4)
    parts.append(text((_LEFT + right) / 2, HEIGHT - 4, x_label, "label", "middle"))
    if y_label:
        parts.append(text(2, 8, y_label, "label"))
    return Chart(title, Markup("").join(parts))


@dataclass(frozen=True)
class Bar:
    """A stacked bar. Its parts add up to at most `total`."""

    name: str
    parts: Sequence[tuple[str, int]]
    """CSS class and size of each part."""
    total: int
    words: str
    """The text after the bar."""


def bar_chart(bars: Sequence[Bar], *, title: str) -> Chart:
    """A line for each bar: its name, its parts as shares of its total, and its words."""
    left, right, step = 98.0, 262.0, 22.0
    parts = []
    for number, bar in enumerate(bars):
        x, y = left, 4 + step * number
        parts.append(text(left - 6, y + 12, shortened(bar.name), "name", "end"))
        parts.append(tag("rect", "whole", x=left, y=y, width=right - left, height=16.0))
        for css, size in bar.parts:
            width = (right - left) * size / max(bar.total, 1)
            if width:
                parts.append(tag("rect", css, x=x, y=y, width=width, height=16.0))
            x += width
        parts.append(text(right + 6, y + 12, bar.words, "tick"))
    return Chart(title, Markup("").join(parts), WIDTH, 8 + step * len(bars))


def _line(series: Series, x_at: Callable[[float], float], y_at: Callable[[float], float]) -> Markup:
    style = _style(series)
    places = [(x_at(x), y_at(y)) for x, y in series.points]
    path = "M"
    for (x, y), (value, _), before in zip(
        places, series.points, [None, *series.points], strict=False
    ):
        if before is not None:
            path += "M" if value - before[0] > series.gap else "L"
        path += f"{x:.1f} {y:.1f}"
    parts = [tag("path", f"line {style}", d=path)] if len(places) > 1 else []
    if series.markers or len(places) == 1:
        parts += [tag("circle", f"dot {style}", cx=x, cy=y, r=2.6) for x, y in places]
    return Markup("<g><title>{}</title>{}</g>").format(
        printable(series.name), Markup("").join(parts)
    )


def _end_labels(
    series: Sequence[Series], y_at: Callable[[float], float], x: float
) -> Iterator[Markup]:
    """The names of lines at their ends, moved apart where they would overlap."""
    ends = sorted(series, key=lambda each: y_at(each.points[-1][1]))
    lines = min(_LINE, (HEIGHT - 10) / max(len(ends), 1))
    places: list[float] = []
    for each in ends:
        wanted = y_at(each.points[-1][1]) + 3.5
        places.append(max(wanted, places[-1] + lines) if places else wanted)
    below = HEIGHT - 4.0
    for number in reversed(range(len(places))):
        below = min(places[number], below)
        places[number] = below
        below -= lines
    for each, y in zip(ends, places, strict=True):
        yield text(x, y, shortened(each.name), f"end {_style(each)}")


def shortened(name: str, most: int = _LONGEST) -> str:
    """The name, truncated to `most` characters."""
    return name if len(name) <= most else name[: most - 1] + "…"


def _style(series: Series) -> str:
    return f"s{series.style % STYLES}" if isinstance(series.style, int) else series.style


def _y_axis(values: Sequence[float], y_at: Callable[[float], float], right: float) -> list[Markup]:
    parts = []
    for value in values:
        y = y_at(value)
        parts.append(tag("line", "grid", x1=_LEFT, x2=right, y1=y, y2=y))
        parts.append(text(_LEFT - 6, y + 3.5, number(value), "tick", "end"))
    return parts


def _x_axis(values: Sequence[float], x_at: Callable[[float], float], right: float) -> list[Markup]:
    base = HEIGHT - _BOTTOM
    parts = [tag("line", "axis", x1=_LEFT, x2=right, y1=base, y2=base)]
    for value in values:
        x = x_at(value)
        parts.append(tag("line", "axis", x1=x, x2=x, y1=base, y2=base + 4))
        parts.append(text(x, base + 16, number(value), "tick", "middle"))
    return parts


def ticks(low: float, high: float, *, most: int = 5, whole: bool = False) -> list[float]:
    """Round numbers in a range, at most `most` and a few more; whole ones if asked for."""
    raw = (high - low) / most
    step = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    step *= next((each for each in (1, 2, 5, 10) if each * step >= raw), 1)
    if whole:
        step = max(1.0, step)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def number(value: float) -> str:
    """A number in few characters: `0.25`, `12,000`, `-3`."""
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}".replace("-", "−")
    return f"{value:.3g}".replace("-", "−")


def _range(values: Iterable[float], around: float = 0.0) -> tuple[float, float]:
    found = list(values) or [0.0, 1.0]
    low, high = min(found), max(found)
    if low == high:
        return low - 0.5, high + 0.5
    space = around * (high - low)
    return low - space, high + space


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    def at(value: float) -> float:
        return start + (value - low) / (high - low) * (end - start)

    return at


def tag(name: str, css: str, **attributes: float | str) -> Markup:
    """An element without content."""
    given = Markup("").join(
        Markup(' {}="{}"').format(key, f"{value:.5g}" if isinstance(value, float) else value)
        for key, value in attributes.items()
    )
    return Markup('<{} class="{}"{}/>').format(name, css, given)


def text(x: float, y: float, words: str, css: str, anchor: str = "start") -> Markup:
    """A line of text; `anchor` (start, middle or end) is the part of it at x."""
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        css, x, y, anchor, printable(words)
    )
