"""What each way of choosing trials teaches for the same number of them.

    which_trials.py [--calls 5000 15000] [--seed 101] [--dataset glyphs-pairs]
                    [--selector sequential]

Worlds have 10,000 training queries. No model is asked: a trial is right if it shows a relevant row,
one with the attribute, value and community that the query is about, which the embedded VLM's answer
equals in 6,432 of 6,435 trials. For two attributes, both must be shown (`gt_prob`, which a search
may look at, is the share that is); a query to be answered in English is right without
demonstrations alone. Training is that of `pointer-rl train` with its defaults, two shots; accuracy
is on the 1,000 test queries, of glyphs-pairs also by the number of attributes, 0 for English.
Online, the policy ranks the rows and each of four rounds asks a quarter of the trials.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pointer_rl.options import parse_assignments
from pointer_rl.selectors import SelectorPolicy, create_selector
from pointer_rl.session.proposing import random_source
from pointer_rl.session.session import PluginRef, Session, SessionOptions
from pointer_rl.train.config import TrainConfig
from pointer_rl.train.groups import Groups
from pointer_rl.train.online import OnlineConfig
from pointer_rl.train.trainer import Trainer, round_stages
from pointer_rl.types import (
    NO_ROW,
    Candidate,
    Example,
    Outcome,
    Pointer,
    Pool,
    QueryBatch,
    SearchGenerator,
)

SHOTS = 2
TOGETHER = 64
Started = tuple[Callable[[], Sequence[Candidate]], Callable[[Any], None]]
"""`ask` and `tell` of a search; a generator has one round."""
"""Queries that are proposed for at once."""
ROUNDS = 4
LOGGED = {
    "20 probes": [PluginRef("probe", {"num": 20})],
    "beams, samples, probes": [
        PluginRef("beam", {"width": 3}),
        PluginRef("sample", {"num_samples": 1}),
        PluginRef("probe", {"num": 15}),
    ],
    "6 probes": [PluginRef("probe", {"num": 6})],
    "pairs by mmr": [PluginRef("mmr", {"num": 10})],
    "greedy": [PluginRef("greedy")],
    "first-success": [PluginRef("first-success")],
    "first-success by answers": [PluginRef("first-success", {"answers": True})],
}
"""Beams and samples are those of an untrained policy."""
ONLINE = {
    "online, 4 probes": PluginRef("probe", {"num": 4}),
    "online, first-success": PluginRef("first-success", {"budget": 10}),
    "online, by answers": PluginRef("first-success", {"budget": 10, "answers": True}),
    "online, greedy": PluginRef("greedy"),
}


@dataclass(frozen=True)
class Split:
    """Queries, in random order, and which rows of the pool answer them."""

    examples: Sequence[Example]
    embeddings: Tensor
    """[N, d]"""
    pool: Pool
    relevant: Sequence[Sequence[Sequence[int]]]
    """For each query, sets of rows: it takes one row of each"""

    @classmethod
    def load(cls, dataset: str, split: str, seed: int) -> Split:
        options = {"split": split, "seed": seed, "lexicon_seed": seed, "train_size": 10_000}
        session = Session(
            SessionOptions(
                dataset=PluginRef(dataset, options),
                backend=PluginRef("qwen2vl"),
                prompt=PluginRef("short-answer"),
                metric=PluginRef("vqa"),
            )
        )
        embeddings, pool = session.embeddings(session.dataset.queries)
        assert session.dataset.relevant is not None
        return cls(session.dataset.queries, embeddings, pool, session.dataset.relevant)

    def batch(self, queries: range) -> QueryBatch:
        """Some of the queries; they may choose every row."""
        place = slice(queries.start, queries.stop)
        allowed = torch.ones(len(queries), len(self.pool.examples), dtype=torch.bool)
        return QueryBatch(self.examples[place], self.embeddings[place], allowed, SHOTS)

    def outcome(self, query: int, pointer: Pointer) -> Outcome:
        sets = self.relevant[query]
        shown = float(np.mean([not set(pointer).isdisjoint(each) for each in sets or [[]]]))
        right = shown == 1 if sets else not pointer
        return Outcome("", "", right, float(right), gt_prob=shown)

    def accuracy(self, policy: SelectorPolicy) -> str:
        """Share of right answers with the policy's likeliest pointers; also by number of sets."""
        decoded = policy.greedy(self.batch(range(len(self.examples))), self.pool)
        pointers = [pointer for (pointer,) in decoded.pointers()]
        right = np.array([self.outcome(*each).correct for each in enumerate(pointers)])
        numbers = np.array([len(sets) for sets in self.relevant])
        shares = [right, *(right[numbers == each] for each in np.unique(numbers))]
        return "".join(f"{100 * each.mean():10.1f}" for each in shares[: None if shares[2:] else 1])


