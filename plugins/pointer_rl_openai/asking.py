"""Send calls with retries: concurrency, back-off, and when to give up."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import replace
from typing import TypeVar

from pointer_rl_openai.pacing import ConcurrencyLimit, Slots, backoff_seconds
from pointer_rl_openai.transport import Call, CallError, Transport

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

    async def ask(self, call: Call[T]) -> T:
        """Send a call and read its reply. Raises CallError, and InputError from making the body."""
        began = asyncio.get_running_loop().time()
        answered = self._answered
        failures = counted = 0
        while True:
            try:
                async with self._slots.taken(first=failures > 0):
                    return await self._send(call)
            except CallError as error:
                failure = error
            failures += 1
            refused = failure.busy and failure.status is not None
            if not (refused and self._answered > answered):
                counted += 1
            answered = self._answered
            if not failure.again:
                raise failure
            last = counted > self._retries
            if failure.unreachable and self._heard_at < began and (last or self._was_gone):
                self.gone = failure.message
                last = True
            if last:
                after = f" (asked {failures} times)" if failures > 1 else ""
                raise replace(failure, message=failure.message + after, again=False)
            wait = backoff_seconds(failures, self._backoff, self._rng)
            if failure.unreachable:
                self._hold(wait)  # Other calls would fail as well.
            logger.info(
                "asking again in %.1f s: HTTP status %s, %d requests in flight at most",
                *(max(wait, failure.wait or 0.0), failure.status, self._limit.current),
            )
            await asyncio.sleep(wait)

    async def _send(self, call: Call[T]) -> T:
        loop = asyncio.get_running_loop()
        while (pause := self._held_until - loop.time()) > 0 and self.gone is None:
            await asyncio.sleep(pause)
        if self.gone is not None:
            raise CallError(self.gone)
        sent = self._limit.sent()
        try:
            value = await self._transport.send(call)
        except CallError as failure:
            if failure.busy:
                self._limit.refused(sent)
            if failure.status is not None:
                self._heard_at = loop.time()
            if failure.again and failure.wait is not None:
                self._hold(failure.wait)  # All calls share a key, so the wait applies to all.
            raise
        self._answered += 1
        self._limit.answered()
        self._heard_at = loop.time()
        return value

    def _hold(self, seconds: float) -> None:
        """Send nothing for some seconds."""
        now = asyncio.get_running_loop().time()
        self._held_until = max(self._held_until, now + seconds)
