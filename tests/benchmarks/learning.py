"""What choosing demonstrations is worth for a given number of calls: `make bench-learning`.

The embedded VLM answers everything. A cell is one arm in one world (the seed of its images and
words) after one training (its seed): which test queries it answers right, and how many calls it was
trained with. A call is one prompt, answered, or scored against all answers. Each cell is written as
JSON into CELLS when it is done, and one that is there is not made again. The tables are printed
from all that there are.

    learning.py FOLDER [--dataset glyphs-pairs] [--worlds SEED …] [--trainings SEED …]
                       [--only PATTERN …] [--queries N]

FOLDER keeps responses, data and policies, from which an interrupted run continues. With a number of
queries of its own, a run compares policies whose difference is too small for TEST_QUERIES; it has
cells of its own, and no baselines.
"""

from __future__ import annotations

import argparse
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from ancestor import ancestor_config, train_ancestor
from learning_tables import (
    BESIDE,
    Cell,
    compared,
    draw,
    pairs_table,
    read_cells,
    tables,
)

from pointer_rl.beams.run import BeamConfig, BeamRun, run_beams
from pointer_rl.evaluate.evaluation import Evaluation
from pointer_rl.evaluate.run import EvaluateConfig, OpenedPolicy, evaluate, open_policy
from pointer_rl.generate.run import GenerateRun, run_generate
from pointer_rl.records.formats import open_writer, read_meta, stream_records
from pointer_rl.session.session import PluginRef, Session, SessionOptions
from pointer_rl.train.config import RECIPES, TrainConfig
from pointer_rl.train.online import OnlineConfig, OnlineRun, run_online
from pointer_rl.train.run import Output, TrainRun, run_training

BUDGETS = (5_000, 15_000, 40_000)
PAIRS_BUDGET = 40_000
ABLATED = BUDGETS[1]
"""The budget of the ablations: where there is less data, choices matter more."""
SHOTS = {"glyphs": 2, "glyphs-pairs": 4}
"""Demonstrations by dataset; in glyphs-pairs the most, because policies may stop."""
TEST_QUERIES = 500
PROBES = 20
SUB_POOL = 20
FIRST_SUCCESS = [PluginRef("first-success")]
ONLINE_SEARCH = PluginRef("first-success", {"budget": 10})
ANSWERS_FIRST = [PluginRef("first-success", {"answers": True})]
ONLINE_ANSWERS = PluginRef("first-success", {"budget": 10, "answers": True})

HISTORIES = {
    "static": TrainConfig(selector_options={"history": "static", "stop": True}),
    "gated": TrainConfig(selector_options={"history": "gated", "stop": True}),
    "sequential": TrainConfig(selector="sequential", selector_options={"stop": True}),
}
"""What is compared on glyphs-pairs."""
DEFAULT = TrainConfig()
THEIRS = {"num_layers": 1, "num_heads": 1, "history": "gated"}
"""Options of the ancestor's selector."""
ABLATIONS: dict[str, TrainConfig] = {
    "RCE alone": replace(DEFAULT, grpo_epochs=0),
    "GRPO alone": replace(DEFAULT, rce_epochs=0, grpo_epochs=25, grpo_lr=1e-3),
    "RCE without contrast": replace(DEFAULT, contrast=0.0),
    "every step taught": replace(DEFAULT, all_steps=True),
    "KL weight 0": replace(DEFAULT, kl_beta=0.0),
    "RCE temperature 2 → 0.5": replace(DEFAULT, rce_temperatures=(2.0, 0.5)),
    "1 layer, 1 head": replace(DEFAULT, selector_options={"num_layers": 1, "num_heads": 1}),
    "gated history": replace(DEFAULT, selector_options={"history": "gated"}),
}
OTHER_DATA: dict[str, list[PluginRef]] = {
    "20 probes, beams, samples": [
        PluginRef("beam", {"width": 3}),
        PluginRef("sample", {"num_samples": 2}),
        PluginRef("probe", {"num": 15}),
    ],
    "20 nearest pairs": [PluginRef("retrieval", {"num": PROBES})],
    "the guide's mixture": [
        PluginRef("beam", {"width": 8}),
        PluginRef("retrieval", {"num": 2}),
        PluginRef("sample", {"temperatures": (1.0, 1.3), "num_samples": 4}),
        PluginRef("random", {"num": 2}),
    ],
}
BESIDE_PROBES = [
    PluginRef("beam", {"width": 3}),
    PluginRef("sample", {"num_samples": 2}),
    PluginRef("probe", {"num": PROBES}),
]
"""What the arm BESIDE learns from: the queries and probes of "probes 15,000", and more."""
BESIDE_CALLS = 20_241
"""Trials of these for 750 queries."""
GUIDE = TrainConfig(selector_options=THEIRS, **RECIPES["guide"])
RECIPES_OF_OTHERS: dict[str, tuple[TrainConfig, Callable[[TrainRun], object]]] = {
    "guide's recipe": (GUIDE, run_training),
    "guide's RCE alone": (replace(GUIDE, grpo_epochs=0), run_training),
    "ancestor's recipe": (ancestor_config(selector_options=THEIRS), train_ancestor),
    "ancestor's RCE alone": (
        ancestor_config(selector_options=THEIRS, grpo_epochs=0),
        train_ancestor,
    ),
}


