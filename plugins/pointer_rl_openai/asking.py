"""Send calls with retries: concurrency, back-off, and when to give up."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import replace
from typing import TypeVar

from pointer_rl_openai.pacing import ConcurrencyLimit, Slots, backoff_seconds
from pointer_rl_openai.transport import Answer, Call, Failure, Transport

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Asker:
    """Sends calls through one transport and retries those that may succeed later.

    A call that waits for its next attempt takes no slot. If an overloaded server refuses a call but
    answers others, the refusal does not count against `retries`.
    """

    def __init__(
        self,
        transport: Transport,
        limit: ConcurrencyLimit,
        *,
        retries: int,
        backoff: float,
        was_gone: bool = False,
    ) -> None:
        """If `was_gone`, the server could not be reached last time, and it gets one attempt."""
        self._transport = transport
        self._limit = limit
        self._slots = Slots(limit)
        self._retries = retries
        self._backoff = backoff
        self._was_gone = was_gone
        self._rng = random.Random()  # Not seeded: the time of an attempt does not affect an answer.
        self._answered = 0
        self._heard_at = 0.0
        self._held_until = 0.0
        self.gone: str | None = None
        """Why nothing more is sent, once the server cannot be reached any more."""

    async def ask(self, call: Call[T]) -> T | Failure:
        """Send a call. Returns what was read from the reply, or why it failed."""
        began = asyncio.get_running_loop().time()
        answered = self._answered
        failures = counted = 0
        while True:
            async with self._slots.taken(first=failures > 0):
                result = await self._send(call)
            if isinstance(result, Answer):
                return result.value
            failures += 1
            refused = result.busy and result.status is not None
            if not (refused and self._answered > answered):
                counted += 1
            answered = self._answered
            if not result.again:
                return result
            last = counted > self._retries
            if result.unreachable and self._heard_at < began and (last or self._was_gone):
                self.gone = result.message
                last = True
            if last:
                return _given_up(result, failures)
            wait = backoff_seconds(failures, self._backoff, self._rng)
            if result.unreachable:
                self._hold(wait)  # Other calls would fail as well.
            logger.info(
                "asking again in %.1f s: HTTP status %s, %d requests in flight at most",
                *(max(wait, result.wait or 0.0), result.status, self._limit.current),
            )
            await asyncio.sleep(wait)

    async def _send(self, call: Call[T]) -> Answer[T] | Failure:
        loop = asyncio.get_running_loop()
        while (pause := self._held_until - loop.time()) > 0 and self.gone is None:
            await asyncio.sleep(pause)
        if self.gone is not None:
            return Failure(message=self.gone)
        sent = self._limit.sent()
        result = await self._transport.send(call)
        if isinstance(result, Answer):
            self._answered += 1
            self._limit.answered()
        elif result.busy:
            self._limit.refused(sent)
        if isinstance(result, Answer) or result.status is not None:
            self._heard_at = loop.time()
        if isinstance(result, Failure) and result.again and result.wait is not None:
            self._hold(result.wait)  # All calls share a key, so the request to wait applies to all.
        return result

    def _hold(self, seconds: float) -> None:
        """Send nothing for some seconds."""
        now = asyncio.get_running_loop().time()
        self._held_until = max(self._held_until, now + seconds)


def _given_up(failure: Failure, attempts: int) -> Failure:
    after = f" (asked {attempts} times)" if attempts > 1 else ""
    return replace(failure, message=failure.message + after, again=False)
