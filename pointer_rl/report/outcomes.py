"""Outcomes of the candidates of RL data, by generation method."""

from __future__ import annotations

from collections.abc import Mapping

from pointer_rl.report.figures import Figure, area_swatch
from pointer_rl.report.svg import Bar, Panel, bar_chart
from pointer_rl.report.tally import MethodTally, Tally

_PARTS = ("right", "wrong", "failed")


def outcomes_figure(tallies: Mapping[str, Tally]) -> Figure:
    """A panel for each file, with a bar for each method. `tallies`: by file name."""
    panels = []
    for file, tally in tallies.items():
        bars = [_bar(*each) for each in tally.methods.items()]
        described = "; ".join(f"{each.name} {each.words}" for each in bars)
        chart = bar_chart(bars, title=f"Right answers by method, {file}: {described}")
        panels.append(Panel(file, chart))
    return Figure(panels, [(area_swatch(each), each) for each in _PARTS])


def _bar(name: str, method: MethodTally) -> Bar:
    judged = method.accuracy.number
    sizes = (method.correct, judged - method.correct, method.failed)
    share = method.share_right
    words = "none judged" if share is None else f"{share:.0%} of {judged:,}"
    return Bar(name, list(zip(_PARTS, sizes, strict=True)), method.candidates, words)
