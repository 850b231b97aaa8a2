"""Rewards, against reference values of the ancestor's own code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointer_rl.types import Candidate, Outcome
from pointer_rl_standard.options import RewardOptions
from pointer_rl_standard.rewards import FORMULAS, FormulaReward

CASES = json.loads((Path(__file__).parents[1] / "data" / "rewards.json").read_text())

OPTIONS = ("hard_weight", "soft_weight", "alpha", "beta", "correctness_mode", "use_logprob")


def reward(
    mode: str, outcome: Outcome, candidate: Candidate | None = None, **options: object
) -> float:
    built = FormulaReward(FORMULAS[mode], RewardOptions(**options))  # type: ignore[arg-type]
    return built(outcome, candidate or Candidate((0,), "random"))


def test_every_reference_case() -> None:
    assert {case["reward_mode"] for case in CASES} == set(FORMULAS)
    for case in CASES:
        correct = case["vqa_correct"]
        actual = reward(
            case["reward_mode"],
            Outcome(
                correct=None if correct is None else bool(correct),
                accuracy=case["vqa_acc_score"],
                gt_prob=case["vqa_gt_prob"],
                rel_score=case["vqa_rel_score"],
            ),
            Candidate(
                (0, 1),
                "beam",
                beam_score=case["beam_score"],
                logprob_score=case["logprob_score"],
            ),
            **{name: case[name] for name in OPTIONS},
        )
        assert actual == pytest.approx(case["reward"], abs=1e-9), case


@pytest.mark.parametrize("mode", FORMULAS)
def test_a_failed_trial_has_no_reward(mode: str) -> None:
    with pytest.raises(ValueError, match="server gone"):
        reward(mode, Outcome(failure="server gone"))


@pytest.mark.parametrize("mode", FORMULAS)
def test_what_is_missing_counts_nothing(mode: str) -> None:
    assert reward(mode, Outcome(), correctness_mode="01") == 0


def test_legacy_without_a_logprob_falls_back_to_the_beam_score() -> None:
    beam = Candidate((0,), "beam", beam_score=2.0)
    drawn = Candidate((0,), "sample", beam_score=2.0, logprob_score=-3.0)
    options = {"alpha": 1.0, "beta": 0.0, "use_logprob": True}
    assert reward("legacy", Outcome(), beam, **options) == 2.0
    assert reward("legacy", Outcome(), drawn, **options) == 3.0


def test_rel_counts_where_the_answer_is_wrong() -> None:
    for correct, expected in ((False, 0.25 + 0.1 * 0.5), (True, 1.25)):
        outcome = Outcome(correct=correct, gt_prob=0.25, rel_score=0.5)
        assert reward("hard_plus_gtprob_plus_rel", outcome) == pytest.approx(expected)
    outcome = Outcome(correct=False, gt_prob=0.0, rel_score=0.5)
    assert reward("hard_plus_gtprob_plus_rel", outcome, rel_weight=0.4) == pytest.approx(0.2)


unit = st.floats(0, 1)
score = st.floats(-1e6, 1e6)


@pytest.mark.parametrize("mode", FORMULAS)
@given(accuracy=unit, gt_prob=unit, rel=unit, beam=score, weight=st.floats(0, 100))
def test_is_clipped_and_prefers_right_answers(
    mode: str, accuracy: float, gt_prob: float, rel: float, beam: float, weight: float
) -> None:
    wrong, right = (
        reward(
            mode,
            Outcome(correct=correct, accuracy=accuracy, gt_prob=gt_prob, rel_score=rel),
            Candidate((0,), "beam", beam_score=beam),
            hard_weight=max(weight, 0.1),
        )
        for correct in (False, True)
    )
    assert -5 <= wrong <= right <= 5
