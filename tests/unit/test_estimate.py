"""The estimate of what is left, against runs whose every second is known."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointer_rl.cli.estimate import ENOUGH_ASKED, ENOUGH_SECONDS, Estimate


class Simulated:
    """A run: windows of queries with so many trials each, `cost` seconds for one that is asked."""

    def __init__(self, total, *, done=0, cost=1.0, limit=None):
        self.now = self.asked = 0.0
        self.cost = cost
        self.limit = limit
        self.estimate = Estimate(
            total, done, lambda: int(self.asked), self._left, clock=lambda: self.now
        )

    def _left(self):
        return None if self.limit is None else self.limit - int(self.asked)

    def trial(self, cached=False):
        if not cached:
            self.now += self.cost
            self.asked += 1
        self.estimate.trial()

    def window(self, queries, trials, cached=0):
        """A window, with a stop after each of its trials: yields how many are left of it."""
        self.estimate.window(queries, trials, 0)
        for number in range(trials):
            self.trial(cached=number < cached)
            yield trials - number - 1
        self.estimate.finish(queries)

    @property
    def said(self):
        return self.estimate.seconds_left()


sizes = st.integers(1, 9)


@given(windows=sizes, queries=sizes, each=sizes, done=sizes, cost=st.floats(0.01, 9))
@settings(max_examples=60, deadline=None)
def test_a_constant_rate_gives_the_exact_time(windows, queries, each, done, cost):
    run = Simulated(done + windows * queries, done=done, cost=cost)
    whole = windows * queries * each
    for _ in range(windows):
        fraction = run.estimate.fraction
        for _ in run.window(queries, queries * each):
            if run.asked < ENOUGH_ASKED or run.now < ENOUGH_SECONDS:
                assert run.said is None
            else:
                assert run.said == (pytest.approx((whole - run.asked) * cost), False)
            assert fraction <= run.estimate.fraction <= 1
            assert run.estimate.fraction == pytest.approx(
                (done + run.asked / each) / (done + windows * queries)
            )
            fraction = run.estimate.fraction
    assert run.estimate.done == run.estimate.total


@given(cached=st.integers(0, 5), queries=sizes)
@settings(max_examples=30, deadline=None)
def test_what_the_cache_answers_spoils_neither_rate_nor_count(cached, queries):
    run = Simulated((cached + 4) * queries)
    for _ in range(cached):
        for _ in run.window(queries, 3 * queries, cached=3 * queries):
            assert run.said is None
    for index in range(4):
        for _ in run.window(queries, 3 * queries):
            left = (4 - index) * 3 * queries - (run.asked - index * 3 * queries)
            if run.asked >= ENOUGH_ASKED:
                assert run.said == (pytest.approx(left), False)
                assert run.estimate.rate == pytest.approx(1.0)


def test_windows_that_are_partly_cached_are_expected_to_go_on_so():
    run = Simulated(40)
    for _ in range(2):
        for _ in run.window(10, 100, cached=80):
            pass
    assert run.said == (pytest.approx(40.0), False)


def test_a_search_says_at_most_until_its_first_window_is_done():
    run = Simulated(30)
    for window in count():
        run.estimate.window(10, 20, more=100)
        for _ in range(20):
            run.trial()
        after = 2 - window
        if not window:
            # 20 of at most 120 trials for 10 queries, and 20 queries to come
            assert run.said == (pytest.approx(100 + 240), True)
        run.estimate.window(10, 5, more=0)
        for _ in range(5):
            run.trial()
        run.estimate.finish(10)
        assert run.said == (pytest.approx(after * 25), False)
        if not after:
            break


def test_the_bound_of_a_search_that_is_over_is_what_it_did():
    run = Simulated(20)
    for _ in run.window(10, 50):
        pass
    run.estimate.window(10, 10, more=70)
    for _ in range(10):
        run.trial()
    assert run.said == (pytest.approx(40), False)  # 50 for 10 queries, as before


def test_a_limit_on_calls_ends_the_run_before_its_queries():
    run = Simulated(1000, limit=60)
    for left in run.window(10, 50):
        if left == 30:
            assert run.said == (pytest.approx(40), False)
    assert run.estimate.spent == 50
    assert run.said == (pytest.approx(10), False)


def test_a_run_that_only_knows_its_calls():
    run = Simulated(None, limit=80)
    for left in run.window(10, 40):
        if left == 20:
            assert run.said == (pytest.approx(60), False)
            assert run.estimate.fraction == pytest.approx(0.25)


def test_windows_of_other_processes_are_known_when_they_are_done():
    run = Simulated(40)
    run.now = 30.0
    run.estimate.finish(10)
    assert run.said == (pytest.approx(90), False)


def test_a_window_that_is_answered_at_once_counts_down_and_then_slows():
    run = Simulated(30)
    for _ in run.window(10, 100):
        pass
    run.estimate.window(10, 100, 0)
    assert run.said[0] == pytest.approx(200)
    run.now += 60
    assert run.said[0] == pytest.approx(140)
    run.now += 140  # twice as long as the first: the rate is now 200 trials in 300 s
    assert run.said[0] == pytest.approx(100 * 300 / 200)


def test_training_between_windows_is_not_asking():
    run = Simulated(None, limit=40)
    for _ in run.window(10, 20):
        pass
    run.now += 1000
    run.estimate.pause()
    assert run.said == (pytest.approx(20), False)
