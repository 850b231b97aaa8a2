"""Tests of an arm of an evaluation: `pointer_rl.evaluate.arms.Arm`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pointer_rl.datasets.leakage import AllowedRows
from pointer_rl.evaluate.arms import Arm, Outcomes, Pointers, Setting
from pointer_rl.session.similarity import Space
from pointer_rl.testing.fakes import EqualMetric, batch, pool, tiny_dataset
from pointer_rl.testing.generator import check_pointer, global_randomness
from pointer_rl.testing.plugin import PluginTests


class ArmTests(PluginTests[Arm]):
    """Lets the arm choose for four queries that are in the pool themselves."""

    kind = "arm"

    @property
    def shots(self) -> Sequence[int]:
        """The numbers of shots that it is asked for."""
        return (0,) if self.made.zero_shot else (1, 2)

    def setting(self, shots: int) -> Setting:
        """What the arm chooses for: one similarity, and what the arm `random` chose before."""
        examples = tiny_dataset().pool
        queries = examples[:4]
        space = Space(batch(queries, len(examples)).embeddings, pool(examples))
        chosen: Pointers = [(tuple(range(4, 4 + shots)),)] * len(queries)
        return Setting(
            queries=queries,
            pool=examples,
            shots=shots,
            seed=0,
            space=space,
            similar={"similarity": space},
            relevant=[[5, 4, 6], [4], [], [6, 5]],
            chosen={"random": chosen},
        )

    def choose(self, arm: Arm, setting: Setting) -> Pointers:
        """The pointers for each query. Fails unless they are sound."""
        chosen = arm.choose(setting)
        assert isinstance(chosen, list) and len(chosen) == len(setting.queries), (
            f"choose did not give a list with an entry for each of {len(setting.queries)} queries"
        )
        allowed = AllowedRows(setting.pool).mask(setting.queries)
        for pointers, mine in zip(chosen, allowed, strict=True):
            assert isinstance(pointers, tuple), (
                f"choose gave {pointers!r} for a query: give a tuple of pointers"
            )
            assert pointers or type(arm).accuracies is not Arm.accuracies, (
                "choose gave no pointer for a query: give at least one, or override accuracies"
            )
            for pointer in pointers:
                check_pointer(pointer, setting.shots, {*mine.nonzero()[:, 0].tolist()})
        return chosen

    def test_chooses_pointers_for_each_query(self) -> None:
        """Pointers have up to `shots` rows, all of them allowed."""
        for shots in self.shots:
            self.choose(self.made, self.setting(shots))

    def test_chooses_the_same_again(self) -> None:
        """Choices depend on the setting, its seed and the options alone."""
        setting = self.setting(self.shots[-1])
        chosen = []
        for seed in range(3):
            with global_randomness(seed):
                chosen.append(self.choose(self.make(), setting))
        assert chosen[0] == chosen[1] == chosen[2], (
            "asked again it chooses other pointers: draw from the setting's seed alone, never from "
            "random, numpy.random or torch's own state"
        )

    def test_gives_an_accuracy_for_each_query(self) -> None:
        """`accuracies` is [N], from 0 to 1."""
        setting = self.setting(self.shots[-1])
        shown = self.choose(self.made, setting)
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
