"""The plot of an evaluation: accuracy by number of demonstrations, one line per arm."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pointer_rl.errors import InputError, MissingExtraError
from pointer_rl.evaluate.arms import ATTAINABLE, ORACLE, RANDOM, VOTE, ZERO_SHOT
from pointer_rl.evaluate.evaluation import Evaluation
from pointer_rl.files import AtomicFile

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def check_drawable(path: Path) -> None:
    """Raise MissingExtraError without matplotlib, and InputError for anything but a .png file."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "the plot", "pointer-rl[plot]")
    if path.suffix != ".png":
        raise InputError(f"{path}: plots are PNG files; use a name that ends in .png")


def draw(evaluation: Evaluation, path: Path) -> None:
    """Write the plot. Raises as `check_drawable`, and InputError if it cannot be written."""
    check_drawable(path)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"text.parse_math": False}), AtomicFile(path) as file:
        figure = Figure(figsize=(8, 5), layout="constrained")
        _fill(figure.add_subplot(), evaluation)
        figure.savefig(file, format="png", dpi=150)


def _fill(axes: Axes, evaluation: Evaluation) -> None:
    ends = [(_line(axes, evaluation, arm, style), arm) for arm, style in _styles(evaluation)]
    axes.set(xlabel="demonstrations", ylabel="accuracy (%)")
    axes.set_ylim(-2, min(102, max(10, 1.08 * axes.dataLim.y1)))
    axes.set_xticks([each.shots for each in evaluation.measured])
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    dataset, number = evaluation.settings["dataset"], len(evaluation.query_ids)
    name = dataset.get("title", dataset["name"])
    axes.set_title(f"{name}: {number:,} queries", loc="left")
    # The legend is next to the lines, ordered by their last accuracy.
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    handles = [lines[arm] for end, arm in sorted(ends, key=lambda end: -end[0])]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def _styles(evaluation: Evaluation) -> Iterator[tuple[str, dict[str, Any]]]:
    """Arm → its style: the primary arm is thickest, a vote is dotted in its arm's colour.

    Arms differ by colour and by marker, so that they can be told apart without colours.
    """
    styles = itertools.cycle((f"C{number}", "os^DvPX<>p"[number]) for number in range(10))
    of_arm: dict[str, tuple[str, str]] = {
        **{ZERO_SHOT: ("0.2", "s"), RANDOM: ("0.45", "o")},
        **{ORACLE: ("black", ""), ATTAINABLE: ("0.6", "")},
    }
    for arm in dict.fromkeys(arm for each in evaluation.measured for arm in each.accuracies):
        chooser = arm.removeprefix(VOTE)
        if chooser not in of_arm:
            of_arm[chooser] = next(styles)
        colour, marker = of_arm[chooser]
        style: dict[str, Any] = {"color": colour, "marker": marker, "linewidth": 1.5}
        style["markersize"] = 5
        if arm in (ORACLE, ATTAINABLE):
            style |= {"linestyle": "--"}
        elif arm == ZERO_SHOT:
            style |= {"linestyle": "", "markersize": 6, "zorder": 4}
        elif arm != chooser:
            style |= {"linestyle": ":", "linewidth": 1, "markerfacecolor": "none"}
        elif arm == evaluation.settings["primary"]:
            style |= {"linewidth": 3, "markersize": 7, "zorder": 3}
        yield arm, style


def _line(axes: Axes, evaluation: Evaluation, arm: str, style: dict[str, Any]) -> float:
    """Draw an arm; returns its last accuracy in percent, -1 if it has none."""
    shots, points, lows, highs = [], [], [], []
    for each in evaluation.measured:
        # At 0 shots every arm is zero-shot, except a vote, which needs demonstrations.
        is_zero_shot = each.shots == 0 and not arm.startswith(VOTE)
        name = ZERO_SHOT if is_zero_shot else arm
        accuracy = each.accuracy(name) if name in each.accuracies else None
        if accuracy is not None:
            seeds = each.seeds(name) or [accuracy]
            shots.append(each.shots)
            points.append(100 * accuracy)
            lows.append(100 * min(seeds))
            highs.append(100 * max(seeds))
    axes.plot(shots, points, label=arm, **style)
    if lows != highs:
        axes.fill_between(shots, lows, highs, color=style["color"], alpha=0.25, linewidth=0)
    return points[-1] if points else -1.0
