"""What the statistics of an evaluation promise, tried on worlds whose truth is known.

For queries from 50 to 1,000 and accuracies of random demonstrations from .02 to .98, it simulates
evaluations with eight arms, in a world in which demonstrations do nothing and in one in which they
help, and prints

- coverage: how often an interval of the table holds the true value, by kind and nominal level;
- family: how often an evaluation says anything false: an interval that misses, or a verdict;
- power: how often the improvement is seen that useless evaluations call detectable (stated: .80).

It exits 1 if coverage is more than two points below nominal, a family is wrong in more than 5 % of
evaluations (up to the simulation's own error), or power is off by more than .05.

    bench_statistics.py [--evaluations N] [--queries N …] [--rates P …]
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pointer_rl.cli.tables import format_table
from pointer_rl.evaluate.conclusions import Comparison, Conclusions, conclude
from pointer_rl.evaluate.measure import Measured
from pointer_rl.evaluate.statistics import Difference, Share, compare

QUERIES = (50, 100, 200, 500, 1_000)
RATES = (0.02, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.98)
SHARES = {"RL": 0.8, "SFT": 0.6, "image": 0.4, "text": 0.1, "vote RL": 0.0, "fixed": 1.0}
"""Of what choosing can gain, what each arm gains in a world in which it does."""
BUDGET = 16
"""Pointers of the oracle."""
SEEDS = 3
SLACK = 0.02
FALSE = 0.05
POWER_SLACK = 0.05


@dataclass(frozen=True)
class World:
    """Right answers are drawn with these probabilities, independently, for each query.

    Demonstrations are worth nothing if `gain` is 0: then the oracle is the best of BUDGET answers
    to which demonstrations make no difference. Otherwise `gain` is what the oracle gains.
    """

    queries: int
    rate: float
    gain: float
    alike: bool = False
    """Whether queries differ in difficulty, so that arms are right on the same ones."""

    def truth(self, arm: str) -> float:
        """The arm's expected accuracy."""
        if arm == "oracle" and not self.gain:
            return 1 - (1 - self.rate) ** BUDGET if not self.alike else self.rate
        return self.rate + self.gain * {**SHARES, "oracle": 1.0}.get(arm, 0.0)

    def draw(self, rng: np.random.Generator) -> list[Measured]:
        """An evaluation's accuracies, without shots and at two."""
        common = rng.random(self.queries) if self.alike else None

        def right(rate: float, *shape: int) -> np.ndarray:
            own = rng.random((*shape, self.queries))
            if common is None:
                return (own < rate).astype(float)
            # Uniform too, and close to the query's own difficulty.
            return ((common + 0.1 * own) % 1 < rate).astype(float)

        seeds = right(self.rate, SEEDS)
        arms = {"random": seeds.mean(0), **{arm: right(self.truth(arm)) for arm in SHARES}}
        oracle = {"oracle": right(self.truth("oracle"))}
        zero = {"zero-shot": right(self.rate)}
        return [
            Measured(0, zero, {}, {}),
            Measured(2, {**arms, **oracle}, {"random": seeds}, {}),
        ]

    def true_difference(self, found: Comparison) -> float:
        return self.truth(found.arm) - self.truth(found.reference)

    def true_share(self, arm: str) -> float:
        """NaN if there is no gap to share."""
        gap = self.truth("oracle") - self.rate
        return (self.truth(arm) - self.rate) / gap if gap else math.nan


@dataclass
class Tally:
    """What was printed, and how much of it was wrong."""

    printed: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    missed: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    levels: dict[str, float] = field(default_factory=dict)
    evaluations: int = 0
    wrong: int = 0
    """Evaluations with an interval that misses."""
    false: int = 0
    """Evaluations that call an arm better or worse than an arm with the same expected accuracy, or
    on the wrong side of one."""

    def add(self, world: World, found: Conclusions) -> None:
        misses = self._missed(world, found)
        self.evaluations += 1
        self.wrong += misses > 0
        self.false += any(_is_false(world, each) for each in compared(found))

    def _missed(self, world: World, found: Conclusions) -> int:
        intervals: list[tuple[str, Difference | Share, float]] = [
            (
                "primary" if each.family is None else "difference",
                each.difference,
                world.true_difference(each),
            )
            for each in compared(found)
        ]
        intervals += [
            ("share", each, world.true_share(arm))
            for (_, arm), each in found.recovered.items()
            if isinstance(each, Share)
        ]
        missed = 0
        for kind, each, truth in intervals:
            misses = not each.low - 1e-9 <= truth <= each.high + 1e-9
            missed += misses
            if not math.isnan(truth):
                self.printed[kind] += 1
                self.levels[kind] = each.level
                self.missed[kind] += misses
        return missed

    def coverage(self, kind: str) -> float:
        return 1 - self.missed[kind] / self.printed[kind]


