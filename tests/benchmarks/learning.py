"""What training is worth on glyphs for a given number of trials: `make bench-learning`.

For each seed (of dataset, lexicon and training) and each budget of trials it trains four policies:
on InfoScore beams (SFT), on as many trials of the kind from which beams begin, judged instead of
scored (first step), on logged RL data (offline), and on data of which it asks half itself (online).
All arms and baselines answer the same test queries. At the largest budget it also trains with the
guide's recipe and the ancestor's training, each with and without GRPO. For the first seed, it also
evaluates the policies of the largest budget at 1 to 4 shots and with their demonstrations in
reverse order, and runs ablations of offline training at the middle budget.

    learning.py FOLDER [--seeds N] [--queries N]

FOLDER keeps responses, data, policies and results; a second run continues from them.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ancestor import ancestor_config, train_ancestor
from learning_tables import accuracy_table, draw, shots_table, versus_own_rce, versus_sft

from pointer_rl.beams.run import BeamConfig, BeamRun, run_beams
from pointer_rl.evaluate.run import EvaluateConfig, OpenedPolicy, evaluate, open_policy
from pointer_rl.generate.run import GenerateRun, run_generate
from pointer_rl.selectors import PointerConfig, PointerSelector, save_selector
from pointer_rl.session.session import PluginRef, Session, SessionOptions
from pointer_rl.train.config import RECIPES, TrainConfig
from pointer_rl.train.online import OnlineConfig, OnlineRun, run_online
from pointer_rl.train.run import Output, TrainRun, run_training
from pointer_rl.types import Decoded, Policy, Pool, QueryBatch

BUDGETS = (5_000, 15_000, 40_000)
PROBES = 20
"""Pointers a query in logged data."""
SHOTS = 2
SUB_POOL = 20
FULL = BUDGETS[-1]
ABLATED = BUDGETS[1]
"""The budget of the ablations: where there is less data, choices matter more."""

DEFAULT = TrainConfig()
THEIRS = {"num_layers": 1, "num_heads": 1, "history": "gated"}
"""Options of the ancestor's selector."""
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
    "1 layer, 1 head": lambda c: replace(c, selector_options={"num_layers": 1, "num_heads": 1}),
    "gated history": lambda c: replace(c, selector_options={"history": "gated"}),
}
REWARDS = ("hard_only", "soft_only")
OTHER_DATA: dict[str, list[PluginRef]] = {
    "nearest rows, in pairs": [PluginRef("retrieval", {"num": PROBES})],
    "the guide's mixture": [
        PluginRef("beam", {"width": 8}),
        PluginRef("retrieval", {"num": 2}),
        PluginRef("sample", {"temperatures": (1.0, 1.3), "num_samples": 4}),
        PluginRef("random", {"num": 2}),
    ],
}


