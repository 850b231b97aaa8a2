"""Statistics against independent formulas, and worlds whose truth is known."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointer_rl.evaluate.conclusions import conclude
from pointer_rl.evaluate.measure import Measured
from pointer_rl.evaluate.statistics import Share, compare, corrected_level, share_of_gap

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "bench_statistics.py"
ACCURACIES = st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0])
PAIRS = st.lists(st.tuples(ACCURACIES, ACCURACIES), min_size=1, max_size=30)


def columns(pairs):
    return (np.array(each) for each in zip(*pairs, strict=True))


# --- differences ----------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_of_right_and_wrong_answers_it_is_bonetts_and_prices_interval(pairs):
    """Their formula, in terms of the discordant pairs (2012, equation 6)."""
    number = len(pairs) + 2
    won = (sum(a and not b for a, b in pairs) + 1) / number
    lost = (sum(b and not a for a, b in pairs) + 1) / number
    z = 2.5758293
    variance = (won + lost - (won - lost) ** 2) / number
    half = z * math.sqrt(variance * number / (number - 1))  # ours divides by N + 1
    found = compare(*(each.astype(float) for each in columns(pairs)), 0.99)
    assert found.low == pytest.approx(max(-1, won - lost - half))
    assert found.high == pytest.approx(min(1, won - lost + half))


def test_with_many_queries_it_is_a_naive_bootstraps():
    rng = np.random.default_rng(3)
    differences = rng.choice([-1, -0.3, 0, 0, 0.3, 0.6, 1], 400)
    means = [rng.choice(differences, 400).mean() for _ in range(4_000)]
    found = compare(differences / 2 + 0.5, np.full(400, 0.5), 0.95)
    naive = np.quantile(means, [0.025, 0.975]) / 2
    assert (found.low, found.high) == pytest.approx(naive, abs=0.005)


@given(PAIRS)
def test_swapping_the_arms_mirrors_the_interval(pairs):
    a, b = columns(pairs)
    there, back = (compare(*each, 0.99) for each in ((a, b), (b, a)))
    assert there.mean == pytest.approx(-back.mean)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))


@given(PAIRS, st.randoms(use_true_random=False))
def test_the_order_of_the_queries_does_not_matter(pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    one, other = (compare(*columns(each), 0.99) for each in (pairs, shuffled))
    assert (one.mean, one.low, one.high) == pytest.approx((other.mean, other.low, other.high))
    assert one.detectable == pytest.approx(other.detectable)


@given(PAIRS)
def test_the_interval_holds_the_mean_and_widens_with_its_level(pairs):
    a, b = columns(pairs)
    wide, narrow = (compare(a, b, level) for level in (0.99, 0.95))
    assert -1 <= wide.low <= narrow.low <= narrow.mean <= narrow.high <= wide.high <= 1
    assert wide.queries == len(pairs)


# --- few queries, no spread -----------------------------------------------------------------------


@pytest.mark.parametrize("difference", [0.0, 0.3, 1.0, -1.0])
@pytest.mark.parametrize("queries", [1, 2, 5])
def test_a_few_queries_decide_nothing_however_much_they_agree(difference, queries):
    arm, reference = max(difference, 0.0), max(-difference, 0.0)
    found = compare(np.full(queries, arm), np.full(queries, reference), 0.99)
    assert found.mean == difference
    assert not found.distinguishable


def test_many_queries_that_agree_do_decide():
    ones, zeros = np.ones(100), np.zeros(100)
    assert compare(ones, zeros, 0.99).better
    assert compare(zeros, ones, 0.99).distinguishable
    same = compare(zeros, zeros, 0.99)
    assert not same.distinguishable
    assert 0 < same.detectable < 0.2  # some effect would have been seen; never "any, however small"


# --- what could have been seen --------------------------------------------------------------------


def test_from_one_query_or_of_a_perfect_reference_no_improvement_can_be_seen():
    assert compare(np.ones(1), np.zeros(1), 0.99).detectable is None
    assert compare(np.ones(500), np.ones(500), 0.99).detectable is None


def test_with_many_queries_and_a_small_effect_it_is_the_textbooks():
    rng = np.random.default_rng(0)
    arm, reference = (rng.random((2, 20_000)) < 0.5).astype(float)
    deviation = math.sqrt(0.5 / 20_000)
    for level, z in ((0.99, 2.5758), (0.95, 1.9600)):
        found = compare(arm, reference, level).detectable
        assert found == pytest.approx((z + 0.8416) * deviation, rel=0.02)


def test_at_low_rates_it_is_connors_sample_size_not_the_spread_of_what_was_observed():
    """Connor (1987): n = (z sqrt(ψ) + z' sqrt(ψ - δ²))² / δ², ψ the discordant share under δ."""
    queries, rate = 4_000, 0.02
    rng = np.random.default_rng(0)
    arm, reference = (rng.random((2, queries)) < rate).astype(float)
    effect = compare(arm, reference, 0.99).detectable
    discordant = float(((arm - reference) ** 2).mean()) + effect * (1 - 2 * rate)
    needed = (2.5758 * math.sqrt(discordant) + 0.8416 * math.sqrt(discordant - effect**2)) ** 2
    assert needed / effect**2 == pytest.approx(queries, rel=0.1)
    without = 3.4174 * float((arm - reference).std()) / math.sqrt(queries)
    assert effect > 1.1 * without


def test_corrected_levels():
    assert corrected_level(0.95, 10) == pytest.approx(0.995)
    assert corrected_level(0.95, 1) == 0.95
    assert corrected_level(0.95, 0) == 0.95


# --- shares of a gap ------------------------------------------------------------------------------


def test_the_share_of_the_gap():
    random, oracle = np.zeros(200), np.ones(200)
    arm = np.repeat([1.0, 0.0], [150, 50])
    found = share_of_gap(arm, random, oracle, 0.95)
    assert found.share == pytest.approx(0.75)
    # With a gap of 1 everywhere it is a proportion: 0.75 ± 1.96 sqrt(0.75 · 0.25 / 200)
    assert (found.low, found.high) == pytest.approx((0.69, 0.81), abs=0.01)
    assert share_of_gap(random, random, oracle, 0.95).share == 0
    alike = share_of_gap(oracle, random, oracle, 0.95)
    assert alike.share == 1
    assert 0.95 < alike.low < 1 < alike.high < 1.05  # not "1.00 to 1.00"


LOW, HIGH = st.sampled_from([0.0, 0.3]), st.sampled_from([0.6, 1.0])
TRIPLES = st.lists(st.tuples(ACCURACIES, LOW, HIGH), min_size=20, max_size=60)


@settings(max_examples=40)
@given(TRIPLES, st.sampled_from([0.9, 0.99, 0.999]))
def test_the_share_is_fiellers_set(triples, level):
    """At its ends, and only there, the test of mean(arm - random - s gap) = 0 is just decided."""
    arm, random, oracle = columns(triples)
    found = share_of_gap(arm, random, oracle, level)
    z = NormalDist().inv_cdf((1 + level) / 2)

    def statistic(share):
        contrast = np.array([*(arm - random - share * (oracle - random)), 1.0, -1.0])
        return abs(contrast.mean()) / (contrast.std(ddof=1) / math.sqrt(len(contrast)))

    for end in (found.low, found.high):
        assert statistic(end) == pytest.approx(z, rel=1e-6)
    inside, outside = (found.low + found.high) / 2, found.high + 0.1 * (found.high - found.low)
    assert statistic(inside) < z < statistic(outside)


@settings(max_examples=40)
@given(TRIPLES)
def test_a_share_excludes_0_only_where_the_difference_does(triples):
    arm, random, oracle = columns(triples)
    found = share_of_gap(arm, random, oracle, 0.95)
    difference = compare(arm, random, 0.95)
    if abs(difference.low) > 1e-9:
        assert (found.low > 0) == (difference.low > 0)


def test_where_nothing_can_be_said_the_reason_is():
    ones = np.ones(200)
    assert share_of_gap(ones, ones, ones, 0.95) == "gap below 5 points"
    some = ones.copy()
    some[:8] = 0.0
    assert share_of_gap(ones, some, ones, 0.95) == "gap below 5 points"  # 4
    assert share_of_gap(np.ones(1), np.zeros(1), np.ones(1), 0.95) == "too few queries"
    some[:40] = 0.0
    assert share_of_gap(ones[:9], some[5:14], np.tile([1.0, 0, 0], 3), 0.99) == "too few queries"


# --- worlds whose truth is known ------------------------------------------------------------------


def load_benchmark():
    spec = importlib.util.spec_from_file_location("bench_statistics", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


bench = load_benchmark()


@pytest.mark.parametrize(("queries", "rate"), [(50, 0.9), (200, 0.02), (400, 0.5)])
def test_useless_and_good_policies_get_intervals_that_hold(queries, rate):
    """The benchmark's worlds, few of them: coverage, family-wise errors and false verdicts."""
    found = {
        name: bench.simulate(world, 40)
        for name, world in bench.worlds([queries], [rate])
        if "0.08" not in name
    }
    assert bench.failures(found) == []
    assert sum(each.false for each in found.values()) <= 0.05 * 40 * len(found)


def test_a_share_of_no_gap_is_wrong_and_no_coverage():
    """In a useless world in which queries differ, the oracle is no better than random."""
    share = Share(0.9, 0.8, 1.0, 0.99)
    found = SimpleNamespace(against_random={}, rivals=[], recovered={(2, "RL"): share})
    tally = bench.Tally()
    tally.add(bench.World(100, 0.3, 0.0, alike=True), found)
    assert tally.wrong == 1
    assert not tally.printed


@pytest.mark.parametrize(("queries", "rate", "level"), [(50, 0.02, 0.99), (200, 0.1, 0.9985)])
def test_a_detectable_improvement_is_seen_four_times_in_five(queries, rate, level):
    _, seen = bench.power(queries, rate, level, 1_000)
    assert seen == pytest.approx(0.8, abs=0.05)


def measured(random, **arms):
    return Measured(2, {"random": random.mean(0), **arms}, random, {})


def concluded(random, **arms):
    number = random.shape[1]
    zero = Measured(0, {"zero-shot": random[0]}, np.empty((0, number)), {})
    return conclude([zero, measured(random, **arms)], "RL", 2)


@pytest.mark.parametrize("queries", [5, 20])
def test_a_useless_policy_is_not_called_better_or_worse_on_a_few_queries(queries):
    """At a rate of .9, where a bootstrap says so in 9 % of evaluations with 20 queries."""
    rng = np.random.default_rng(0)

    def right(*shape):
        return (rng.random((*shape, queries)) < 0.9).astype(float)

    said = [concluded(right(3), RL=right()).primary.words for _ in range(300)]
    assert sum("not distinguishable from random" in each for each in said) >= 294


def test_a_useless_world_in_which_queries_differ_in_difficulty():
    rng = np.random.default_rng(1)

    def graded(levels, *shape):
        right = rng.random((*shape, 100)) < levels
        return rng.choice([0.3, 0.6, 1.0], (*shape, 100)) * right

    found = []
    for _ in range(300):
        levels = rng.beta(0.25, 0.25, 100)  # most are nearly always right, or wrong
        found.append(concluded(graded(levels, 3), RL=graded(levels)).primary.difference)
    assert sum(each.distinguishable for each in found) <= 9
