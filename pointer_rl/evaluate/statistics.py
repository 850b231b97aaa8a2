"""Statistics of arms that answered the same queries: pure functions of numpy arrays.

Accuracies lie in [0, 1], so the difference of two arms on a query lies in [-1, 1]. Assumed
throughout: the queries are independent draws, and their number is large enough for a mean to be
nearly normal. Both are what `tests/benchmarks/bench_statistics.py` tries at the edges.

**Difference.** Two queries are added, one that the arm wins completely and one that it loses
completely, and the interval is mean ± z · s / √(N + 2) of these N + 2 differences. For answers that
are right or wrong this is the adjusted Wald interval for paired proportions (Bonett and Price,
2012, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired
data", J. Educ. Behav. Stat. 37), which adds one to both kinds of discordant pairs, as Agresti and
Caffo (2000) do for unpaired ones. It holds where few queries differ or all agree; with many queries
it is the usual interval. It is a formula: the far tails that a correction asks for cost nothing,
and do not depend on a seed as those of a bootstrap do.

**Share of a gap.** Fieller's interval for a ratio of means (1954, "Some problems in interval
estimation", JRSS B 16): the share s belongs to it if the arm is not distinguishable from
random + s · (oracle - random) by the interval above.

**Several intervals.** Bonferroni: they hold jointly, whatever their dependence. Holm's procedure
(1979) rejects more, but has no simple intervals to print.

Shapes: N queries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SMALLEST_GAP = 0.05
"""Gap between random and oracle below which no share of it is stated (five points)."""
POWER = 0.8


@dataclass(frozen=True)
class Difference:
    """Mean difference of two arms over the same queries, as a fraction (0.01 is one point)."""

    mean: float
    low: float
    high: float
    level: float
    """Confidence of the interval, corrected if it is one of several."""
    detectable: float | None
    """The smallest improvement on the reference that would be seen 4 times in 5 at this level; None
    if not even an arm that is always right would be."""
    queries: int

    @property
    def distinguishable(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0

    @property
    def better(self) -> bool:
        """Whether the interval lies above 0."""
        return self.low > 0


@dataclass(frozen=True)
class Share:
    """(arm - random) / (oracle - random) and its interval."""

    share: float
    low: float
    high: float
    level: float
    """Confidence of the interval, corrected if it is one of several."""


def compare(arm_N: Floats, reference_N: Floats, level: float) -> Difference:
    """The paired difference arm - reference, for N ≥ 1 queries without NaN."""
    differences_N = arm_N - reference_N
    added = np.append(differences_N, [1.0, -1.0])
    half = _quantile((1 + level) / 2) * float(added.std(ddof=1)) / math.sqrt(len(added))
    return Difference(
        mean=float(differences_N.mean()),
        low=max(-1.0, float(added.mean()) - half),
        high=min(1.0, float(added.mean()) + half),
        level=level,
        detectable=detectable_improvement(arm_N, reference_N, level),
        queries=len(differences_N),
    )


def detectable_improvement(arm_N: Floats, reference_N: Floats, level: float) -> float | None:
    """The smallest mean difference whose interval lies above 0 with probability POWER.

    The alternative is an arm that differs from the reference as observed and, besides, answers a
    random share of the queries perfectly. Its spread is used, not the observed one: at a low
    accuracy, most of it comes with the improvement (as in sample sizes for McNemar's test, Connor
    1987). None if the share would exceed 1.
    """
    powers = np.arange(1, 5)[:, None]
    observed = ((arm_N - reference_N) ** powers).mean(axis=1).tolist()
    perfect = ((1 - reference_N) ** powers).mean(axis=1).tolist()
    observed[0] = 0.0  # so that the effect is that of the share alone
    quantile = _quantile((1 + level) / 2)

    def power(share: float) -> float:
        moments = [(1 - share) * a + share * b for a, b in zip(observed, perfect, strict=True)]
        return _power(moments, len(arm_N), quantile)

    low, high = 0.0, 1.0
    if power(high) < POWER:
        return None
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high * float(perfect[0])


def _power(moments: Sequence[float], number: int, quantile: float) -> float:
    """Probability that the low end of `compare` is above 0, if differences have these moments.

    The low end is mean - quantile · s / √(N + 2). To first order it is normal, and its deviation
    follows from the first four moments (delta method): where differences are skewed, the mean and s
    go together, and the low end varies less than the mean.
    """
    first, second, third, fourth = moments
    total = number + 2
    mean = number * first / total
    deviation = math.sqrt((number * second + 2 - total * mean**2) / (total - 1))
    # A query moves the low end by of_value · difference - of_square · difference².
    of_square = quantile / (2 * deviation * math.sqrt(total) * (total - 1))
    of_value = 1 / total + 2 * of_square * mean
    variance = (
        of_value**2 * (second - first**2)
        + of_square**2 * (fourth - second**2)
        - 2 * of_value * of_square * (third - first * second)
    )
    low = mean - quantile * deviation / math.sqrt(total)
    return _NORMAL.cdf(low / math.sqrt(max(number * variance, 1e-12)))


def corrected_level(level: float, intervals: int) -> float:
    """Bonferroni: the level at which so many intervals hold jointly with confidence `level`."""
    return 1 - (1 - level) / max(intervals, 1)


def share_of_gap(arm_N: Floats, random_N: Floats, oracle_N: Floats, level: float) -> Share | str:
    """The share of the gap between random and oracle that the arm closes, or why there is none.

    There is none if the gap is below SMALLEST_GAP, or not distinguishable from 0 at this level:
    Fieller's interval is then unbounded.
    """
    gains_N, gaps_N = arm_N - random_N, oracle_N - random_N
    gain, gap = float(gains_N.mean()), float(gaps_N.mean())
    if gap < SMALLEST_GAP:
        return f"gap below {100 * SMALLEST_GAP:.0f} points"
    added = np.array([[*gains_N, 1.0, -1.0], [*gaps_N, 0.0, 0.0]])
    (mean_gain, mean_gap), number = added.mean(axis=1).tolist(), added.shape[1]
    # (mean_gain - s mean_gap)² ≤ z² var(gain - s gap) / (N + 2), a quadratic inequality in s.
    margins = (_quantile((1 + level) / 2) ** 2 / number * np.cov(added)).tolist()
    a = mean_gap**2 - margins[1][1]
    b = mean_gain * mean_gap - margins[0][1]
    c = mean_gain**2 - margins[0][0]
    if a <= 0:
        return "too few queries"
    root = math.sqrt(max(0.0, b * b - a * c))
    return Share(gain / gap, (b - root) / a, (b + root) / a, level)


_NORMAL = NormalDist()
_quantile = _NORMAL.inv_cdf
