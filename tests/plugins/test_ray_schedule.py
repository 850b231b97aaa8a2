"""Which window runs next, and what becomes of one whose worker died."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointer_rl.errors import InputError
from pointer_rl.session.windows import windows_of
from pointer_rl_ray.schedule import Schedule


def test_every_window_comes_once_and_whole():
    schedule = Schedule(windows_of(range(10), 4))
    tasks = [schedule.next() for _ in range(3)]
    assert schedule.next() is None
    assert not schedule.over
    for task in reversed(tasks):
        records = schedule.done(task, {index: index for index in task.part.todo})
        assert list(records) == list(task.window.todo)
    assert schedule.over


def test_a_window_is_taken_only_when_it_is_asked_for():
    taken = []
    schedule = Schedule(taken.append(window) or window for window in windows_of(range(100), 1))
    schedule.next()
    assert len(taken) == 1


def test_a_stopped_schedule_finishes_what_is_under_way():
    schedule = Schedule(windows_of(range(8), 4))
    task = schedule.next()
    schedule.stopped = True
    assert schedule.next() is None
    assert not schedule.over
    schedule.lost(task)
    assert schedule.next() is task  # a window that was begun is not dropped
    schedule.done(task, dict.fromkeys(range(4)))
    assert schedule.over


def play(schedule, deadly, deaths_before_asking=0):
    """Run everything on workers that die of some queries; returns records, requests and deaths."""
    records, deaths = {}, 0
    while not schedule.over:
        task = schedule.next()
        if task is None:
            continue
        found, died, task.started = {}, False, True
        for index in task.part.todo:
            key = b"%d" % index
            if task.alone and key in task.given_up:
                found[index] = "failed"
                continue
            if task.alone and not deaths_before_asking:
                task.asking = key
            if index in deadly:
                deaths_before_asking = max(0, deaths_before_asking - 1)
                died = True
                break
            found[index] = "right"
        if died:
            deaths += 1
            schedule.lost(task)
        elif (whole := schedule.done(task, found)) is not None:
            records.update(whole)
    return records, deaths


@given(
    st.integers(1, 40),
    st.integers(1, 16),
    st.sets(st.integers(0, 39), max_size=4),
)
def test_exactly_the_deadly_trials_fail(number, size, deadly):
    deadly = {each for each in deadly if each < number}
    records, deaths = play(Schedule(windows_of(range(number), size)), deadly)
    expected = {index: "failed" if index in deadly else "right" for index in range(number)}
    assert records == expected
    # Two for the window, one for each halving, and two until the trial is blamed.
    assert deaths <= len(deadly) * (2 + size.bit_length() + 2)


def test_two_deaths_are_no_proof():
    """A worker may be killed from outside: only a request that was alone twice is blamed."""
    schedule = Schedule(windows_of(range(1), 1))
    task = schedule.next()
    for _ in range(2):
        task.started = True
        schedule.lost(task)
        task = schedule.next()
    assert task.alone
    task.asking = b"0"
    schedule.lost(task)
    assert not schedule.next().given_up


def test_deaths_before_a_window_begins_are_not_its_own():
    schedule = Schedule(windows_of(range(4), 4))
    task = schedule.next()
    for _ in range(19):
        task.started = False
        schedule.lost(task)
        assert schedule.next() is task
    assert not task.deaths
    with pytest.raises(InputError, match="20 workers died before a window began"):
        schedule.lost(task)


def test_workers_that_die_before_they_ask_anything_end_the_run():
    schedule = Schedule(windows_of(range(1), 1))
    with pytest.raises(InputError, match="workers died, none of them over a trial"):
        play(schedule, {0}, deaths_before_asking=100)
