"""Figures: charts with a legend, in the report, in a notebook or as a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from markupsafe import Markup

from pointer_rl.errors import InputError
from pointer_rl.escaping import printable
from pointer_rl.files import write_text
from pointer_rl.report.svg import STYLES, Panel, tag, text

_GAP, _TITLE, _LEGEND, _COLUMNS = 24.0, 22.0, 22.0, 3
_CHARACTER = 6.5
"""Approximate width of a character in a legend."""


@dataclass(frozen=True)
class Figure:
    """Charts, and what their colours mean. A notebook shows it as the last value of a cell."""

    panels: Sequence[Panel]
    legend: Sequence[tuple[Markup, str]] = ()
    """Swatch and name."""

    def __repr__(self) -> str:
        return f"Figure({'; '.join(printable(each.chart.title) for each in self.panels)})"

    def __html__(self) -> Markup:
        """As HTML for the report."""
        names = Markup("").join(
            Markup("<li>{}{}</li>").format(
                Markup(
                    '<svg class="swatch" width="22" height="10" aria-hidden="true">{}</svg>'
                ).format(swatch),
                printable(name),
            )
            for swatch, name in self.legend
        )
        legend = Markup('<ul class="legend">{}</ul>').format(names) if names else ""
        panels = Markup("\n").join(map(_panel, self.panels))
        one = " one" if len(self.panels) == 1 else ""
        return Markup('{}<div class="figures{}">\n{}\n</div>').format(legend, one, panels)

    def _repr_html_(self) -> str:
        """As HTML for a notebook, with a style that applies to this figure only."""
        style = asset("notebook.css") + f".pointer-rl-figure {{\n{asset('figures.css')}}}"
        return f'<div class="pointer-rl-figure"><style>{style}</style>{self.__html__()}</div>'

    def _repr_svg_(self) -> str:
        """As a standalone SVG file, light or dark as the viewer prefers."""
        columns = min(len(self.panels), _COLUMNS)
        wide = max((each.chart.width for each in self.panels), default=0.0)
        parts: list[Markup] = []
        y = 0.0
        if self.legend:
            parts, y = self._legend(columns * (wide + _GAP) - _GAP)
        for start in range(0, len(self.panels), columns or 1):
            row = self.panels[start : start + columns]
            above = _TITLE if any(each.title for each in row) else 0.0
            for place, each in enumerate(row):
                x = place * (wide + _GAP)
                parts += [text(x, y + 13, each.title, "title"), each.chart.at(x, y + above)]
            y += above + max(each.chart.height for each in row) + _GAP
        width, height = columns * (wide + _GAP) + _GAP, y + _GAP
        attributes = Markup(
            'viewBox="{:g} {:g} {:g} {:g}" width="{:g}" height="{:g}" role="img" aria-label="{}"'
        ).format(
            *(-_GAP, -_GAP, width, height, width, height),
            "; ".join(printable(each.chart.title) for each in self.panels),
        )
        paper = tag("rect", "paper", x=-_GAP, y=-_GAP, width=width, height=height)
        style = asset("colours.css") + asset("figures.css")
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" {attributes}><style>{style}</style>'
            f'{paper}<g class="marks">{Markup("").join(parts)}</g></svg>\n'
        )

    def _legend(self, width: float) -> tuple[list[Markup], float]:
        """The legend, wrapped to that width, and its height."""
        parts, x, y = [], 0.0, 0.0
        for swatch, name in self.legend:
            needed = 28 + _CHARACTER * len(name) + 18
            if x and x + needed > width:
                x, y = 0.0, y + _LEGEND
            parts.append(Markup('<g transform="translate({:g} {:g})">{}</g>').format(x, y, swatch))
            parts.append(text(x + 28, y + 9, name, "tick"))
            x += needed
        return parts, y + _LEGEND + 6

    def save(self, path: str | Path) -> None:
        """Write an .svg file. Raises InputError for another suffix, or if writing fails."""
        if Path(path).suffix != ".svg":
            raise InputError(f"{path}: figures are SVG files; use a name that ends in .svg")
        write_text(Path(path), self._repr_svg_())


def line_swatch(style: int | str) -> Markup:
    """A piece of a line, for a legend."""
    name = f"s{style % STYLES}" if isinstance(style, int) else style
    return tag("line", f"line {name}", x1=1.0, x2=21.0, y1=5.0, y2=5.0)


def area_swatch(css: str) -> Markup:
    """A piece of a bar, for a legend."""
    return tag("rect", css, x=5.0, y=0.0, width=10.0, height=10.0)


def _panel(panel: Panel) -> Markup:
    title = panel.title and Markup("<figcaption>{}</figcaption>").format(printable(panel.title))
    return Markup('<figure class="panel">{}{}</figure>').format(title, panel.chart)


def asset(name: str) -> str:
    """The text of a file in assets."""
    return (files("pointer_rl.report") / "assets" / name).read_text("utf-8")
