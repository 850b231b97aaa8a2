"""Which comparisons are made, and what each says in words.

One comparison is primary: a named arm against random, at one number of shots, fixed before anything
is asked. It has a 99 % interval. All others are secondary: their intervals hold jointly at 95 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pointer_rl.evaluate.arms import ORACLE, RANDOM, VOTE, ZERO_SHOT
from pointer_rl.evaluate.measure import Measured
from pointer_rl.evaluate.statistics import (
    RESAMPLES,
    Difference,
    Recovered,
    compare,
    corrected_level,
    gap_recovered,
)

PRIMARY_LEVEL = 0.99
SECONDARY_LEVEL = 0.95


@dataclass(frozen=True)
class Comparison:
    """An arm against another on the same queries."""

    arm: str
    reference: str
    shots: int
    """Shots of both arms; of the reference alone if the arm is zero-shot."""
    difference: Difference
    family: int | None
    """How many intervals hold jointly, this one included; None for the primary comparison."""

    @property
    def interval(self) -> str:
        """`99 % interval -1.2 to 3.4`, in points."""
        level = SECONDARY_LEVEL if self.family else PRIMARY_LEVEL
        corrected = f", corrected for {self.family} comparisons" if self.family else ""
        low, high = (100 * each for each in (self.difference.low, self.difference.high))
        return f"{level:.0%} interval {low:.1f} to {high:.1f}{corrected}".replace("%", " %")

    @property
    def words(self) -> str:
        """A sentence: better, worse, or not distinguishable and the effect it would have seen."""
        found = self.difference
        about = f"{self.interval}; {found.queries:,} queries"
        who = f"{self.arm}, {in_words(self.shots)}"
        if found.distinguishable:
            better = "better" if found.mean > 0 else "worse"
            points = abs(100 * found.mean)
            return f"{who}: {better} than {self.reference} by {points:.1f} points ({about})"
        seen = (
            f"an effect of {100 * found.detectable:.1f} points or more would have been seen, "
            "4 times in 5"
            if found.detectable <= 1
            else "too few for any effect to be seen"
        )
        return f"{who}: not distinguishable from {self.reference} ({about}; {seen})"


@dataclass(frozen=True)
class Conclusions:
    """What was compared with what."""

    primary: Comparison
    rivals: tuple[Comparison, ...]
    """The primary arm against the best similarity arm, each other policy and its own vote."""
    against_random: Mapping[tuple[int, str], Comparison]
    """By shots (0 for zero-shot) and arm, the primary comparison included."""
    recovered: Mapping[tuple[int, str], Recovered | None]
    """Share of the gap between random and oracle that an arm closes, by shots and arm."""


def conclude(
    measured: Sequence[Measured],
    primary: str,
    primary_shots: int,
    similar: Sequence[str],
    policies: Sequence[str],
    seed: int,
    resamples: int = RESAMPLES,
) -> Conclusions | None:
    """All comparisons of an evaluation; None if no query is left at the primary's shots."""
    by_shots = {each.shots: each for each in measured}
    main = by_shots[primary_shots]
    if not main.kept.any():
        return None

    others: list[tuple[str, str, int]] = [
        (arm, RANDOM, each.shots or primary_shots)
        for each in measured
        for arm in each.accuracies
        if arm not in (RANDOM, ORACLE) and (arm, each.shots) != (primary, primary_shots)
    ]
    ranked = sorted(
        (arm for arm in similar if arm != primary), key=lambda arm: -(main.accuracy(arm) or 0.0)
    )
    rivals = [
        (primary, arm, primary_shots)
        for arm in (*ranked[:1], *policies, VOTE + primary)
        if arm in main.accuracies and arm != primary
    ]

    def made(
        arm: str, reference: str, shots: int, level: float, family: int | None
    ) -> Comparison | None:
        of_arm = by_shots[0 if arm == ZERO_SHOT else shots]
        both = of_arm.kept & by_shots[shots].kept
        if not both.any():
            return None
        values = of_arm.accuracies[arm][both], by_shots[shots].accuracies[reference][both]
        difference = compare(*values, level, seed=seed, resamples=resamples)
        return Comparison(arm, reference, shots, difference, family)

    family = len(others) + len(rivals)
    level = corrected_level(SECONDARY_LEVEL, family)
    first = made(primary, RANDOM, primary_shots, PRIMARY_LEVEL, None)
    assert first is not None, "queries are left at the primary's shots"
    against_random = [first, *(made(*each, level, family) for each in others)]
    against_rivals = [made(*each, level, family) for each in rivals]
    return Conclusions(
        primary=first,
        rivals=tuple(each for each in against_rivals if each is not None),
        against_random={
            (0 if each.arm == ZERO_SHOT else each.shots, each.arm): each
            for each in against_random
            if each is not None
        },
        recovered={
            (each.shots, arm): _recovered(each, arm, seed, resamples)
            for each in measured
            for arm in each.accuracies
            if ORACLE in each.accuracies and arm not in (RANDOM, ORACLE) and each.kept.any()
        },
    )


def in_words(shots: int) -> str:
    """`1 shot`, `2 shots`."""
    return f"{shots} shot{'' if shots == 1 else 's'}"


def _recovered(measured: Measured, arm: str, seed: int, resamples: int) -> Recovered | None:
    arm_N, random_N, oracle_N = (
        measured.accuracies[name][measured.kept] for name in (arm, RANDOM, ORACLE)
    )
    return gap_recovered(arm_N, random_N, oracle_N, seed=seed, resamples=resamples)
