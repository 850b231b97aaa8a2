"""Which comparisons are made, and what each says in words.

One comparison is primary: a named arm against random, at one number of shots, fixed before anything
is asked. It has a 99 % interval. All other intervals of an evaluation share the remaining four
points of error, so that everything that it says holds jointly at 95 %.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pointer_rl.evaluate.arms import ATTAINABLE, ORACLE, RANDOM, REFERENCES
from pointer_rl.evaluate.measure import Measured
from pointer_rl.evaluate.statistics import (
    Difference,
    Share,
    compare,
    corrected_level,
    share_of_gap,
)

PRIMARY_LEVEL = 0.99
JOINT_LEVEL = 0.95
"""Of all intervals of an evaluation together."""


@dataclass(frozen=True)
class Comparison:
    """An arm against another on the same queries."""

    arm: str
    reference: str
    shots: int
    """Shots of both arms; of one of them alone if the other shows no demonstrations."""
    difference: Difference
    family: int | None
    """How many intervals hold jointly, this one included; None for the primary comparison."""

    @property
    def interval(self) -> str:
        """`99 % interval -1.2 to 3.4`, in points."""
        level = JOINT_LEVEL if self.family else PRIMARY_LEVEL
        corrected = f", corrected for {self.family} intervals" if self.family else ""
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
            "too few for any improvement to be seen"
            if found.detectable is None
            else f"an improvement of {100 * found.detectable:.1f} points or more would have been "
            "seen, 4 times in 5"
        )
        return f"{who}: not distinguishable from {self.reference} ({about}; {seen})"


@dataclass(frozen=True)
class Conclusions:
    """What was compared with what."""

    primary: Comparison
    rivals: tuple[Comparison, ...]
    """The primary arm against every other arm that ran, except random, oracle and attainable."""
    against_random: Mapping[tuple[int, str], Comparison]
    """By shots (0 for zero-shot) and arm, the primary comparison included."""
    recovered: Mapping[tuple[int, str], Share | str]
    """Share of the gap between random and oracle that an arm closes, by shots and arm; or why
    there is none."""
    of_attainable: Share | str | None
    """The primary arm's share of the gap between random and what is attainable; None if the
    dataset does not know what is."""

    @property
    def not_beaten(self) -> tuple[str, ...]:
        """The arms, random included, that the primary arm is not better than."""
        compared = (self.primary, *self.rivals)
        return tuple(each.reference for each in compared if not each.difference.better)

    @property
    def verdict(self) -> str:
        """The primary comparison, and the other arms that the primary arm does not beat."""
        rest = [each for each in self.not_beaten if each != RANDOM]
        if not self.rivals:
            return self.primary.words
        if not rest:
            return f"{self.primary.words}. It beats every other arm"
        return f"{self.primary.words}. It does not beat: {', '.join(rest)}"

    def comparisons(self) -> Iterator[str]:
        """What the verdict rests on: a sentence for each arm not beaten, one for all others."""
        for each in self.rivals:
            if not each.difference.better:
                yield each.words
        beaten = [each for each in self.rivals if each.difference.better]
        if beaten:
            by = ", ".join(
                f"{each.reference} by {100 * each.difference.mean:.1f} "
                f"({100 * each.difference.low:.1f} to {100 * each.difference.high:.1f})"
                for each in beaten
            )
            yield (
                f"{self.primary.arm}, {in_words(self.primary.shots)}: better than {by} points "
                f"({JOINT_LEVEL:.0%} intervals, corrected for {beaten[0].family} intervals)"
            ).replace("%", " %")


def conclude(measured: Sequence[Measured], primary: str, primary_shots: int) -> Conclusions | None:
    """All comparisons of an evaluation; None if no query is left at the primary's shots."""
    by_shots = {each.shots: each for each in measured}
    main = by_shots[primary_shots]
    if not main.kept.any():
        return None
    candidates = [
        (each, arm) for each in measured for arm in each.accuracies if arm not in REFERENCES
    ]
    against_random = [
        (arm, RANDOM, each.shots or primary_shots)
        for each, arm in candidates
        if (arm, each.shots) != (primary, primary_shots)
    ]
    rivals = [
        (primary, arm, primary_shots)
        for each, arm in candidates
        if each.shots in (0, primary_shots) and arm != primary
    ]
    shares = [(each, arm, ORACLE) for each, arm in candidates if ORACLE in each.accuracies]
    if ATTAINABLE in main.accuracies:
        shares.append((main, primary, ATTAINABLE))
    family = len(against_random) + len(rivals) + len(shares)
    level = corrected_level(1 - (PRIMARY_LEVEL - JOINT_LEVEL), family)

    def at(arm: str, shots: int) -> Measured:
        return by_shots[shots] if arm in by_shots[shots].accuracies else measured[0]

    def made(
        arm: str, reference: str, shots: int, level: float = level, number: int | None = family
    ) -> Comparison | None:
        sides = [(at(each, shots), each) for each in (arm, reference)]
        both = sides[0][0].kept & sides[1][0].kept
        if not both.any():
            return None
        values = [each.accuracies[name][both] for each, name in sides]
        return Comparison(arm, reference, shots, compare(values[0], values[1], level), number)

    first = made(primary, RANDOM, primary_shots, PRIMARY_LEVEL, None)
    assert first is not None, "queries are left at the primary's shots"
    with_random = [first, *(made(*each) for each in against_random)]
    found: dict[tuple[int, str, str], Share | str] = {}
    for each, arm, to in shares:
        if each.kept.any():
            of_arm, low, high = (each.accuracies[name][each.kept] for name in (arm, RANDOM, to))
            found[each.shots, arm, to] = share_of_gap(of_arm, low, high, level)
    return Conclusions(
        primary=first,
        rivals=tuple(each for each in (made(*each) for each in rivals) if each is not None),
        against_random={
            (at(each.arm, each.shots).shots, each.arm): each
            for each in with_random
            if each is not None
        },
        recovered={(shots, arm): each for (shots, arm, to), each in found.items() if to == ORACLE},
        of_attainable=found.get((primary_shots, primary, ATTAINABLE)),
    )


def in_words(shots: int) -> str:
    """`1 shot`, `2 shots`."""
    return f"{shots} shot{'' if shots == 1 else 's'}"