class Asked:
    """The trials of queries, from the first query on."""

    def __init__(self, world: Split) -> None:
        self.world = world
        self.trials: list[list[tuple[Pointer, float]]] = []
        """For each query, its pointers and their rewards."""

    @property
    def calls(self) -> int:
        return sum(map(len, self.trials))

    def ask(self, plugins: Sequence[PluginRef], policy: SelectorPolicy, calls: int) -> None:
        """Ask further queries until there are so many calls in all."""
        while self.calls < calls:
            first = len(self.trials)
            batch = self.world.batch(range(first, first + TOGETHER))
            started = [_start(plugin, policy, batch, self.world.pool) for plugin in plugins]
            for query, of_query in enumerate(zip(*started, strict=True), first):
                if self.calls < calls:
                    self.trials.append(self._trials(query, of_query))

    def _trials(self, query: int, run: Sequence[Started]) -> list[tuple[Pointer, float]]:
        found: dict[Pointer, float] = {}
        for ask, tell in run:
            while candidates := ask():
                told = [(each, self.world.outcome(query, each.pointer)) for each in candidates]
                tell(told)
                # hard_plus_soft
                found |= {each.pointer: 2 * (outcome.accuracy or 0.0) for each, outcome in told}
        return list(found.items())

    def groups(self) -> Groups:
        number = len(self.trials)
        ids = [each.id for each in self.world.examples[:number]]
        flat = [each for trials in self.trials for each in trials]
        return Groups(
            ids=ids,
            images=ids,
            queries=self.world.embeddings[:number],
            pool=self.world.pool.embeddings,
            offsets=np.cumsum([0, *map(len, self.trials)], dtype=np.int64),
            pointers=np.array(
                [pointer + (NO_ROW,) * (SHOTS - len(pointer)) for pointer, _ in flat]
            ),
            rewards=np.array([reward for _, reward in flat], dtype=np.float32),
            sampled=np.zeros(len(flat), dtype=bool),
            pools=[None] * number,
            excluded=[None] * number,
        )


def _start(
    plugin: PluginRef, policy: SelectorPolicy, batch: QueryBatch, pool: Pool
) -> Sequence[Started]:
    """What a generator or a search proposes for each query."""
    generator = plugin.configure("generator").create()
    rngs = [random_source(0, each.id, plugin.name) for each in batch.examples]
    if isinstance(generator, SearchGenerator):
        return [(each.ask, each.tell) for each in generator.start(policy, batch, pool, rngs)]
    proposed = generator.propose(policy, batch, pool, rngs)
    return [(_once(each), lambda told: None) for each in proposed]


def _once(candidates: Sequence[Candidate]) -> Callable[[], Sequence[Candidate]]:
    rounds = iter([candidates])
    return lambda: next(rounds, ())


class Bench:
    """One world, and a kind of selector."""

    def __init__(self, dataset: str, seed: int, selector: PluginRef) -> None:
        self.train, self.test = (Split.load(dataset, each, seed) for each in ("train", "test"))
        self._selector = selector

    def logged(self, plugins: Sequence[PluginRef], calls: int) -> str:
        asked = Asked(self.train)
        with TemporaryDirectory() as folder:
            trainer = self._trainer(folder, TrainConfig())
            asked.ask(plugins, SelectorPolicy(trainer.best), calls)
            trainer.fit(asked.groups(), round_stages(trainer.config, 0), first=0)
            return self._result(asked, trainer)

    def online(self, plugin: PluginRef, calls: int) -> str:
        online = OnlineConfig(max_calls=calls, rounds=ROUNDS)
        epochs = {"rce_epochs": online.rce_epochs, "grpo_epochs": online.grpo_epochs}
        asked = Asked(self.train)
        with TemporaryDirectory() as folder:
            trainer = self._trainer(folder, replace(TrainConfig(), **epochs))
            done = 0
            for number in range(1, ROUNDS + 1):
                by = {"by": "policy" if trainer.log else "similarity"}
                ranked = PluginRef(plugin.name, {**plugin.options, **by})
                asked.ask([ranked], SelectorPolicy(trainer.best), number * calls // ROUNDS)
                stages = round_stages(trainer.config, number)
                trainer.fit(asked.groups(), stages, first=done)
                done += len(stages)
            return self._result(asked, trainer)

    def _trainer(self, folder: str, config: TrainConfig) -> Trainer:
        options = {"d_model": self.train.embeddings.shape[1], **self._selector.options}
        selector = create_selector(self._selector.name, options, seed=0)
        return Trainer(selector, config, torch.device("cpu"), Path(folder) / "checkpoint", {})

    def _result(self, asked: Asked, trainer: Trainer) -> str:
        number = len(asked.trials)
        taught = 1 - float(asked.groups().zero_variance.mean())
        accuracy = self.test.accuracy(SelectorPolicy(trainer.best))
        return f"{number:8,}{asked.calls / number:12.1f}{taught:10.0%}{accuracy}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, nargs="+", default=[5_000, 15_000])
    parser.add_argument("--seed", type=int, default=101)
    parser.add_argument("--only", nargs="+", choices=[*LOGGED, *ONLINE], metavar="NAME")
    parser.add_argument("--dataset", choices=["glyphs", "glyphs-pairs"], default="glyphs")
    parser.add_argument("--selector", default="pointer")
    parser.add_argument("--selector-opt", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    options = parse_assignments(given.selector_opt, "--selector-opt")
    bench = Bench(given.dataset, given.seed, PluginRef(given.selector, options))
    print(f"{'':24}{'calls':>8}{'queries':>8}{'calls/query':>12}{'teaching':>10}{'accuracy':>10}")
    for calls in given.calls:
        runs = {
            **{name: partial(bench.logged, each) for name, each in LOGGED.items()},
            **{name: partial(bench.online, each) for name, each in ONLINE.items()},
        }
        for name, run in runs.items():
            if given.only is None or name in given.only:
                start = time.perf_counter()
                result = run(calls)
                took = f"{time.perf_counter() - start:6.0f} s"
                print(f"{name:24}{calls:8,}{result}{took}", flush=True)


if __name__ == "__main__":
    main()
