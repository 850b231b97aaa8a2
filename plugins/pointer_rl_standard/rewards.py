"""Rewards: the formulas of Lever-Plus under the names that they have there.

hard = correct (0 or 1), soft = accuracy, p = gt_prob, rel = rel_score; what is missing counts 0.
hw, sw, rw are the options hard_weight, soft_weight, rel_weight.

    hard_plus_soft                 hw·hard + sw·soft
    hard_plus_soft_v2, separated   2·hw·hard + sw·soft
    hard_only                      hw·hard
    soft_only                      sw·soft
    hard01_plus_gtprob             hw·hard + sw·p
    hard01_plus_gtprob_separated   2·hw·hard + sw·p
    hard_plus_gtprob_plus_rel      hw·hard + sw·p + rw·(1 - hard)·rel
    legacy                         alpha·quality + beta·correctness

In legacy, quality is beam_score or, with use_logprob and where there is one, -logprob_score (the
sign is theirs); correctness is hard, else soft, as it is (01) or as 2x - 1 (pm1).
Every reward is clipped to [-5, 5].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pointer_rl.types import Candidate, Outcome
from pointer_rl_standard.options import RewardOptions

__all__ = ["FORMULAS", "FormulaReward"]

CLIP = 5.0


@dataclass(frozen=True, slots=True)
class Signals:
    """The numbers that formulas are written in; 0 for what is missing."""

    hard: float
    soft: float
    gt_prob: float
    rel: float
    correctness: float
    beam_score: float
    logprob_score: float | None


Formula = Callable[[RewardOptions, Signals], float]


def _legacy(o: RewardOptions, s: Signals) -> float:
    quality = -s.logprob_score if o.use_logprob and s.logprob_score is not None else s.beam_score
    correctness = 2 * s.correctness - 1 if o.correctness_mode == "pm1" else s.correctness
    return o.alpha * quality + o.beta * correctness


FORMULAS: dict[str, Formula] = {
    "hard_plus_soft": lambda o, s: o.hard_weight * s.hard + o.soft_weight * s.soft,
    "hard_plus_soft_v2": lambda o, s: 2 * o.hard_weight * s.hard + o.soft_weight * s.soft,
    "hard_only": lambda o, s: o.hard_weight * s.hard,
    "soft_only": lambda o, s: o.soft_weight * s.soft,
    "separated": lambda o, s: 2 * o.hard_weight * s.hard + o.soft_weight * s.soft,
    "hard01_plus_gtprob": lambda o, s: o.hard_weight * s.hard + o.soft_weight * s.gt_prob,
    "hard01_plus_gtprob_separated": lambda o, s: (
        2 * o.hard_weight * s.hard + o.soft_weight * s.gt_prob
    ),
    "hard_plus_gtprob_plus_rel": lambda o, s: (
        o.hard_weight * s.hard + o.soft_weight * s.gt_prob + o.rel_weight * (1 - s.hard) * s.rel
    ),
    "legacy": _legacy,
}
"""Name of the reward → its formula, before clipping."""


@dataclass(frozen=True)
class FormulaReward:
    """A formula with its options: the reward of an outcome, in [-5, 5]."""

    formula: Formula
    options: RewardOptions

    def __call__(self, outcome: Outcome, candidate: Candidate) -> float:
        """Raises ValueError for a trial that failed: it has no reward, and is no negative."""
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
        return min(CLIP, max(-CLIP, self.formula(self.options, signals)))
