"""The cells of `learning.py`, and the tables and the figure that are made of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pointer_rl.cli.tables import format_table
from pointer_rl.evaluate.run import draw_queries
from pointer_rl.evaluate.statistics import Share, compare, share_of_gap
from pointer_rl.files import write_text
from pointer_rl.session.session import PluginRef

__all__ = [
    "BESIDE",
    "CELLS",
    "Cell",
    "compared",
    "draw",
    "pairs_table",
    "read_cells",
    "tables",
]

CELLS = Path(__file__).parent / "cells"
Floats = npt.NDArray[np.float64]
BESIDE = "beams and samples beside 15,000 probes"
"""The arm that learns from the trials of "probes 15,000", and from beams and samples of the same
queries."""


@dataclass(frozen=True)
class Cell:
    """One arm in one world, after one training."""

    dataset: str
    world: int
    training: int
    arm: str
    calls: int | None = None
    """Trials that it was trained with; None if that is unknown."""
    accuracies: list[float] = field(default_factory=list, repr=False)
    """On each test query, rounded."""
    shown: list[int] = field(default_factory=list, repr=False)
    """How many demonstrations each of them was shown; of several pointers the first one's."""

    @property
    def path(self) -> Path:
        """Where it is kept."""
        arm = re.sub(r"[^a-z0-9]+", "-", self.arm.lower().replace(",", ""))
        return CELLS / self.dataset / f"{arm}-world-{self.world}-training-{self.training}.json"

    def write(self, calls: int | None, accuracies: Floats, shown: Sequence[int]) -> None:
        """Keep what was measured."""
        rounded = [round(each, 4) for each in accuracies.tolist()]
        measured = {"calls": calls, "accuracies": rounded, "shown": shown}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps({**asdict(self), **measured}) + "\n")


class Cells:
    """All cells of a dataset, by arm."""

    def __init__(self, cells: Iterable[Cell]) -> None:
        self._by_arm: dict[str, dict[int, list[Cell]]] = {}
        for cell in cells:
            self._by_arm.setdefault(cell.arm, {}).setdefault(cell.world, []).append(cell)

    def __contains__(self, arm: str) -> bool:
        return arm in self._by_arm

    @property
    def arms(self) -> list[str]:
        """Baselines by accuracy, then policies by budget and accuracy."""

        def order(arm: str) -> tuple[int, float]:
            budget = re.search(r" ([\d,]+)$", arm)
            return int(budget[1].replace(",", "")) if budget else 0, self.of(arm).mean()

        return sorted(self._by_arm, key=order)

    def worlds(self, *arms: str) -> list[int]:
        """The worlds that all these arms have."""
        return sorted(set.intersection(*(set(self._by_arm.get(arm, {})) for arm in arms)))

    def calls(self, arm: str) -> str:
        """Mean over its cells."""
        calls = [cell.calls for each in self._by_arm[arm].values() for cell in each]
        known = [each for each in calls if each is not None]
        return f"{np.mean(known):,.0f}" if len(known) == len(calls) else "–"

    def of(self, arm: str, worlds: Sequence[int] | None = None) -> Floats:
        """Accuracy on each query of these worlds, all of its own by default; the mean over
        trainings."""
        return self._mean(arm, "accuracies", worlds)

    def shown(self, arm: str, worlds: Sequence[int] | None = None) -> Floats:
        """The same for the number of demonstrations."""
        return self._mean(arm, "shown", worlds)

    def _mean(self, arm: str, name: str, worlds: Sequence[int] | None) -> Floats:
        mine = self._by_arm[arm]
        return np.concatenate(
            [
                np.mean([getattr(each, name) for each in mine[world]], axis=0)
                for world in (self.worlds(arm) if worlds is None else worlds)
            ]
        )


def read_cells(dataset: str = "glyphs") -> Cells:
    """Every cell that has been made."""
    paths = sorted((CELLS / dataset).glob("*.json"))
    return Cells(Cell(**json.loads(path.read_text(encoding="utf-8"))) for path in paths)


def tables(cells: Cells, budgets: Sequence[int], ablated: str) -> str:
    """Every table, one below the other."""
    arms = [arm for arm in cells.arms if arm != BESIDE]
    main = [arm for arm in arms if len(cells.worlds(arm)) > 1]
    alone = [arm for arm in arms if arm not in main]
    parts = [_accuracies(cells, main)]
    for budget in budgets:
        pairs = [
            ("first-success", "probes"),
            ("by answers", "first-success"),
            ("first step", "SFT"),
            ("online", "first-success"),
            ("online, by answers", "online"),
        ]
        parts += [
            compared(cells, f"{ours} {budget:,}", f"{theirs} {budget:,}") for ours, theirs in pairs
        ]
    parts.append(compared(cells, BESIDE, "probes 15,000"))
    parts.append(_ablations(cells, alone, ablated))
    return "\n".join(parts)


