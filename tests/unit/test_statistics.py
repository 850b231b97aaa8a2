"""Statistics against naive loops, exhaustive enumeration, and worlds whose truth is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointer_rl.evaluate.conclusions import conclude
from pointer_rl.evaluate.measure import Measured
from pointer_rl.evaluate.statistics import (
    compare,
    corrected_level,
    detectable_effect,
    difference_interval,
    gap_recovered,
    resampled_means,
)

ACCURACIES = st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0])
PAIRS = st.lists(st.tuples(ACCURACIES, ACCURACIES), min_size=1, max_size=30)


def columns(pairs):
    return (np.array(each) for each in zip(*pairs, strict=True))


def naive_interval(differences, level, resamples, seed):
    """One resample after the other, one query after the other."""
    with_ends = [*differences, 1.0, -1.0]
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        total = 0.0
        for _ in with_ends:
            total += with_ends[rng.integers(len(with_ends))]
        means.append(total / len(with_ends))
    return tuple(np.quantile(means, [(1 - level) / 2, (1 + level) / 2]))


# --- the bootstrap --------------------------------------------------------------------------------


def test_resamples_have_the_distribution_of_every_possible_draw():
    values = np.array([[0.0, 1.0], [1.0, 1.0], [0.3, 0.6], [0.3, 0.0]])
    every = np.array([values[list(d)].mean(0) for d in itertools.product(range(4), repeat=4)])
    drawn = resampled_means(values, seed=1, resamples=40_000)
    assert drawn.shape == (40_000, 2)
    for quantile in (0.05, 0.25, 0.5, 0.75, 0.95):
        for column in (0, 1):
            at = np.quantile(every[:, column], quantile)
            share = (every[:, column] <= at + 1e-9).mean()
            assert (drawn[:, column] <= at + 1e-9).mean() == pytest.approx(share, abs=0.01)
    # Columns are drawn together: their correlation is that of the rows.
    found, exact = np.corrcoef(drawn.T)[0, 1], np.corrcoef(every.T)[0, 1]
    assert found == pytest.approx(exact, abs=0.02)


def test_the_interval_is_a_naive_loops():
    differences = np.random.default_rng(3).choice([-1, -0.3, 0, 0, 0.3, 0.6, 1], 40)
    naive = naive_interval(differences.tolist(), 0.95, 4_000, seed=5)
    assert difference_interval(differences, 0.95, seed=0) == pytest.approx(naive, abs=0.02)


@given(PAIRS)
def test_swapping_the_arms_mirrors_the_interval(pairs):
    a, b = columns(pairs)
    there, back = (compare(*each, 0.99, seed=0, resamples=500) for each in ((a, b), (b, a)))
    assert there.mean == pytest.approx(-back.mean)
    assert there.detectable == pytest.approx(back.detectable)
    if abs(there.mean) > 1e-9:
        assert (there.low, there.high) == pytest.approx((-back.high, -back.low))


@given(PAIRS, st.randoms(use_true_random=False))
def test_the_order_of_the_queries_does_not_matter(pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    one, other = (
        compare(*columns(each), 0.99, seed=0, resamples=500) for each in (pairs, shuffled)
    )
    assert one.mean == pytest.approx(other.mean)
    if abs(one.mean) > 1e-9:  # whichever sign rounding gives it, the interval begins there
        assert (one.low, one.high) == pytest.approx((other.low, other.high))


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=30), st.integers(-8, 8))
def test_shifting_the_values_shifts_their_resampled_means(values, by):
    values = np.array(values, dtype=float)[:, None]
    shifted = resampled_means(values + by, seed=2, resamples=200)
    assert shifted == pytest.approx(resampled_means(values, seed=2, resamples=200) + by)


@given(PAIRS)
def test_the_interval_holds_the_mean_and_widens_with_its_level(pairs):
    a, b = columns(pairs)
    wide, narrow = (compare(a, b, level, seed=0, resamples=2_000) for level in (0.99, 0.95))
    assert -1 <= wide.low <= narrow.low <= narrow.mean <= narrow.high <= wide.high <= 1
    assert wide.queries == len(pairs)


# --- few queries, no spread -----------------------------------------------------------------------


@pytest.mark.parametrize("difference", [0.0, 0.3, 1.0, -1.0])
@pytest.mark.parametrize("queries", [1, 2, 5])
def test_a_few_queries_decide_nothing_however_much_they_agree(difference, queries):
    arm, reference = max(difference, 0.0), max(-difference, 0.0)
    found = compare(np.full(queries, arm), np.full(queries, reference), 0.99, seed=0)
    assert found.mean == difference
    assert not found.distinguishable
    assert math.isfinite(found.detectable)


def test_from_one_query_no_effect_can_be_seen():
    assert compare(np.ones(1), np.zeros(1), 0.99, seed=0).detectable > 1


def test_many_queries_that_agree_do_decide():
    ones, zeros = np.ones(100), np.zeros(100)
    assert compare(ones, zeros, 0.99, seed=0).distinguishable
    assert compare(zeros, ones, 0.99, seed=0).distinguishable
    same = compare(ones, ones, 0.99, seed=0)
    assert not same.distinguishable
    assert 0 < same.detectable < 0.1  # some effect would have been seen; never "any, however small"


# --- what could have been seen --------------------------------------------------------------------


def test_the_detectable_effect_is_the_textbooks():
    differences = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], 10_000)
    expected = (2.5758 + 0.8416) * differences.std(ddof=1) / 100
    assert detectable_effect(differences, 0.99) == pytest.approx(expected, rel=0.01)
    expected = (1.9600 + 0.8416) * differences.std(ddof=1) / 100
    assert detectable_effect(differences, 0.95) == pytest.approx(expected, rel=0.01)


def test_an_effect_of_that_size_is_seen_four_times_in_five():
    rng, queries = np.random.default_rng(0), 300

    def answers(rate):
        return (rng.random(queries) < rate).astype(float)

    effect = 3.417 * math.sqrt(2 * 0.25 / queries)  # two independent arms that are right by halves
    found = [
        compare(answers(0.5 + effect / 2), answers(0.5 - effect / 2), 0.99, seed=0, resamples=1_000)
        for _ in range(400)
    ]
    assert np.mean([each.detectable for each in found]) == pytest.approx(effect, rel=0.02)
    assert np.mean([each.distinguishable for each in found]) == pytest.approx(0.8, abs=0.05)


def test_corrected_levels():
    assert corrected_level(0.95, 10) == pytest.approx(0.995)
    assert corrected_level(0.95, 1) == 0.95
    assert corrected_level(0.95, 0) == 0.95


# --- gap recovered --------------------------------------------------------------------------------


def test_the_share_of_the_gap():
    random, oracle = np.zeros(200), np.ones(200)
    arm = np.repeat([1.0, 0.0], [150, 50])
    found = gap_recovered(arm, random, oracle, seed=0)
    assert found is not None
    assert found.share == pytest.approx(0.75)
    # With a gap of 1 everywhere it is a proportion: 0.75 ± 1.96 sqrt(0.75 · 0.25 / 200)
    assert (found.low, found.high) == pytest.approx((0.69, 0.81), abs=0.01)
    assert gap_recovered(random, random, oracle, seed=0).share == 0
    assert gap_recovered(oracle, random, oracle, seed=0).low == 1


def test_numerator_and_denominator_are_drawn_together():
    """Where an arm gets half of each query's gap, the share is known exactly."""
    gap = np.random.default_rng(0).random(50)
    found = gap_recovered(gap / 2, np.zeros(50), gap, seed=0)
    assert (found.share, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))


