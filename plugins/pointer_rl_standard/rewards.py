"""Rewards: the formulas of Lever-Plus under their names there.

hard = correct (0 or 1), soft = accuracy, p = gt_prob, rel = rel_score; a missing value counts 0.
hw, sw and rw are the options hard_weight, soft_weight and rel_weight.

    hard_plus_soft                 hw·hard + sw·soft
    hard_plus_soft_v2, separated   2·hw·hard + sw·soft
    hard_only                      hw·hard
    soft_only                      sw·soft
    hard01_plus_gtprob             hw·hard + sw·p
    hard01_plus_gtprob_separated   2·hw·hard + sw·p
    hard_plus_gtprob_plus_rel      hw·hard + sw·p + rw·(1 - hard)·rel
    legacy                         alpha·quality + beta·correctness

In legacy, quality is beam_score or, with use_logprob, -logprob_score if there is one (the sign is
Lever-Plus's); correctness is hard, or soft if hard is missing, as it is (01) or as 2x - 1 (pm1).
Every reward is clipped to [-5, 5].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pointer_rl.types import Candidate, Outcome

CLIP = 5.0


@dataclass(kw_only=True, frozen=True, slots=True)
class HardOptions:
    """Options of `hard_only`."""

    hard_weight: float = 1.0
    """Weight of `correct`, as 0 or 1."""


@dataclass(kw_only=True, frozen=True, slots=True)
class SoftOptions:
    """Options of `soft_only`."""

    soft_weight: float = 1.0
    """Weight of `accuracy`."""


@dataclass(kw_only=True, frozen=True, slots=True)
class HardSoftOptions(HardOptions):
    """Options of the rewards that add `accuracy` or `gt_prob` to `correct`."""

    soft_weight: float = 1.0
    """Weight of `accuracy` or, in the gtprob rewards, of `gt_prob`."""


@dataclass(kw_only=True, frozen=True, slots=True)
class HardRelOptions(HardSoftOptions):
    """Options of `hard_plus_gtprob_plus_rel`."""

    rel_weight: float = 0.1
    """Weight of `rel_score` if the answer is wrong."""


@dataclass(kw_only=True, frozen=True, slots=True)
class LegacyOptions:
    """Options of `legacy`."""

    alpha: float = 0.2
    """Weight of the candidate's score under the policy."""
    beta: float = 1.0
    """Weight of the correctness."""
    correctness_mode: Literal["01", "pm1"] = "pm1"
    """Correctness as it is, in [0, 1], or as 2x - 1, in [-1, 1]."""
    use_logprob: bool = False
    """Score a candidate by -logprob_score if it has one, not by beam_score."""


@dataclass(frozen=True)
class FormulaReward:
    """The value of a formula for an outcome, clipped to [-5, 5]."""

    formula: str
    """The registered name, whose formula is in the table above."""
    options: Any

    def __call__(self, outcome: Outcome, candidate: Candidate) -> float:
        """Raises ValueError for a failed trial, which has no reward and is not a negative."""
        if outcome.failure is not None:
            raise ValueError(f"a trial that failed has no reward ({outcome.failure})")
        return min(CLIP, max(-CLIP, self._value(outcome, candidate)))

    def _value(self, outcome: Outcome, candidate: Candidate) -> float:
        options, gt_prob = self.options, outcome.gt_prob or 0.0
        hard, soft = float(outcome.correct or 0), outcome.accuracy or 0.0
        value: float
        match self.formula:
            case "hard_plus_soft":
                value = options.hard_weight * hard + options.soft_weight * soft
            case "hard_plus_soft_v2" | "separated":
                value = 2 * options.hard_weight * hard + options.soft_weight * soft
            case "hard_only":
                value = options.hard_weight * hard
            case "soft_only":
                value = options.soft_weight * soft
            case "hard01_plus_gtprob":
                value = options.hard_weight * hard + options.soft_weight * gt_prob
            case "hard01_plus_gtprob_separated":
                value = 2 * options.hard_weight * hard + options.soft_weight * gt_prob
            case "hard_plus_gtprob_plus_rel":
                value = options.hard_weight * hard + options.soft_weight * gt_prob
                value += options.rel_weight * (1 - hard) * (outcome.rel_score or 0.0)
            case _:
                quality = candidate.beam_score or 0.0
                if options.use_logprob and candidate.logprob_score is not None:
                    quality = -candidate.logprob_score
                correctness = soft if outcome.correct is None else hard
                if options.correctness_mode == "pm1":
                    correctness = 2 * correctness - 1
                value = options.alpha * quality + options.beta * correctness
        return value