@dataclass(frozen=True)
class Bench:
    """One world and one seed of training."""

    folder: Path
    dataset: str
    world: int
    training: int
    queries: int = TEST_QUERIES

    @property
    def shots(self) -> int:
        return SHOTS[self.dataset]

    @property
    def any_length(self) -> bool:
        return self.dataset == "glyphs-pairs"

    def session(self, split: str, limit: int | None = None) -> SessionOptions:
        options = {
            "split": split,
            "seed": self.world,
            "lexicon_seed": self.world,
            "train_size": 10_000,
            "test_size": max(1_000, self.queries),
        }
        return SessionOptions(
            dataset=PluginRef(self.dataset, options),
            backend=PluginRef("qwen2vl"),
            prompt=PluginRef("short-answer"),
            metric=PluginRef("vqa"),
            limit=limit,
            cache=self.folder / "responses.sqlite",
        )

    # --- data ---

    def data(
        self, name: str, generators: list[PluginRef], budget: int, shots: int | None = None
    ) -> Path:
        """RL data of the first queries: as many as `budget` calls suffice for."""
        target = self._path(f"{name}-{budget}.json")
        queries = budget // PROBES
        while not target.exists():
            path = self._path(f"{name}-of-{queries}-queries.json")
            if not path.exists():
                run_generate(
                    GenerateRun(
                        output_path=path,
                        session=self.session("train", queries),
                        generators=generators,
                        shots=shots or self.shots,
                        any_length=self.any_length,
                        score_answers=self.any_length,
                    )
                )
            calls = _first_records(path, target, budget)
            queries = max(queries + 64, int(1.05 * queries * budget / calls))
        return target

    def beams(self, budget: int) -> Path:
        path = self._path(f"beams-{budget}.json")
        if not path.exists():
            config = BeamConfig(shots=self.shots, beam_size=1, sampler="mixed", sub_pool=SUB_POOL)
            options = self.session("train", budget // (self.shots * SUB_POOL))
            run_beams(BeamRun(output_path=path, session=options, config=config))
        return path

    # --- policies ---

    def offline(
        self,
        data: Path,
        config: TrainConfig = DEFAULT,
        reward: str = "hard_plus_soft",
        train: Callable[[TrainRun], object] = run_training,
        supervised: bool = False,
    ) -> Callable[[Output], object]:
        run = partial(
            TrainRun,
            data=data,
            config=replace(config, seed=self.training),
            reward=PluginRef(reward),
            supervised=supervised,
        )
        return lambda output: train(run(output=output))

    def sft(self, budget: int) -> Callable[[Output], object]:
        config = replace(
            DEFAULT,
            grpo_epochs=0,
            contrast=0.0,
            rce_temperatures=(1.0, 1.0),
            all_steps=True,
            include_zero_variance=True,
        )
        return self.offline(self.beams(budget), config, supervised=True)

    def first_step(self, budget: int) -> Callable[[Output], object]:
        """RCE and GRPO on the trials from which beams begin: single rows of the sub-pool."""
        nearest = [PluginRef("retrieval", {"num": SUB_POOL})]
        return self.offline(self.data("first-step", nearest, budget, shots=1))

    def probes(self, budget: int) -> Callable[[Output], object]:
        return self.offline(self.data("probes", [PluginRef("probe", {"num": PROBES})], budget))

    def first_success(self, budget: int) -> Callable[[Output], object]:
        return self.offline(self.data("first-success", FIRST_SUCCESS, budget))

    def by_answers(self, budget: int) -> Callable[[Output], object]:
        return self.offline(self.data("by-answers", ANSWERS_FIRST, budget))

    def online(
        self,
        search: PluginRef | None,
        budget: int,
        config: TrainConfig = DEFAULT,
        data: Path | None = None,
    ) -> Callable[[Output], object]:
        return lambda output: run_online(
            OnlineRun(
                session=self.session("train"),
                output=output,
                online=OnlineConfig(max_calls=budget),
                config=replace(config, seed=self.training),
                data=data,
                search=search,
                shots=self.shots,
                score_answers=self.any_length,
            )
        )

    def policy(self, name: str, train: Callable[[], Callable[[Output], object]]) -> OpenedPolicy:
        folder = self._path(f"{name}-training-{self.training}")
        if not (folder / "bundle.json").exists():
            train()(Output(folder=folder))
        return open_policy(folder)

    # --- cells ---

    def baselines(self) -> None:
        """Every arm that needs no policy, and `fixed`, in one evaluation."""
        if self._cell("random").path.exists():
            return
        evaluation = self._evaluate({}, [PluginRef("fixed")], {"split": "train"})
        for measured in evaluation.measured:
            for arm in measured.accuracies:
                self._write(evaluation, arm, measured.shots)

    def measure(self, name: str, train: Callable[[], Callable[[Output], object]]) -> None:
        """Train a policy and write its cell, if it is not there."""
        if self._cell(name).path.exists():
            return
        start = time.perf_counter()
        evaluation = self._evaluate({name: self.policy(name, train)})
        for arm in evaluation.measured[-1].accuracies:
            if arm == name or arm.startswith(f"{name} always"):
                self._write(evaluation, arm, self.shots)
        took = time.perf_counter() - start
        print(f"world {self.world}, training {self.training}: {name} in {took:.0f} s", flush=True)

    def _evaluate(
        self,
        policies: Mapping[str, OpenedPolicy],
        arms: Sequence[PluginRef] = (),
        train_options: Mapping[str, object] = {},
    ) -> Evaluation:
        config = EvaluateConfig(
            shots=(self.shots,), limit=self.queries, train_options=train_options
        )
        if self.queries != TEST_QUERIES:  # evaluate has baselines always, here the fewest
            config = replace(config, random_seeds=1, oracle_random=1, oracle_retrieval=0)
        return evaluate(Session(self.session("test")), policies, config, arms)

    def _cell(self, arm: str) -> Cell:
        return Cell(cells_of(self.dataset, self.queries), self.world, self.training, arm)

    def _write(self, evaluation: Evaluation, arm: str, shots: int) -> None:
        [measured] = [each for each in evaluation.measured if each.shots == shots]
        calls = evaluation.training_calls[shots, arm]
        shown = [len(each[0]) if each else 0 for each in measured.shown[arm]]
        self._cell(arm).write(calls, measured.accuracies[arm], shown)

    def _path(self, name: str) -> Path:
        return self.folder / f"{self.dataset}-{self.world}" / name


def cells_of(dataset: str, queries: int) -> str:
    """The folder of its cells."""
    return dataset if queries == TEST_QUERIES else f"{dataset}-{queries}"


def _first_records(source: Path, target: Path, budget: int) -> int:
    """Copy the first records, up to `budget` candidates; if there are fewer, copy none.

    Returns how many there are.
    """
    records = [(key, record) for key, record in stream_records(source) if not key.startswith("_")]
    sizes = [len(record["pointer_candidates"]) for _, record in records]
    if sum(sizes) >= budget:
        with open_writer(target, read_meta(source)) as writer:
            for (key, record), size in zip(records, sizes, strict=True):
                budget -= size
                if budget < 0:
                    break
                writer.write(key, record)
    return sum(sizes)


def grid(bench: Bench) -> dict[str, Callable[[], Callable[[Output], object]]]:
    """The policies that every world has, by the names of their arms, smallest budgets first."""
    kinds = {
        "SFT": bench.sft,
        "first step": bench.first_step,
        "probes": bench.probes,
        "first-success": bench.first_success,
        "by answers": bench.by_answers,
        "online, probes": partial(bench.online, None),
        "online": partial(bench.online, ONLINE_SEARCH),
        "online, by answers": partial(bench.online, ONLINE_ANSWERS),
    }
    return {
        f"{kind} {budget:,}": partial(make, budget)
        for budget in BUDGETS
        for kind, make in kinds.items()
    }


def pairs_grid(bench: Bench) -> dict[str, Callable[[], Callable[[Output], object]]]:
    """Selectors that may stop: on the same data, and asking as many trials again."""
    half = PAIRS_BUDGET // 2
    [search] = ANSWERS_FIRST

    def searched() -> Path:
        return bench.data("by-answers", ANSWERS_FIRST, half)

    offline = {
        f"{name} {half:,}": lambda config=config: bench.offline(searched(), config)
        for name, config in HISTORIES.items()
    }
    offline[f"sequential, first-success {half:,}"] = lambda: bench.offline(
        bench.data("first-success", FIRST_SUCCESS, half), HISTORIES["sequential"]
    )
    online = {
        f"online {name} {PAIRS_BUDGET:,}": lambda config=config: bench.online(
            search, half, config, searched()
        )
        for name, config in HISTORIES.items()
    }
    return {**offline, **online}


def ablations(bench: Bench) -> dict[str, Callable[[], Callable[[Output], object]]]:
    """What is changed about "first-success" at the budget ABLATED, one thing at a time."""

    def searched() -> Path:
        return bench.data("first-success", FIRST_SUCCESS, ABLATED)

    def other(name: str) -> Path:
        return bench.data(name, OTHER_DATA[name], ABLATED)

    found = {
        name: lambda config=config: bench.offline(searched(), config)
        for name, config in ABLATIONS.items()
    }
    for reward in ("hard_only", "soft_only"):
        found[f"reward {reward}"] = lambda reward=reward: bench.offline(searched(), reward=reward)
    for name in OTHER_DATA:
        found[f"data: {name}"] = lambda name=name: bench.offline(other(name))
    found[BESIDE] = lambda: bench.offline(bench.data("beside", BESIDE_PROBES, BESIDE_CALLS))
    probed = [PluginRef("probe", {"num": PROBES})]
    for name, (config, train) in RECIPES_OF_OTHERS.items():
        found[f"{name}, 20 probes"] = lambda config=config, train=train: bench.offline(
            bench.data("probes", probed, ABLATED), config, train=train
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dataset", choices=[*SHOTS], default="glyphs")
    parser.add_argument("--worlds", type=int, nargs="+", default=[101, 202, 303])
    parser.add_argument("--trainings", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--only", nargs="+", metavar="ARM", help="make the cells whose arms match these patterns"
    )
    parser.add_argument("--queries", type=int, default=TEST_QUERIES, metavar="N")
    given = parser.parse_args()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for training in given.trainings:
        for world in given.worlds:
            bench = Bench(given.folder, given.dataset, world, training, given.queries)
            if given.queries == TEST_QUERIES:
                replace(bench, training=0).baselines()  # nothing of them is trained with a seed
            arms = pairs_grid(bench) if given.dataset == "glyphs-pairs" else grid(bench)
            if given.dataset == "glyphs" and (given.only or world == given.worlds[0]):
                arms |= ablations(bench)
            for name, train in arms.items():
                if given.only is None or any(re.fullmatch(each, name) for each in given.only):
                    bench.measure(name, train)
    cells = read_cells(cells_of(given.dataset, given.queries))
    if given.queries != TEST_QUERIES:
        print(compared(cells, BESIDE, "probes 15,000"))
        return
    if given.dataset == "glyphs-pairs":
        print(pairs_table(cells, TEST_QUERIES))
        return
    print(tables(cells, BUDGETS, f"first-success {ABLATED:,}"))
    draw(cells, BUDGETS, given.folder / "learning.png")
    print(f"wrote {given.folder / 'learning.png'}")


if __name__ == "__main__":
    main()