def test_without_a_gap_there_is_no_share():
    ones = np.ones(200)
    assert gap_recovered(ones, ones, ones, seed=0) is None
    barely = ones.copy()
    barely[0] = 0.0
    assert gap_recovered(ones, barely, ones, seed=0) is None  # half a point
    assert gap_recovered(np.ones(1), np.zeros(1), np.ones(1), seed=0) is None  # one query


# --- worlds whose truth is known ------------------------------------------------------------------


def evaluations(rng, queries, number, draw, arms=("RL",), resamples=500):
    """The conclusions of so many evaluations; draw(): [arms + 3 seeds of random, queries]."""
    for _ in range(number):
        *of_arms, a, b, c = draw(rng, queries)
        accuracies = {"random": (a + b + c) / 3, **dict(zip(arms, of_arms, strict=True))}
        measured = Measured(2, accuracies, np.stack([a, b, c]), np.zeros(queries, dtype=int))
        yield conclude([measured], "RL", 2, [], ["RL"], seed=0, resamples=resamples)


def undecided(found):
    return sum("not distinguishable from random" in each.primary.words for each in found)


@pytest.mark.parametrize(
    ("queries", "rate"), [(5, 0.5), (20, 0.9), (100, 0.02), (200, 0.5), (1000, 0.3)]
)
def test_a_useless_world_is_not_distinguishable_from_random(queries, rate):
    """Answers that do not depend on the demonstrations: 970 of 1,000 evaluations must say so."""

    def draw(rng, queries):
        return (rng.random((4, queries)) < rate).astype(float)

    said = [
        each.primary.words for each in evaluations(np.random.default_rng(0), queries, 1000, draw)
    ]
    assert sum("not distinguishable from random" in each for each in said) >= 970


def test_a_useless_world_in_which_queries_differ_in_difficulty():
    def draw(rng, queries):
        levels = rng.beta(0.25, 0.25, queries)  # most are nearly always right, or wrong
        return rng.choice([0.3, 0.6, 1.0], (4, queries)) * (rng.random((4, queries)) < levels)

    assert undecided(evaluations(np.random.default_rng(1), 100, 1000, draw)) >= 970


def test_an_effect_that_is_there_is_found():
    def draw(rng, queries):
        return (rng.random((4, queries)) < np.array([[0.3], *[[0.1]] * 3])).astype(float)

    said = [each.primary.words for each in evaluations(np.random.default_rng(2), 300, 100, draw)]
    assert sum("better than random by" in each for each in said) >= 99


def test_many_useless_arms_do_not_make_one_of_them_look_useful():
    """Of 12 secondary comparisons any is called different in at most 5 % of the evaluations."""
    arms = ("RL", *(f"arm {number}" for number in range(12)))

    def draw(rng, queries):
        return (rng.random((16, queries)) < 0.3).astype(float)

    found = 0
    for each in evaluations(np.random.default_rng(3), 100, 60, draw, arms, resamples=4_000):
        assert len(each.against_random) == 13
        secondary = [one for one in each.against_random.values() if one is not each.primary]
        assert {one.difference.level for one in secondary} == {corrected_level(0.95, 12)}
        found += any(one.difference.distinguishable for one in secondary)
    assert found <= 60 * 0.05
