"""Tests of an arm of an evaluation: `pointer_rl.evaluate.arms.Arm`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pointer_rl.testing.fakes import batch, pool, tiny_dataset
from pointer_rl.testing.generator import check_pointer, global_randomness
from pointer_rl.testing.plugin import PluginTests

__all__ = ["ArmTests"]


class ArmTests(PluginTests[Any]):
    """Lets the arm choose for four queries that are in the pool themselves."""

    kind = "arm"

    def setting(self, shots: int) -> Any:
        """What the arm is asked with; override it for an arm that needs more."""
        examples = tiny_dataset().pool
        return SimpleNamespace(
            queries=examples[:4],
            embeddings=batch(examples[:4], len(examples), shots).embeddings,
            pool=pool(examples),
            shots=shots,
            seed=0,
        )

    def test_chooses_pointers_for_each_query(self) -> None:
        """At least one pointer for each query, of up to `shots` rows, never the query itself."""
        for shots in (1, 2):
            setting = self.setting(shots)
            chosen = self.made.choose(setting)
            assert isinstance(chosen, list) and len(chosen) == len(setting.queries), (
                f"choose did not give a list with an entry for each of {len(setting.queries)} "
                "queries"
            )
            for query, pointers in zip(setting.queries, chosen, strict=True):
                assert isinstance(pointers, tuple) and pointers, (
                    f"choose gave {pointers!r} for a query: give a tuple of pointers, at least one"
                )
                for pointer in pointers:
                    check_pointer(
                        pointer, shots, {*range(len(setting.pool.examples))} - {query.row}
                    )

    def test_chooses_the_same_again(self) -> None:
        """Choices depend on the setting, its seed and the options alone."""
        chosen = []
        for seed in range(3):
            with global_randomness(seed):
                chosen.append(self.make().choose(self.setting(2)))
        assert chosen[0] == chosen[1] == chosen[2], (
            "asked again it chooses other pointers: draw from the setting's seed alone, never from "
            "random, numpy.random or torch's own state"
        )
