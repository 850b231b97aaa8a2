"""How hard a server is asked: requests in flight, and when to ask again.

The number in flight follows additive increase, multiplicative decrease, as TCP's does: a server
that refuses halves it, answers raise it by one for each round of as many.
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

__all__ = ["ConcurrencyLimit", "Slots", "backoff_seconds", "retry_after"]

_LONGEST_BACKOFF = 30.0
"""Seconds."""


class ConcurrencyLimit:
    """How many requests may be in flight: between 1 and a ceiling, where it begins."""

    def __init__(self, ceiling: int) -> None:
        self._ceiling = ceiling
        self._limit = float(ceiling)
        self._refusals = 0

    @property
    def current(self) -> int:
        """Requests that may be in flight now."""
        return int(self._limit)

    def sent(self) -> int:
        """To be called when a request is sent; `refused` wants what it returns."""
        return self._refusals

    def answered(self) -> None:
        """The server did what it was asked."""
        self._limit = min(self._ceiling, self._limit + 1 / self._limit)

    def refused(self, sent: int) -> None:
        """The server was asked too much: halves, once for all that were in flight together."""
        if sent == self._refusals:
            self._limit = max(1.0, self._limit / 2)
            self._refusals += 1


class Slots:
    """Places for requests in flight, as many as the limit allows at any time.

    Who waits is cancelled only with all others.
    """

    def __init__(self, limit: ConcurrencyLimit) -> None:
        self._limit = limit
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def taken(self, *, first: bool) -> AsyncIterator[None]:
        """Wait for a place, before all others or after them, and give it back."""
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
    """How long to wait after so many failures (1 or more) of a request.

    Doubles from `first`, up to 30 s; the lower half is drawn, so that requests that failed together
    do not come back together.
    """
    longest = min(first * 2.0 ** min(failures - 1, 60), _LONGEST_BACKOFF)
    return longest * rng.uniform(0.5, 1.0)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait: Retry-After as number or date, or retry-after-ms.

    `headers` is to be case-insensitive, or lower case. None where there is none that can be read.
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
