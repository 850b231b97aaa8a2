"""What learning is worth on glyphs, for so many trials: `make bench-learning`.

For each seed (of dataset, lexicon and training) and each budget of trials: a policy trained on
InfoScore beams (SFT), one trained on logged RL data (offline), and one that asks for half of its
data itself (online). All answer the same test queries, beside the baselines. At the largest budget
also the recipes of the guide and of the ancestor; at the middle one, for the first seed, what
becomes of offline learning when one choice is made otherwise.

    learning.py FOLDER [--seeds N] [--queries N]

FOLDER keeps responses, data, policies and results: what is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pointer_rl.cli.tables import format_table
from pointer_rl.evaluate.run import EvaluateConfig, EvaluateRun, run_evaluation
from pointer_rl.evaluate.statistics import compare, gap_recovered
from pointer_rl.generate.beams import BeamConfig, BeamRun, run_beams
from pointer_rl.generate.pipeline import GenerateConfig
from pointer_rl.generate.run import GenerateRun, run_generate
from pointer_rl.policy import PointerSelector, SelectorConfig, save_selector
from pointer_rl.train.config import RECIPES, SelectorSizes, TrainConfig
from pointer_rl.train.online import OnlineConfig, OnlineRun, run_online
from pointer_rl.train.run import Output, TrainRun, run_training
from pointer_rl.trials.workbench import Named, TrialOptions

BUDGETS = (5_000, 15_000, 40_000)
PROBES = 20
"""Pointers a query in logged data."""
SHOTS = 2
SUB_POOL = 20
FULL = BUDGETS[-1]
ABLATED = BUDGETS[1]
"""The budget of the ablations: where there is less data, choices matter more."""

DEFAULT = TrainConfig()
THEIRS = SelectorSizes(num_layers=1, num_heads=1, history="gated")
"""The ancestor's selector."""
ABLATIONS: dict[str, Callable[[TrainConfig], TrainConfig]] = {
    "RCE alone": lambda c: replace(c, grpo_epochs=0),
    "GRPO alone": lambda c: replace(c, rce_epochs=0, grpo_epochs=25, grpo_lr=1e-3),
    "RCE without contrast": lambda c: replace(c, contrast=0.0),
    "RCE without contrast, no GRPO": lambda c: replace(c, contrast=0.0, grpo_epochs=0),
    "every step taught": lambda c: replace(c, all_steps=True),
    "advantage without std": lambda c: replace(c, advantage="mean"),
    "KL weight 0": lambda c: replace(c, kl_beta=0.0),
    "GRPO at 1e-3, KL weight 0.01": lambda c: replace(c, grpo_lr=1e-3, kl_beta=0.01),
    "RCE temperature 2 → 0.5": lambda c: replace(c, rce_temperatures=(2.0, 0.5)),
    "1 layer, 1 head": lambda c: replace(c, sizes=SelectorSizes(num_layers=1, num_heads=1)),
    "gated history": lambda c: replace(c, sizes=SelectorSizes(history="gated")),
}
REWARDS = ("hard_only", "soft_only")
OTHER_DATA: dict[str, list[Named]] = {
    "nearest rows, in pairs": [Named("retrieval", {"num": PROBES})],
    "the guide's mixture": [
        Named("beam", {"width": 8}),
        Named("retrieval", {"num": 2}),
        Named("sample", {"temperatures": (1.0, 1.3), "num_samples": 4}),
        Named("random", {"num": 2}),
    ],
}


