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

Every command imports this module, so it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable
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


@dataclass(frozen=True, slots=True)
class Signals:
    """The values that formulas combine; 0 for missing ones."""

    hard: float
    soft: float
    gt_prob: float
    rel: float
    correctness: float
    beam_score: float
    logprob_score: float | None


@dataclass(frozen=True)
class Formula:
    """A reward before clipping."""

    options: type
    value: Callable[[Any, Signals], float]
    """Takes an instance of `options` and the signals."""
    summary: str


def _legacy(o: LegacyOptions, s: Signals) -> float:
    quality = -s.logprob_score if o.use_logprob and s.logprob_score is not None else s.beam_score
    correctness = 2 * s.correctness - 1 if o.correctness_mode == "pm1" else s.correctness
    return o.alpha * quality + o.beta * correctness


def _separated(o: HardSoftOptions, s: Signals) -> float:
    return 2 * o.hard_weight * s.hard + o.soft_weight * s.soft


FORMULAS: dict[str, Formula] = {
    "hard_plus_soft": Formula(
        HardSoftOptions,
        lambda o, s: o.hard_weight * s.hard + o.soft_weight * s.soft,
        "correct + accuracy",
    ),
    "hard_plus_soft_v2": Formula(HardSoftOptions, _separated, "2·correct + accuracy"),
    "hard_only": Formula(HardOptions, lambda o, s: o.hard_weight * s.hard, "correct"),
    "soft_only": Formula(SoftOptions, lambda o, s: o.soft_weight * s.soft, "accuracy"),
    "separated": Formula(
        HardSoftOptions,
        _separated,
        "2·correct + accuracy, so that right and wrong answers never overlap",
    ),
    "hard01_plus_gtprob": Formula(
        HardSoftOptions,
        lambda o, s: o.hard_weight * s.hard + o.soft_weight * s.gt_prob,
        "correct + probability of the annotators' answers",
    ),
    "hard01_plus_gtprob_separated": Formula(
        HardSoftOptions,
        lambda o, s: 2 * o.hard_weight * s.hard + o.soft_weight * s.gt_prob,
        "2·correct + probability of the annotators' answers",
    ),
    "hard_plus_gtprob_plus_rel": Formula(
        HardRelOptions,
        lambda o, s: (
            o.hard_weight * s.hard + o.soft_weight * s.gt_prob + o.rel_weight * (1 - s.hard) * s.rel
        ),
        "correct + probability of the annotators' answers + similarity to them if wrong",
    ),
    "legacy": Formula(
        LegacyOptions,
        _legacy,
        "alpha·(score under the policy) + beta·correctness, as in the first Lever-Plus",
    ),
}
"""Name of the reward → its formula."""


@dataclass(frozen=True)
class FormulaReward:
    """The value of a formula for an outcome, clipped to [-5, 5]."""

    formula: Formula
    options: Any
    """An instance of `formula.options`."""

    def __call__(self, outcome: Outcome, candidate: Candidate) -> float:
        """Raises ValueError for a failed trial, which has no reward and is not a negative."""
        if outcome.failure is not None:
            raise ValueError(f"a trial that failed has no reward ({outcome.failure})")
        hard = float(outcome.correct or 0)
        soft = outcome.accuracy or 0.0
        signals = Signals(
            hard=hard,
            soft=soft,
            gt_prob=outcome.gt_prob or 0.0,
            rel=outcome.rel_score or 0.0,
            correctness=soft if outcome.correct is None else hard,
            beam_score=candidate.beam_score or 0.0,
            logprob_score=candidate.logprob_score,
        )
        return min(CLIP, max(-CLIP, self.formula.value(self.options, signals)))
