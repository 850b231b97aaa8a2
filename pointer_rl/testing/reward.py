"""What a reward promises: `pointer_rl.types.Reward`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

from pointer_rl.errors import first_line
from pointer_rl.testing.examine import Check, examine
from pointer_rl.testing.findings import (
    Broken,
    Result,
    Subject,
    raise_findings,
    require,
)
from pointer_rl.types import Candidate, Outcome, Reward

__all__ = ["check_reward", "examine_reward"]

Rewards = Subject[Reward]

_WRONG = Outcome(raw_generation="blue", answer="blue", correct=False, accuracy=0.0)
_RIGHT = Outcome(raw_generation="red", answer="red", correct=True, accuracy=1.0)
_OUTCOMES = (
    *(_WRONG, _RIGHT),
    Outcome(raw_generation="red", answer="red", correct=True, accuracy=0.3),
    Outcome(raw_generation="", answer="", correct=False, accuracy=0.0, gt_prob=1e-9, rel_score=0.2),
    Outcome(answer="red", correct=True, accuracy=1.0, gt_prob=1.0, rel_score=1.0),
)
"""Judged all of them; generations and probabilities are there where they were asked for."""
_CANDIDATES = (
    Candidate((3, 1), "random"),
    Candidate((3, 1), "beam", beam_rank=0, beam_score=-2.5, logprob_score=-2.5),
    Candidate((3, 1), "sample", logprob_score=-40.0, temperature=1.3, top_p=0.9),
    Candidate((3, 1), "retrieval", similarity_score=-0.2),
    Candidate((0,), "another"),
)


def check_reward(factory: Callable[..., Reward], options: Any = None) -> None:
    """Raise ContractError unless the reward that `factory(options)` makes keeps its contract."""
    __tracebackhide__ = True
    subject = Subject("reward", factory, options)
    raise_findings(subject, examine(subject, _FOUNDATIONS, _FURTHER))


def examine_reward(factory: Callable[..., Reward], options: Any) -> Iterator[Result]:
    """Likewise, a result for each check."""
    return examine(Subject("reward", factory, options), _FOUNDATIONS, _FURTHER)


def _value(reward: Reward, outcome: Outcome, candidate: Candidate) -> float:
    try:
        value = reward(outcome, candidate)
    except Exception as error:
        raise Broken(
            f"for {outcome} of {candidate} it raised {type(error).__name__} "
            f"({first_line(error)}): fields that do not apply are None; count them as 0"
        ) from error
    require(
        isinstance(value, int | float) and not isinstance(value, bool),
        f"it gave a {type(value).__name__}: return a float",
    )
    require(
        math.isfinite(value),
        f"for {outcome} of {candidate} it gave {value}: return a finite number, or training "
        "leaves the candidate out",
    )
    return float(value)


def _finite(subject: Rewards) -> None:
    for outcome, candidate in product(_OUTCOMES, _CANDIDATES):
        _value(subject.made, outcome, candidate)


def _deterministic(subject: Rewards) -> None:
    again = subject.make()
    for outcome, candidate in product(_OUTCOMES, _CANDIDATES):
        first = _value(subject.made, outcome, candidate)
        second = _value(again, outcome, candidate)
        require(
            first == second,
            f"for one outcome and candidate it gave {first} and {second}: let it depend on them "
            "and the options alone",
        )


def _right_is_worth_it(subject: Rewards) -> None:
    for candidate in _CANDIDATES:
        right = _value(subject.made, _RIGHT, candidate)
        wrong = _value(subject.made, _WRONG, candidate)
        require(
            right >= wrong,
            f"a wrong answer earns {wrong} and a right one {right} for the same pointer: training "
            "maximises it, so turn its sign",
        )


_FOUNDATIONS: dict[str, Check[Rewards]] = {
    "gives a finite number": _finite,
}
_FURTHER: dict[str, Check[Rewards]] = {
    "gives it again": _deterministic,
    "pays a right answer no less than a wrong one": _right_is_worth_it,
}