class Bench:
    """One seed."""

    def __init__(self, folder: Path, seed: int, queries: int) -> None:
        self.folder = folder / f"seed-{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.seed = seed
        self.queries = queries
        self.store = folder / "responses.sqlite"

    def trials(self, split: str, limit: int | None = None) -> TrialOptions:
        options = {
            "split": split,
            "seed": self.seed,
            "lexicon_seed": self.seed,
            "train_size": 10_000,
        }
        return TrialOptions(
            dataset=Named("glyphs", options),
            backend=Named("qwen2vl"),
            prompt=Named("short-answer"),
            metric=Named("vqa"),
            limit=limit,
            store=self.store,
        )

    def logged(self, name: str, generators: list[Named], budget: int) -> Path:
        path = self.folder / f"{name}-{budget}.json"
        if not path.exists():
            run_generate(
                GenerateRun(
                    output_path=path,
                    trials=self.trials("train", budget // PROBES),
                    generators=generators,
                    config=GenerateConfig(shots=SHOTS, seed=self.seed),
                )
            )
        return path

    def probes(self, budget: int) -> Path:
        return self.logged("probes", [Named("probe", {"num": PROBES})], budget)

    def policy(self, name: str, train: Callable[[Output], object]) -> Path:
        folder = self.folder / name
        if not (folder / "bundle.json").exists():
            start = time.perf_counter()
            train(Output(folder=folder, resume=True))
            print(f"seed {self.seed}: {name} in {time.perf_counter() - start:.0f} s", flush=True)
        return folder

    def offline(
        self, name: str, data: Path, config: TrainConfig, reward: str = "hard_plus_soft"
    ) -> Path:
        config = replace(config, seed=self.seed)
        return self.policy(
            name,
            lambda output: run_training(
                TrainRun(data=data, output=output, config=config, reward=Named(reward))
            ),
        )

    def untrained(self) -> Path:
        folder = self.folder / "untrained"
        config = SelectorConfig(
            d_model=256, hidden_dim=256, num_layers=1, num_heads=1, history="gated"
        )
        save_selector(folder, PointerSelector.seeded(config, self.seed))
        return folder

    def sft(self, budget: int) -> Path:
        data = self.folder / f"beams-{budget}.json"
        if not data.exists():
            config = BeamConfig(
                shots=SHOTS, beam_size=1, sampler="mixed", sub_pool=SUB_POOL, seed=self.seed
            )
            run_beams(
                BeamRun(
                    output_path=data,
                    trials=self.trials("train"),
                    config=config,
                    max_calls=budget,
                )
            )
        config = replace(
            DEFAULT,
            seed=self.seed,
            grpo_epochs=0,
            contrast=0.0,
            rce_temperatures=(1.0, 1.0),
            all_steps=True,
            imitate=True,
        )
        run = TrainRun(data=data, output=Output(folder=data), config=config, supervised=True)
        return self.policy(
            f"sft-{budget}", lambda output: run_training(replace(run, output=output))
        )

    def online(self, budget: int) -> Path:
        data = self.probes(budget // 2)
        return self.policy(
            f"online-{budget}",
            lambda output: run_online(
                OnlineRun(
                    trials=self.trials("train"),
                    output=output,
                    online=OnlineConfig(max_calls=budget // 2),
                    config=replace(DEFAULT, seed=self.seed),
                    data=data,
                    shots=SHOTS,
                )
            ),
        )

    def evaluate(self, name: str, policies: Mapping[str, Path], primary: str) -> dict[str, Any]:
        path = self.folder / f"{name}.json"
        if not path.exists():
            evaluation = run_evaluation(
                EvaluateRun(
                    trials=self.trials("test"),
                    policies=policies,
                    config=EvaluateConfig(
                        shots=(SHOTS,), limit=self.queries, primary=primary, seed=self.seed
                    ),
                )
            )
            path.write_text(evaluation.to_json(), encoding="utf-8")
            print(f"seed {self.seed}: {evaluation.verdict}", flush=True)
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def main_arms(self) -> dict[str, Any]:
        policies: dict[str, Path] = {}
        for budget in BUDGETS:
            policies[f"SFT {budget:,}"] = self.sft(budget)
            data = self.probes(budget)
            policies[f"offline {budget:,}"] = self.offline(f"offline-{budget}", data, DEFAULT)
            policies[f"online {budget:,}"] = self.online(budget)
        policies["their selector, untrained"] = self.untrained()
        data = self.probes(FULL)
        for recipe in ("guide", "ancestor"):
            config = TrainConfig(sizes=THEIRS, **RECIPES[recipe])
            policies[f"{recipe}'s recipe {FULL:,}"] = self.offline(recipe, data, config)
            alone = replace(config, grpo_epochs=0)
            policies[f"{recipe}'s RCE alone"] = self.offline(f"{recipe}-rce", data, alone)
        return self.evaluate("main", policies, f"online {FULL:,}")

    def ablations(self) -> dict[str, Any]:
        data = self.probes(ABLATED)
        policies = {"default": self.offline(f"offline-{ABLATED}", data, DEFAULT)}
        for name, changed in ABLATIONS.items():
            policies[name] = self.offline(f"ablation {name}", data, changed(DEFAULT))
        for reward in REWARDS:
            policies[f"reward {reward}"] = self.offline(f"reward {reward}", data, DEFAULT, reward)
        theirs = TrainConfig(sizes=THEIRS, **RECIPES["ancestor"])
        for name, generators in OTHER_DATA.items():
            other = self.logged(name, generators, ABLATED)
            policies[f"data: {name}"] = self.offline(f"data {name}", other, DEFAULT)
            policies[f"the same, ancestor's recipe: {name}"] = self.offline(
                f"ancestor {name}", other, theirs
            )
        return self.evaluate("ablations", policies, "default")


def pooled(results: list[dict[str, Any]], arm: str) -> np.ndarray:
    """Accuracies of all seeds' queries, side by side."""
    return np.concatenate([each["accuracies"][str(SHOTS)][arm] for each in results]).astype(float)


def arms(results: list[dict[str, Any]]) -> list[str]:
    skipped = {"random by seed", "oracle pointers"}
    names = results[0]["accuracies"][str(SHOTS)]
    return [name for name in names if name not in skipped and not name.startswith("vote")]


def table(results: list[dict[str, Any]]) -> str:
    """Accuracy and gap recovered of every arm, all seeds' queries together, and by seed."""
    low, high = pooled(results, "random"), pooled(results, "oracle")
    rows = [("arm", "accuracy", "gap recovered", "by seed")]
    for arm in arms(results):
        values = pooled(results, arm)
        gap = gap_recovered(values, low, high, seed=0)
        by_seed = [
            gap_recovered(*(pooled([each], name) for name in (arm, "random", "oracle")), seed=0)
            for each in results
        ]
        rows.append(
            (
                arm,
                f"{100 * values.mean():.1f}",
                f"{gap.share:.2f} ({gap.low:.2f} to {gap.high:.2f})" if gap else "",
                " ".join(f"{each.share:.2f}" for each in by_seed if each),
            )
        )
    return format_table(rows, numeric=frozenset({1}))


def versus_sft(results: list[dict[str, Any]]) -> list[str]:
    lines = []
    for arm in ("offline", "online"):
        ours, theirs = (pooled(results, f"{each} {FULL:,}") for each in (arm, "SFT"))
        found = compare(ours, theirs, level=0.95, seed=0)
        lines.append(
            f"{arm} less SFT, both for {FULL:,} trials: {100 * found.mean:+.1f} points "
            f"(95 % interval {100 * found.low:+.1f} to {100 * found.high:+.1f}; "
            f"{found.queries:,} queries)"
        )
    return lines


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against trials, with the baselines as lines."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for arm, color in (("online", "tab:red"), ("offline", "tab:orange"), ("SFT", "tab:blue")):
        each = [
            [100 * pooled([result], f"{arm} {budget:,}").mean() for budget in BUDGETS]
            for result in results
        ]
        axes.fill_between(BUDGETS, np.min(each, 0), np.max(each, 0), color=color, alpha=0.15)
        axes.plot(BUDGETS, np.mean(each, 0), marker="o", color=color, label=arm, linewidth=2)
    for arm, style in (("oracle", "--"), ("mixed", ":"), ("random", "-.")):
        label = "mixed similarity" if arm == "mixed" else arm
        height = 100 * pooled(results, arm).mean()
        axes.axhline(height, color="0.4", linestyle=style, label=label)
    axes.set_xlabel("trials asked")
    axes.set_ylabel("accuracy on test queries (%)")
    axes.set_title(f"glyphs, {SHOTS} shots, {len(results)} seeds", loc="left")
    axes.set_xticks(BUDGETS, [f"{budget:,}" for budget in BUDGETS])
    axes.set_ylim(0, 102)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--queries", type=int, default=500)
    given = parser.parse_args()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    benches = [Bench(given.folder, seed, given.queries) for seed in range(given.seeds)]
    results = [bench.main_arms() for bench in benches]
    print(table(results))
    print("\n".join(versus_sft(results)))
    draw(results, given.folder / "learning.png")
    print(f"wrote {given.folder / 'learning.png'}")
    print(f"\nablations (seed 0, {ABLATED:,} trials)")
    print(table([benches[0].ablations()]))


if __name__ == "__main__":
    main()