def compared(found: Conclusions) -> list[Comparison]:
    """Every comparison once."""
    return [*found.against_random.values(), *found.rivals]


def _is_false(world: World, found: Comparison) -> bool:
    truth, said = world.true_difference(found), found.difference
    return said.distinguishable and truth * said.mean <= 1e-12


def simulate(world: World, evaluations: int, seed: int = 0) -> Tally:
    """So many evaluations in a world."""
    rng, tally = np.random.default_rng(seed), Tally()
    for _ in range(evaluations):
        found = conclude(world.draw(rng), "RL", 2)
        assert found is not None
        tally.add(world, found)
    return tally


def power(queries: int, rate: float, level: float, evaluations: int) -> tuple[float, float] | None:
    """The improvement that useless evaluations call detectable, and how often it is seen.

    None if more than one in ten of them say that none is, or if it is more than can be.
    """
    rng = np.random.default_rng(1)

    def drawn(of_arm: float) -> Difference:
        random = rng.binomial(SEEDS, rate, queries) / SEEDS
        return compare((rng.random(queries) < of_arm).astype(float), random, level)

    stated = [drawn(rate).detectable for _ in range(100)]
    known = [each for each in stated if each is not None]
    if len(known) < 90 or rate + np.mean(known) > 1:
        return None
    effect = float(np.mean(known))
    return effect, float(np.mean([drawn(rate + effect).better for _ in range(evaluations)]))


def worlds(queries: Sequence[int], rates: Sequence[float]) -> Iterator[tuple[str, World]]:
    for number in queries:
        for rate in rates:
            yield "useless", World(number, rate, 0.0)
            yield "useless, alike", World(number, rate, 0.0, alike=True)
            for gain in (0.08, 0.3, 0.9):
                if rate + gain <= 1:
                    yield f"gain {gain}", World(number, rate, gain)
                    yield f"gain {gain}, alike", World(number, rate, gain, alike=True)


def failures(tallies: Mapping[str, Tally]) -> list[str]:
    """What is not as promised, beyond two standard errors of the simulation."""
    found = []
    for name, tally in tallies.items():
        for kind, printed in tally.printed.items():
            nominal = tally.levels[kind]
            error = 2 * math.sqrt(nominal * (1 - nominal) / printed)
            if tally.coverage(kind) < nominal - SLACK - error:
                found.append(f"{name}: {kind} covers {tally.coverage(kind):.3f} of {nominal:.4f}")
        error = 2 * math.sqrt(FALSE * (1 - FALSE) / tally.evaluations)
        for what, number in (("misses", tally.wrong), ("false verdicts", tally.false)):
            if number / tally.evaluations > FALSE + error:
                found.append(f"{name}: {what} in {number / tally.evaluations:.3f} of evaluations")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--evaluations", type=int, default=1_000)
    parser.add_argument("--queries", type=int, nargs="+", default=QUERIES)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    given = parser.parse_args()
    kinds = ("primary", "difference", "share")
    rows = [("world", "queries", "random", *kinds, "misses", "false")]
    tallies = {}
    for name, world in worlds(given.queries, given.rates):
        tally = simulate(world, given.evaluations)
        tallies[f"{name}, {world.queries} queries, rate {world.rate}"] = tally
        rows.append(
            (
                *(name, f"{world.queries:,}", f"{world.rate:.2f}"),
                *(f"{tally.coverage(k):.4f}" if k in tally.printed else "–" for k in kinds),
                *(f"{each / tally.evaluations:.3f}" for each in (tally.wrong, tally.false)),
            )
        )
    print(format_table(rows, numeric=frozenset(range(1, 8))))
    levels = {kind: level for tally in tallies.values() for kind, level in tally.levels.items()}
    print(f"nominal: {', '.join(f'{kind} {level:.4f}' for kind, level in levels.items())}\n")

    wrong = failures(tallies)
    rows = [("queries", "random", "level", "detectable", "power")]
    for queries in given.queries:
        for rate in given.rates:
            for level in (levels["primary"], levels["difference"]):
                found = power(queries, rate, level, 1_000)
                place = (f"{queries:,}", f"{rate:.2f}", f"{level:.4f}")
                rows.append(
                    (*place, *(("–", "–") if found is None else map("{:.3f}".format, found)))
                )
                if found is not None and abs(found[1] - 0.8) > POWER_SLACK + 2 * 0.4 / math.sqrt(
                    1_000
                ):
                    wrong.append(
                        f"{' '.join(place)}: an effect of {found[0]:.3f} has {found[1]:.3f}"
                    )
    print(format_table(rows, numeric=frozenset(range(5))))
    print("\n".join(wrong) or "all as promised")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
