"""Rewards, compared with reference values computed by Lever-Plus."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pointer_rl
from pointer_rl.errors import InputError
from pointer_rl.registry import registry
from pointer_rl.types import Candidate, Outcome
from pointer_rl_standard import REWARDS

CASES = json.loads((Path(__file__).parents[1] / "data" / "rewards.json").read_text())


def reward(
    mode: str, outcome: Outcome, candidate: Candidate | None = None, **options: object
) -> float:
    made = registry().create("reward", mode, options)
    return float(made(outcome, candidate or Candidate((0,), "random")))


USED = {
    "hard_plus_soft": {"hard_weight", "soft_weight"},
    "hard_plus_soft_v2": {"hard_weight", "soft_weight"},
    "hard_only": {"hard_weight"},
    "soft_only": {"soft_weight"},
    "separated": {"hard_weight", "soft_weight"},
    "hard01_plus_gtprob": {"hard_weight", "soft_weight"},
    "hard01_plus_gtprob_separated": {"hard_weight", "soft_weight"},
    "hard_plus_gtprob_plus_rel": {"hard_weight", "soft_weight", "rel_weight"},
    "legacy": {"alpha", "beta", "correctness_mode", "use_logprob"},
}
"""The options that each reward uses."""


@pytest.mark.parametrize("mode", REWARDS)
@pytest.mark.parametrize("option", sorted(set().union(*USED.values())))
def test_an_option_that_the_mode_ignores_is_refused(mode: str, option: str) -> None:
    value = {"correctness_mode": "01", "use_logprob": "yes"}.get(option, "2.5")
    if option in USED[mode]:
        registry().create("reward", mode, {option: value})
    else:
        with pytest.raises(InputError, match=f"reward {mode} has no option '{option}'"):
            registry().create("reward", mode, {option: value})


def test_every_reference_case() -> None:
    """Lever-Plus takes every weight in every mode; ours are given those that the mode uses."""
    assert {case["reward_mode"] for case in CASES} == set(REWARDS)
    for case in CASES:
        ignored = set().union(*USED.values()) - USED[case["reward_mode"]]
        given = {name: value for name, value in case.items() if name not in {"reward", *ignored}}
        actual = pointer_rl.compute_reward_for_candidate(**given)
        assert actual == pytest.approx(case["reward"], abs=1e-9), case


@pytest.mark.parametrize("mode", REWARDS)
def test_a_failed_trial_has_no_reward(mode: str) -> None:
    with pytest.raises(ValueError, match="server gone"):
        reward(mode, Outcome(failure="server gone"))


@pytest.mark.parametrize("mode", REWARDS)
def test_missing_values_count_nothing(mode: str) -> None:
    options = {"correctness_mode": "01"} if mode == "legacy" else {}
    assert reward(mode, Outcome(), **options) == 0


def test_legacy_without_a_logprob_falls_back_to_the_beam_score() -> None:
    beam = Candidate((0,), "beam", beam_score=2.0)
    drawn = Candidate((0,), "sample", beam_score=2.0, logprob_score=-3.0)
    options = {"alpha": 1.0, "beta": 0.0, "use_logprob": True}
    assert reward("legacy", Outcome(), beam, **options) == 2.0
    assert reward("legacy", Outcome(), drawn, **options) == 3.0


def test_rel_counts_if_the_answer_is_wrong() -> None:
    for correct, expected in ((False, 0.25 + 0.1 * 0.5), (True, 1.25)):
        outcome = Outcome(correct=correct, gt_prob=0.25, rel_score=0.5)
        assert reward("hard_plus_gtprob_plus_rel", outcome) == pytest.approx(expected)
    outcome = Outcome(correct=False, gt_prob=0.0, rel_score=0.5)
    assert reward("hard_plus_gtprob_plus_rel", outcome, rel_weight=0.4) == pytest.approx(0.2)


unit = st.floats(0, 1)
score = st.floats(-1e6, 1e6)


@pytest.mark.parametrize("mode", REWARDS)
@given(accuracy=unit, gt_prob=unit, rel=unit, beam=score, weight=st.floats(0, 100))
def test_is_clipped_and_prefers_right_answers(
    mode: str, accuracy: float, gt_prob: float, rel: float, beam: float, weight: float
) -> None:
    wrong, right = (
        reward(
            mode,
            Outcome(correct=correct, accuracy=accuracy, gt_prob=gt_prob, rel_score=rel),
            Candidate((0,), "beam", beam_score=beam),
            **({"hard_weight": max(weight, 0.1)} if "hard_weight" in USED[mode] else {}),
        )
        for correct in (False, True)
    )
    assert -5 <= wrong <= right <= 5
