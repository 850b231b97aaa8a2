"""Tests of a reward: `pointer_rl.types.Reward`."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

from pointer_rl.testing.plugin import PluginTests, explain
from pointer_rl.types import Candidate, Outcome, Reward

_WRONG = Outcome(raw_generation="blue", answer="blue", correct=False, accuracy=0.0)
_RIGHT = Outcome(raw_generation="red", answer="red", correct=True, accuracy=1.0)
_OUTCOMES = (
    *(_WRONG, _RIGHT),
    Outcome(raw_generation="red", answer="red", correct=True, accuracy=0.3),
    Outcome(raw_generation="", answer="", correct=False, accuracy=0.0, gt_prob=1e-9, rel_score=0.2),
    Outcome(answer="red", correct=True, accuracy=1.0, gt_prob=1.0, rel_score=1.0),
)
"""All of them judged; probabilities are there only if they were asked for."""
_CANDIDATES = (
    Candidate((3, 1), "random"),
    Candidate((3, 1), "beam", beam_rank=0, beam_score=-2.5, logprob_score=-2.5),
    Candidate((3, 1), "sample", logprob_score=-40.0, temperature=1.3, top_p=0.9),
    Candidate((3, 1), "retrieval", similarity_score=-0.2),
    Candidate((0,), "another"),
    Candidate((), "zero-shot"),
)


class RewardTests(PluginTests[Reward]):
    """Computes rewards of right and wrong outcomes, with and without optional fields."""

    kind = "reward"

    def use(self, made: Reward) -> dict[str, Any]:
        return {
            _describe(outcome, candidate): _value(made, outcome, candidate)
            for outcome, candidate in product(_OUTCOMES, _CANDIDATES)
        }

    def test_pays_a_right_answer_no_less_than_a_wrong_one(self) -> None:
        """Training maximises the reward."""
        for candidate in _CANDIDATES:
            right = self.results[_describe(_RIGHT, candidate)]
            wrong = self.results[_describe(_WRONG, candidate)]
            assert right >= wrong, (
                f"a wrong answer earns {wrong} and a right one {right} for the same pointer: "
                "training maximises it, so turn its sign"
            )


def _describe(outcome: Outcome, candidate: Candidate) -> str:
    return f"for {outcome} of {candidate} it"


def _value(reward: Reward, outcome: Outcome, candidate: Candidate) -> float:
    what = _describe(outcome, candidate)
    with explain(what, "fields that do not apply are None; count them as 0"):
        value = reward(outcome, candidate)
    assert isinstance(value, int | float) and not isinstance(value, bool), (
        f"it gave a {type(value).__name__}: return a float"
    )
    assert math.isfinite(value), (
        f"{what} gave {value}: return a finite number, or training leaves the candidate out"
    )
    return float(value)
