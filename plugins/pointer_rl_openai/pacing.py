"""The number of requests in flight, and when to retry.

The number follows additive increase and multiplicative decrease, as in TCP. A refusal halves it. As
many answers as there are requests in flight raise it by one.
"""

from __future__ import annotations

import asyncio
import email.utils
import math
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

_LONGEST_BACKOFF = 30.0
"""Seconds."""


class ConcurrencyLimit:
    """The number of requests that may be in flight, from 1 to a ceiling, at which it starts."""

    def __init__(self, ceiling: int) -> None:
        self._ceiling = ceiling
        self._limit = float(ceiling)
        self._refusals = 0

    @property
    def current(self) -> int:
        """Number of requests that may be in flight now."""
        return int(self._limit)

    def sent(self) -> int:
        """Call this when a request is sent, and pass the result to `refused` if it is refused."""
        return self._refusals

    def answered(self) -> None:
        """Call this when the server has answered a request."""
        self._limit = min(self._ceiling, self._limit + 1 / self._limit)

    def refused(self, sent: int) -> None:
        """Halve the limit, but only once for all requests that were in flight together."""
        if sent == self._refusals:
            self._limit = max(1.0, self._limit / 2)
            self._refusals += 1


class Slots:
    """A semaphore whose size is the limit's current value.

    A waiting task may only be cancelled together with all others.
    """

    def __init__(self, limit: ConcurrencyLimit) -> None:
        self._limit = limit
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def taken(self, *, first: bool) -> AsyncIterator[None]:
        """Hold a slot. If `first`, wait ahead of all others."""
        place = asyncio.get_running_loop().create_future()
        self._waiting.appendleft(place) if first else self._waiting.append(place)
        self._hand_out()
        await place
        try:
            yield
        finally:
            self._taken -= 1
            self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting and self._taken < self._limit.current:
            place = self._waiting.popleft()
            if not place.cancelled():
                self._taken += 1
                place.set_result(None)


def backoff_seconds(failures: int, first: float, rng: random.Random) -> float:
    """Seconds to wait after a request has failed `failures` times (1 or more).

    The time doubles from `first` up to 30 s. A random factor between 0.5 and 1 spreads requests
    that failed together.
    """
    longest = min(first * 2.0 ** min(failures - 1, 60), _LONGEST_BACKOFF)
    return longest * rng.uniform(0.5, 1.0)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait: Retry-After as number or date, or retry-after-ms.

    `headers` must be case-insensitive or lower case. None without a valid header.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    seconds = _number(value)
    if seconds is None and value is not None:
        try:
            seconds = max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
        except (ValueError, OverflowError):
            return None
    return seconds


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if 0 <= number < math.inf else None