@dataclass(frozen=True)
class Reversed:
    """A policy whose demonstrations are shown in the opposite order."""

    policy: Policy

    def beam(self, queries: QueryBatch, pool: Pool, width: int) -> Decoded:
        found = self.policy.beam(queries, pool, width)
        return Decoded(found.rows.flip(-1), found.logprobs)

    def sample(
        self,
        queries: QueryBatch,
        pool: Pool,
        num_samples: int,
        rngs: Sequence[np.random.Generator],
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> Decoded:
        drawn = self.policy.sample(queries, pool, num_samples, rngs, temperature, top_p)
        return Decoded(drawn.rows.flip(-1), drawn.logprobs)


class Bench:
    """One seed."""

    def __init__(self, folder: Path, seed: int, queries: int) -> None:
        self.folder = folder / f"seed-{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.seed = seed
        self.queries = queries
        self.store = folder / "responses.sqlite"

    def trials(self, split: str, limit: int | None = None) -> SessionOptions:
        options = {
            "split": split,
            "seed": self.seed,
            "lexicon_seed": self.seed,
            "train_size": 10_000,
        }
        return SessionOptions(
            dataset=PluginRef("glyphs", options),
            backend=PluginRef("qwen2vl"),
            prompt=PluginRef("short-answer"),
            metric=PluginRef("vqa"),
            limit=limit,
            cache=self.store,
        )

    def logged(
        self, name: str, generators: list[PluginRef], budget: int, shots: int = SHOTS
    ) -> Path:
        path = self.folder / f"{name}-{budget}.json"
        if not path.exists():
            run_generate(
                GenerateRun(
                    output_path=path,
                    session=self.trials("train", budget // PROBES),
                    generators=generators,
                    shots=shots,
                    seed=self.seed,
                )
            )
        return path

    def probes(self, budget: int) -> Path:
        return self.logged("probes", [PluginRef("probe", {"num": PROBES})], budget)

    def first_step(self, budget: int) -> Path:
        """One demonstration a trial: the rows of the sub-pool from which beams begin."""
        nearest = [PluginRef("retrieval", {"num": SUB_POOL})]
        return self.logged("first-step", nearest, budget, shots=1)

    def policy(self, name: str, train: Callable[[Output], object]) -> Path:
        folder = self.folder / name
        if not (folder / "bundle.json").exists():
            start = time.perf_counter()
            train(Output(folder=folder))
            print(f"seed {self.seed}: {name} in {time.perf_counter() - start:.0f} s", flush=True)
        return folder

    def offline(
        self,
        name: str,
        data: Path,
        config: TrainConfig,
        reward: str = "hard_plus_soft",
        train: Callable[[TrainRun], object] = run_training,
    ) -> Path:
        config = replace(config, seed=self.seed)
        return self.policy(
            name,
            lambda output: train(
                TrainRun(data=data, output=output, config=config, reward=PluginRef(reward))
            ),
        )

    def untrained(self) -> Path:
        folder = self.folder / "untrained"
        config = PointerConfig(d_model=256, **THEIRS)
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
                    session=self.trials("train", budget // (SHOTS * SUB_POOL)),
                    config=config,
                )
            )
        config = replace(
            DEFAULT,
            seed=self.seed,
            grpo_epochs=0,
            contrast=0.0,
            rce_temperatures=(1.0, 1.0),
            all_steps=True,
            include_zero_variance=True,
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
                    session=self.trials("train"),
                    output=output,
                    online=OnlineConfig(max_calls=budget // 2),
                    config=replace(DEFAULT, seed=self.seed),
                    data=data,
                    shots=SHOTS,
                )
            ),
        )

    def evaluate(
        self,
        name: str,
        policies: Mapping[str, Path | OpenedPolicy],
        primary: str,
        shots: tuple[int, ...] = (SHOTS,),
    ) -> dict[str, Any]:
        path = self.folder / f"{name}.json"
        if not path.exists():
            evaluation = evaluate(
                Session(self.trials("test")),
                {
                    arm: open_policy(each) if isinstance(each, Path) else each
                    for arm, each in policies.items()
                },
                EvaluateConfig(shots=shots, limit=self.queries, primary=primary, seed=self.seed),
            )
            path.write_text(evaluation.to_json(), encoding="utf-8")
            print(f"seed {self.seed}: {evaluation.verdict}", flush=True)
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def main_arms(self) -> dict[str, Any]:
        policies: dict[str, Path] = {}
        for budget in BUDGETS:
            policies[f"SFT {budget:,}"] = self.sft(budget)
            first = self.first_step(budget)
            policies[f"first step {budget:,}"] = self.offline(
                f"first-step-{budget}", first, DEFAULT
            )
            data = self.probes(budget)
            policies[f"offline {budget:,}"] = self.offline(f"offline-{budget}", data, DEFAULT)
            policies[f"online {budget:,}"] = self.online(budget)
        policies["their selector, untrained"] = self.untrained()
        data = self.probes(FULL)
        guide = TrainConfig(selector_options=THEIRS, **RECIPES["guide"])
        ancestor = ancestor_config(selector_options=THEIRS)
        recipes: list[tuple[str, TrainConfig, Callable[[TrainRun], object]]] = [
            ("guide", guide, run_training),
            ("ancestor", ancestor, train_ancestor),
        ]
        for recipe, config, train in recipes:
            whole = self.offline(recipe, data, config, train=train)
            policies[f"{recipe}'s recipe {FULL:,}"] = whole
            alone = replace(config, grpo_epochs=0)
            rce = self.offline(f"{recipe}-rce", data, alone, train=train)
            policies[f"{recipe}'s RCE alone"] = rce
        return self.evaluate("main", policies, f"online {FULL:,}")

    def evaluate_shots(self) -> dict[str, Any]:
        """The policies of the largest budget, trained at SHOTS, at 1 to 4."""
        return self.evaluate("shots", self._largest(), f"online {FULL:,}", (1, 2, 3, 4))

    def evaluate_order(self) -> dict[str, Any]:
        """The same at SHOTS, and with each pointer shown in reverse."""
        policies: dict[str, Path | OpenedPolicy] = {**self._largest()}
        for name, folder in self._largest().items():
            opened = open_policy(folder)
            policies[f"{name}, reversed"] = replace(opened, policy=Reversed(opened.policy))
        return self.evaluate("order", policies, f"online {FULL:,}")

    def _largest(self) -> dict[str, Path]:
        return {
            f"{each} {FULL:,}": self.folder / f"{each}-{FULL}" for each in ("offline", "online")
        }

    def ablations(self) -> dict[str, Any]:
        data = self.probes(ABLATED)
        policies = {"default": self.offline(f"offline-{ABLATED}", data, DEFAULT)}
        for name, changed in ABLATIONS.items():
            policies[name] = self.offline(f"ablation {name}", data, changed(DEFAULT))
        for reward in REWARDS:
            policies[f"reward {reward}"] = self.offline(f"reward {reward}", data, DEFAULT, reward)
        theirs = ancestor_config(selector_options=THEIRS)
        for name, generators in OTHER_DATA.items():
            other = self.logged(name, generators, ABLATED)
            policies[f"data: {name}"] = self.offline(f"data {name}", other, DEFAULT)
            policies[f"the same, ancestor's recipe: {name}"] = self.offline(
                f"ancestor {name}", other, theirs, train=train_ancestor
            )
        return self.evaluate("ablations", policies, "default")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--queries", type=int, default=500)
    given = parser.parse_args()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    benches = [Bench(given.folder, seed, given.queries) for seed in range(given.seeds)]
    results = [bench.main_arms() for bench in benches]
    print(accuracy_table(results, SHOTS))
    print("\n".join(versus_sft(results, SHOTS, FULL)))
    print("\n".join(versus_own_rce(results, SHOTS, FULL)))
    draw(results, SHOTS, BUDGETS, given.folder / "learning.png")
    print(f"wrote {given.folder / 'learning.png'}")
    print(f"\npolicies trained at {SHOTS} shots, at others (seed 0, {FULL:,} trials)")
    print(shots_table(benches[0].evaluate_shots()))
    print(f"\nthe order of demonstrations, {SHOTS} shots (seed 0, {FULL:,} trials)")
    print(accuracy_table([benches[0].evaluate_order()], SHOTS))
    print(f"\nablations (seed 0, {ABLATED:,} trials)")
    print(accuracy_table([benches[0].ablations()], SHOTS))


if __name__ == "__main__":
    main()
