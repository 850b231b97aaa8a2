"""The openai backend's pace: requests in flight, waiting, giving up. No server, no clock."""

from __future__ import annotations

import asyncio
import random
import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointer_rl_openai.asking import Asker
from pointer_rl_openai.pacing import ConcurrencyLimit, Slots, backoff_seconds, retry_after
from pointer_rl_openai.transport import Call, CallError

# --- the limit ---


def test_a_refusal_halves_and_answers_raise_by_one_a_round():
    limit = ConcurrencyLimit(16)
    assert limit.current == 16
    limit.refused(limit.sent())
    assert limit.current == 8
    rounds = []
    for _ in range(3):
        for _ in range(limit.current):
            limit.answered()
        rounds.append(limit.current)
    # One for each round of as many, all but a rounding: the sum of 1/x over a growing x.
    assert rounds == [8, 9, 10]
    for _ in range(1000):
        limit.answered()
    assert limit.current == 16


def test_those_refused_together_halve_once():
    limit = ConcurrencyLimit(16)
    sent = [limit.sent() for _ in range(16)]
    for each in sent:
        limit.refused(each)
    assert limit.current == 8
    limit.refused(limit.sent())
    assert limit.current == 4


@given(st.integers(1, 64), st.lists(st.booleans(), max_size=200))
def test_the_limit_stays_between_one_and_its_ceiling(ceiling, refusals):
    limit = ConcurrencyLimit(ceiling)
    for refused in refusals:
        limit.refused(limit.sent()) if refused else limit.answered()
        assert 1 <= limit.current <= ceiling


def test_no_more_than_the_limit_are_inside_and_all_get_in():
    limit = ConcurrencyLimit(8)
    rng = random.Random(0)
    inside = peak = done = 0

    async def visit(slots: Slots) -> None:
        nonlocal inside, peak, done
        async with slots.taken(first=rng.random() < 0.5):
            inside += 1
            peak = max(peak, inside)
            assert inside <= max(limit.current, before)
            await asyncio.sleep(0)
            if rng.random() < 0.2:
                limit.refused(limit.sent())
            else:
                limit.answered()
            inside -= 1
            done += 1

    async def main() -> None:
        slots = Slots(limit)
        await asyncio.gather(*(visit(slots) for _ in range(200)))

    before = 8
    asyncio.run(main())
    assert peak == 8
    assert done == 200


def test_all_that_wait_can_be_cancelled():
    async def visit(slots: Slots) -> None:
        async with slots.taken(first=False):
            await asyncio.sleep(600)

    async def main() -> list[object]:
        slots = Slots(ConcurrencyLimit(1))
        tasks = [asyncio.create_task(visit(slots)) for _ in range(3)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert all(isinstance(each, asyncio.CancelledError) for each in asyncio.run(main()))


# --- waiting ---


@given(st.integers(1, 10_000), st.floats(1e-3, 10), st.integers())
def test_the_wait_doubles_to_thirty_seconds_and_half_of_it_is_drawn(failures, first, seed):
    longest = min(first * 2 ** min(failures - 1, 60), 30.0)
    assert longest / 2 <= backoff_seconds(failures, first, random.Random(seed)) <= longest


def test_those_that_failed_together_do_not_come_back_together():
    rng = random.Random(0)
    assert len({backoff_seconds(3, 0.5, rng) for _ in range(100)}) == 100


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
    ],
)
def test_what_the_server_asks_to_wait(headers, seconds):
    assert retry_after(headers) == seconds


def test_a_date_to_wait_for():
    assert 3500 < retry_after({"retry-after": formatdate(time.time() + 3600, usegmt=True)}) <= 3600


@given(st.text(max_size=20))
def test_any_header_is_a_number_or_nothing(text):
    seconds = retry_after({"retry-after": text, "retry-after-ms": text})
    assert seconds is None or seconds >= 0


# --- asking ---

CALL = Call(url="http://there/", read=lambda reply: reply)
BUSY = CallError("busy", again=True, busy=True, status=429)
BROKEN = CallError("broken", again=True, status=500)
SLOW = CallError("slow", again=True, busy=True)
NOBODY = CallError("nobody there", again=True, unreachable=True)


class Script:
    """A transport that gives its results in turn, the last for ever."""

    def __init__(self, *results: str | CallError) -> None:
        self.results = list(results)
        self.sent = 0

    async def send(self, call: Call[str]) -> str:
        self.sent += 1
        await asyncio.sleep(0)
        result = self.results.pop(0) if len(self.results) > 1 else self.results[0]
        if isinstance(result, CallError):
            raise result
        return result


def ask(script: Script, number: int = 1, **options: object) -> list[object]:
    """What came of so many calls, asked together."""

    async def main() -> list[object]:
        limit = ConcurrencyLimit(options.pop("ceiling", 1))
        asker = Asker(script, limit, **{"retries": 2, "backoff": 1e-4, **options})
        calls = (asker.ask(CALL) for _ in range(number))
        return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(main())


@pytest.mark.parametrize("failure", [BUSY, BROKEN, SLOW, NOBODY], ids=lambda each: each.message)
def test_a_call_is_repeated_as_often_as_allowed(failure):
    script = Script(failure, failure, "at last")
    assert ask(script) == ["at last"]
    script = Script(failure)
    [result] = ask(script)
    assert script.sent == 3
    assert result.message == f"{failure.message} (asked 3 times)"


def test_what_no_repetition_mends_is_not_repeated():
    script = Script(CallError("wrong", status=400))
    [result] = ask(script)
    assert (script.sent, result.message) == (1, "wrong")


def test_a_refusal_while_others_are_answered_does_not_count():
    """Of two calls that take turns, one is refused five times, with two repetitions allowed."""
    results = [each for _ in range(5) for each in (BUSY, "other")]
    assert ask(Script(*results, "mine"), 6) == unordered(["other"] * 5 + ["mine"])
    # Other failures count, whatever becomes of the others.
    results = [each for _ in range(5) for each in (BROKEN, "other")]
    assert len([each for each in ask(Script(*results, BROKEN), 6) if each == "other"]) == 5


class unordered:  # noqa: N801
    """Equal to a list with the same items."""

    def __init__(self, items: list[str]) -> None:
        self.items = items

    def __eq__(self, other: object) -> bool:
        return isinstance(other, list) and sorted(map(str, other)) == sorted(self.items)


def test_without_a_server_the_others_are_not_tried():
    script = Script(NOBODY)
    results = ask(script, 100, ceiling=4)
    assert script.sent < 40
    assert all("nobody there" in each.message for each in results)
    # Nor is the one chance that a server gets that was gone before.
    script = Script(NOBODY)
    ask(script, 100, was_gone=True)
    assert script.sent == 1


def test_a_server_that_answered_meanwhile_is_not_gone():
    script = Script(NOBODY, "here", NOBODY, "here")
    assert ask(script, 20, retries=1).count("here") >= 19


def test_a_refusal_is_held_against_all():
    async def main() -> float:
        loop = asyncio.get_running_loop()
        refusal = CallError("wait", again=True, busy=True, status=429, wait=0.05)
        asker = Asker(Script(refusal, "a", "b"), ConcurrencyLimit(1), retries=2, backoff=1e-4)
        began = loop.time()
        await asyncio.gather(asker.ask(CALL), asker.ask(CALL))
        return loop.time() - began

    assert asyncio.run(main()) >= 0.05
