"""The tables and the figure of `learning.py`, from its evaluations (`Evaluation.to_json`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pointer_rl.cli.tables import format_table
from pointer_rl.evaluate.statistics import Share, compare, share_of_gap

__all__ = ["accuracy_table", "draw", "shots_table", "versus_own_rce", "versus_sft"]


def pooled(results: list[dict[str, Any]], shots: int, arm: str) -> np.ndarray:
    """The accuracies of all seeds' queries, concatenated."""
    return np.concatenate([each["accuracies"][str(shots)][arm] for each in results]).astype(float)


def arms(results: list[dict[str, Any]], shots: int) -> list[str]:
    names = results[0]["accuracies"][str(shots)]
    return [name for name in names if name != "random by seed" and not name.startswith("vote")]


def recovered(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> str:
    """The share of the gap from `low` to `high` with its 95 % interval, or a dash with a reason."""
    found = share_of_gap(values, low, high, 0.95)
    if not isinstance(found, Share):
        return f"– ({found})"
    return f"{found.share:.2f} ({found.low:.2f} to {found.high:.2f})"


def accuracy_table(results: list[dict[str, Any]], shots: int) -> str:
    """Accuracy and gap recovered of every arm, all seeds' queries together, and by seed."""
    low, high = (pooled(results, shots, arm) for arm in ("random", "oracle"))
    rows = [("arm", "calls", "accuracy", "gap recovered", "by seed")]
    for arm in arms(results, shots):
        values = pooled(results, shots, arm)
        own = (
            [pooled([each], shots, name) for name in (arm, "random", "oracle")] for each in results
        )
        shares = [(ours - low).mean() / (high - low).mean() for ours, low, high in own]
        rows.append(
            (
                arm,
                training_calls(results[0], shots, arm),
                f"{100 * values.mean():.1f}",
                recovered(values, low, high),
                " ".join(f"{each:.2f}" for each in shares),
            )
        )
    return format_table(rows, numeric=frozenset({1, 2}))


def training_calls(result: dict[str, Any], shots: int, arm: str) -> str:
    """Trials to train the arm, for one seed."""
    [row] = [each for each in result["rows"] if (each["arm"], each["shots"]) == (arm, shots)]
    return "–" if row["training_calls"] is None else f"{row['training_calls']:,}"


def versus_sft(results: list[dict[str, Any]], shots: int, budget: int) -> list[str]:
    lines = []
    for arm in ("first step", "offline", "online"):
        ours, theirs = (pooled(results, shots, f"{each} {budget:,}") for each in (arm, "SFT"))
        lines.append(f"{arm} less SFT, both for {budget:,} trials: {_difference(ours, theirs)}")
    return lines


def versus_own_rce(results: list[dict[str, Any]], shots: int, budget: int) -> list[str]:
    """What GRPO adds to RCE in the guide's and the ancestor's training."""
    lines = []
    for recipe in ("guide", "ancestor"):
        whole = pooled(results, shots, f"{recipe}'s recipe {budget:,}")
        alone = pooled(results, shots, f"{recipe}'s RCE alone")
        lines.append(f"{recipe}'s recipe less its RCE alone: {_difference(whole, alone)}")
        left = recovered(whole, alone, pooled(results, shots, "oracle"))
        lines.append(f"of the gap that {recipe}'s RCE left to the oracle, its GRPO recovers {left}")
    return lines


def _difference(ours: np.ndarray, theirs: np.ndarray) -> str:
    found = compare(ours, theirs, level=0.95)
    return (
        f"{100 * found.mean:+.1f} points (95 % interval {100 * found.low:+.1f} to "
        f"{100 * found.high:+.1f}; {found.queries:,} queries)"
    )


def shots_table(result: dict[str, Any]) -> str:
    """Accuracy and gap recovered by number of shots, an arm a line."""
    every = sorted(map(int, result["accuracies"].keys() - {"0"}))
    rows = [("arm", *(f"{shots} shot{'s' if shots > 1 else ''}" for shots in every))]
    for arm in arms([result], every[0]):
        cells = []
        for shots in every:
            values, *ends = (pooled([result], shots, each) for each in (arm, "random", "oracle"))
            cells.append(f"{100 * values.mean():.1f} {recovered(values, *ends)}")
        rows.append((arm, *cells))
    return format_table(rows, numeric=frozenset())


def draw(results: list[dict[str, Any]], shots: int, budgets: Sequence[int], path: Path) -> None:
    """Accuracy against trials, with the baselines as lines."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for arm, color in (("online", "tab:red"), ("offline", "tab:orange"), ("SFT", "tab:blue")):
        each = [
            [100 * pooled([result], shots, f"{arm} {budget:,}").mean() for budget in budgets]
            for result in results
        ]
        axes.fill_between(budgets, np.min(each, 0), np.max(each, 0), color=color, alpha=0.15)
        axes.plot(budgets, np.mean(each, 0), marker="o", color=color, label=arm, linewidth=2)
    for arm, style in (("oracle", "--"), ("mixed", ":"), ("random", "-.")):
        label = "mixed similarity" if arm == "mixed" else arm
        height = 100 * pooled(results, shots, arm).mean()
        axes.axhline(height, color="0.4", linestyle=style, label=label)
    axes.set_xlabel("trials asked")
    axes.set_ylabel("accuracy on test queries (%)")
    axes.set_title(f"glyphs, {shots} shots, {len(results)} seeds", loc="left")
    axes.set_xticks(budgets, [f"{budget:,}" for budget in budgets])
    axes.set_ylim(0, 102)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=120)