def _accuracies(cells: Cells, arms: Sequence[str]) -> str:
    """Accuracy and share of the gap from random to what is attainable, all worlds together."""
    rows = [("arm", "calls", "accuracy", "by world", "share of what is attainable")]
    for arm in arms:
        worlds = cells.worlds(arm, "random", "attainable")
        values, low, high = (cells.of(each, worlds) for each in (arm, "random", "attainable"))
        by_world = " ".join(f"{100 * cells.of(arm, [each]).mean():.1f}" for each in worlds)
        accuracy = f"{100 * values.mean():.1f}"
        rows.append((arm, cells.calls(arm), accuracy, by_world, _share(values, low, high)))
    return format_table(rows, numeric=frozenset({1, 2}))


def _share(values: Floats, low: Floats, high: Floats) -> str:
    found = share_of_gap(values, low, high, 0.95)
    if not isinstance(found, Share):
        return f"– ({found})"
    return f"{found.share:.2f} ({found.low:.2f} to {found.high:.2f})"


def compared(cells: Cells, ours: str, theirs: str) -> str:
    """The difference between two arms on the same queries."""
    if ours not in cells or theirs not in cells:
        return f"{ours} less {theirs}: not measured"
    return f"{ours} less {theirs}: {_points(cells, ours, theirs)}"


def _points(cells: Cells, ours: str, theirs: str) -> str:
    worlds = cells.worlds(ours, theirs)
    found = compare(cells.of(ours, worlds), cells.of(theirs, worlds), level=0.95)
    return (
        f"{100 * found.mean:+.1f} points (95 % interval {100 * found.low:+.1f} to "
        f"{100 * found.high:+.1f}; {found.queries:,} queries)"
    )


def _ablations(cells: Cells, arms: Sequence[str], default: str) -> str:
    """Arms of one world, less the default on the same queries."""
    if not arms or default not in cells:
        return ""
    rows = [("otherwise", "calls", "accuracy", f"less {default}")]
    for arm in (default, *arms):
        accuracy = f"{100 * cells.of(arm, cells.worlds(arm, *arms)).mean():.1f}"
        less = "" if arm == default else _points(cells, arm, default)
        rows.append((arm, cells.calls(arm), accuracy, less))
    return format_table(rows, numeric=frozenset({1, 2}))


KINDS = ("pair", "single", "english")


def pairs_table(cells: Cells, queries: int) -> str:
    """glyphs-pairs: accuracy by kind of question, and for how many nothing is shown."""
    header = ("arm", "calls", "accuracy", *KINDS, "shown", "nothing in English", "of attainable")
    rows = [header]
    for arm in cells.arms:
        worlds = cells.worlds(arm, "random", "attainable", "zero-shot")
        kinds = np.concatenate([_kinds(world, queries) for world in worlds])
        values, low, high = (cells.of(each, worlds) for each in (arm, "random", "attainable"))
        shown = cells.shown(arm, worlds)
        english = np.isclose(shown[kinds == "english"], 0).mean()
        rows.append(
            (
                arm,
                cells.calls(arm),
                f"{100 * values.mean():.1f}",
                *(f"{100 * values[kinds == kind].mean():.1f}" for kind in KINDS),
                f"{shown.mean():.2f}",
                f"{english:.0%}",
                _share(values, low, high),
            )
        )
    return format_table(rows, numeric=frozenset(range(1, len(header) - 1)))


def _kinds(world: int, queries: int) -> npt.NDArray[np.str_]:
    """What each test query of a world asks for."""
    options = {"split": "test", "seed": world, "lexicon_seed": world}
    dataset = PluginRef("glyphs-pairs", options).configure("dataset").create()
    return np.array(
        [
            KINDS[2] if not sets else KINDS[0] if len(sets) == 2 else KINDS[1]
            for sets in (
                dataset.relevant[each.row] for each in draw_queries(dataset.queries, queries, 0)
            )
        ]
    )


def draw(cells: Cells, budgets: Sequence[int], path: Path) -> None:
    """Accuracy against calls, with the baselines as lines."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    colors = {
        "online, by answers": "tab:purple",
        "online": "tab:red",
        "first-success": "tab:orange",
        "probes": "tab:green",
        "SFT": "tab:blue",
    }
    for kind, color in colors.items():
        there = [budget for budget in budgets if f"{kind} {budget:,}" in cells]
        each = [
            [
                100 * cells.of(f"{kind} {budget:,}", [world]).mean()
                for world in cells.worlds(f"{kind} {budget:,}")
            ]
            for budget in there
        ]
        axes.fill_between(
            there,
            [min(those) for those in each],
            [max(those) for those in each],
            color=color,
            alpha=0.15,
        )
        means = [float(np.mean(those)) for those in each]
        axes.plot(there, means, marker="o", color=color, label=kind, linewidth=2)
    for arm, style in (("answer-match", "--"), ("mixed", ":"), ("random", "-.")):
        if arm in cells:
            label = "mixed similarity" if arm == "mixed" else arm
            axes.axhline(100 * cells.of(arm).mean(), color="0.4", linestyle=style, label=label)
    axes.set_xlabel("calls of the VLM to train")
    axes.set_ylabel("accuracy on test queries (%)")
    axes.set_title(f"glyphs, 2 shots, {len(cells.worlds('random'))} worlds", loc="left")
    axes.set_xticks(budgets, [f"{budget:,}" for budget in budgets])
    axes.set_ylim(0, 102)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=120)
