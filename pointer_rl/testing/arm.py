"""Tests of an arm of an evaluation: `pointer_rl.evaluate.arms.Arm`."""

from __future__ import annotations

from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np

from pointer_rl.evaluate.arms import Arm, Outcomes, Pointers, Setting, Training
from pointer_rl.session.judge import Judge
from pointer_rl.session.similarity import Space
from pointer_rl.testing.fakes import (
    EqualMetric,
    FakeBackend,
    PlainPrompt,
    batch,
    pool,
    tiny_dataset,
)
from pointer_rl.testing.plugin import PluginTests, check_pointer, explain


class ArmTests(PluginTests[Arm]):
    """Lets the arm choose for four queries that are in the pool themselves.

    It may learn from the pool's other four examples, whose answers copy the last demonstration's.
    """

    kind = "arm"
    how_to_repeat = (
        "draw from the setting's seed alone, never from random, numpy.random or torch's own state"
    )

    def setting(self, shots: int) -> Setting:
        """What the arm chooses for: one similarity, and what the arm `random` chose before."""
        examples = tiny_dataset().pool
        queries = examples[:4]
        space = Space(batch(queries, len(examples)).embeddings, pool(examples))
        chosen: Pointers = [(tuple(range(4, 4 + shots)),)] * len(queries)
        return Setting(
            queries=queries,
            shots=shots,
            seed=0,
            space=space,
            training=_training(),
            similar={"similarity": space},
            relevant=[[[5, 4, 6], [7]], [[4]], [], [[6, 5]]],
            chosen={"random": chosen},
        )

    def use(self, made: Arm) -> dict[str, Any]:
        numbers = (0,) if made.zero_shot else (1, 2)
        return {f"choose with {shots} shots": self.choose(made, shots) for shots in numbers}

    def choose(self, arm: Arm, shots: int) -> Pointers:
        """The pointers for each query. Fails unless they are sound."""
        setting = self.setting(shots)
        chosen = arm.choose(setting)
        fix = (
            "give a tuple of pointers for each query, and choose different rows among those that "
            "it may see, or a query sees itself"
        )
        with explain("choose", fix):
            for pointer in chain.from_iterable(chosen):
                check_pointer(pointer)
            chosen = setting.checked(f"arm {self.name}", chosen)
        assert all(chosen) or type(arm).accuracies is not Arm.accuracies, (
            "choose gave no pointer for a query: give at least one, or override accuracies"
        )
        return chosen

    def test_gives_an_accuracy_for_each_query(self) -> None:
        """`accuracies` is [N], from 0 to 1."""
        shots = 0 if self.made.zero_shot else 2
        setting, shown = self.setting(shots), self.results[f"choose with {shots} shots"]
        outcomes: Outcomes = [
            {pointer: (sum(pointer) % 4) / 3 for pointer in ((), *pointers)} for pointers in shown
        ]
        accuracies = np.asarray(self.made.accuracies(setting, shown, outcomes, EqualMetric()))
        assert accuracies.shape == (len(setting.queries),), (
            f"accuracies gave the shape {accuracies.shape}: return one number per query"
        )
        assert ((accuracies >= 0) & (accuracies <= 1)).all(), (
            f"accuracies gave {accuracies.tolist()}: return numbers from 0 to 1"
        )


@lru_cache(maxsize=1)
def _training() -> Training:
    """The same at all numbers of shots, as in an evaluation."""
    examples = tiny_dataset().pool
    backend, metric = FakeBackend(_last_shown), EqualMetric()
    return Training(
        load=lambda: examples[4:],
        pool=examples,
        metric=metric,
        embed=lambda queries: pool(examples).embeddings[4:],
        judge=Judge(prompt=PlainPrompt(), backend=backend, metric=metric).judge,
    )


def _last_shown(text: str) -> str:
    return text.rpartition(" |")[0].split(" ")[-1]
