"""Which steps of a candidate are trained."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_worlds import naive_credit

from pointer_rl.train.credit import credited_steps
from pointer_rl.types import NO_ROW


def credit(pointers, rewards):
    """The credited steps of each of one query's candidates, as a string: "1", "12", …"""
    mask = credited_steps(
        np.array(pointers), np.array(rewards, dtype=np.float32), np.zeros(len(pointers), dtype=int)
    )
    return ["".join(str(step + 1) for step in own.nonzero()[0]) for own in mask]


@st.composite
def queries(draw):
    """Queries with candidates of few rows, so that many share all rows but one."""
    shots = draw(st.integers(1, 4))
    rows = st.permutations(range(shots + 2)).map(lambda each: each[:shots])
    pointer = st.tuples(rows, st.integers(0, shots)).map(
        lambda each: each[0][: each[1]] + [NO_ROW] * (shots - each[1])
    )
    # Quarters are exact in float32, so that half of a range is the same in both computations.
    rewards = st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0])
    candidate = st.tuples(st.one_of(rows, pointer), rewards)
    return draw(st.lists(st.lists(candidate, min_size=1, max_size=7), min_size=1, max_size=3))


@settings(max_examples=50)
@given(queries())
def test_credit_is_what_each_candidates_comparisons_say(data):
    pointers = [pointer for own in data for pointer, _ in own]
    rewards = np.array([reward for own in data for _, reward in own], dtype=np.float32)
    of = np.repeat(np.arange(len(data)), [len(own) for own in data])
    expected = [steps for own in data for steps in naive_credit(*map(list, zip(*own, strict=True)))]
    assert credited_steps(np.array(pointers), rewards, of).tolist() == expected


def test_the_companion_of_probes_is_not_trained_whatever_else_was_proposed():
    probes, others = [[1, 9], [2, 9], [3, 9]], [[4, 5], [6, 7], [8, 0]]
    assert credit(probes, [2, 0, 0]) == ["1"] * 3
    assert credit(probes + others, [2, 0, 0, 2, 0, 0]) == ["1"] * 3 + ["12"] * 3


@pytest.mark.parametrize("shots", [1, 2, 3, 4])
def test_candidates_that_share_nothing_are_trained_at_every_step(shots):
    pointers = np.arange(5 * shots).reshape(5, shots)
    assert credit(pointers, [2, 0, 0, 1, 0]) == ["1234"[:shots]] * 5


def test_a_pair_that_succeeds_where_each_half_fails_is_trained_at_both_steps():
    assert credit([[1, 2], [1, 9], [9, 2], [3, 9]], [1, 0, 0, 0])[0] == "12"
    assert credit([[1, 2], [1, 9], [2, 9]], [1, 0, 0])[0] == "12", "wherever the halves stand"
    assert credit([[1, 2], [1, NO_ROW], [2, NO_ROW]], [1, 0, 0])[0] == "12", "or alone"
    assert credit([[1, 2], [2, 1], [3, 4]], [1, 0, 0])[:2] == ["12", "12"], "order"


def test_a_failure_is_blamed_on_the_row_whose_exchange_mends_it():
    assert credit([[1, 2], [1, 9], [3, 9], [4, 9]], [1, 0, 0, 0]) == ["2", "2", "12", "12"]


def test_stopping_is_compared_with_a_further_row():
    stopped, further = [1, NO_ROW, NO_ROW], [1, 2, NO_ROW]
    assert credit([stopped, further, [3, 4, 5]], [1, 0, 0])[1] == "2"
    # Nothing is chosen after a stop; what is credited there has probability 1.
    assert credit([stopped, further, [3, 4, 5]], [1, 0, 0])[0] == "23"
    assert credit([[NO_ROW], [1]], [1, 0]) == ["1", "1"], "of one shot at most"
    once, twice = [5, NO_ROW, NO_ROW], [1, 2, NO_ROW]
    assert credit([twice, once, [6, NO_ROW, NO_ROW]], [1, 0, 1])[0] == "123", "it could go on"


def test_equal_rewards_are_trained_wherever_the_group_differs():
    """Zero-variance groups are left out unless they are to be imitated."""
    assert credit([[1, 2], [1, 3]], [1, 1]) == ["2", "2"]
    assert credit([[1, 2], [3, 4]], [0, 0]) == ["12", "12"]


def test_differences_below_half_the_groups_range_decide_nothing():
    pointers = [[1, 9], [2, 9], [1, 5]]
    assert credit(pointers, [1.0, 0.0, 0.9]) == ["1", "1", "12"]
    assert credit(pointers, [1.0, 0.0, 0.5]) == ["12", "1", "2"]
