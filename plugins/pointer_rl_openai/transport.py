"""One HTTP request, once: what came back, or why not, and whether it is worth asking again."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

import httpx2

from pointer_rl.errors import InputError, first_line
from pointer_rl_openai.pacing import retry_after

__all__ = ["Answer", "BadReplyError", "Call", "Failure", "Transport"]

LONGEST_WAIT = 300.0
"""Seconds. A server that asks for more is not waited for."""
LARGEST_BODY = 32 * 2**20
"""Bytes of a reply. The log-probabilities of a long prompt take a few MB."""
_CONNECT_SECONDS = 10.0
_LONGEST_QUOTE = 200
"""Characters of what a server says about an error."""

T = TypeVar("T")


class BadReplyError(Exception):
    """A reply that is not what was asked for. `again`: it may be, the next time."""

    def __init__(self, message: str, *, again: bool) -> None:
        super().__init__(message)
        self.again = again


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T]):
    """What to send, and how to read what comes back."""

    url: str
    body: Callable[[], dict[str, Any]] | None = None
    """Makes what is posted, when it is sent; may raise InputError. None: a GET."""
    read: Callable[[object], T]
    """From the reply's JSON. May raise BadReplyError."""
    private: Sequence[str] = ()
    """Texts that no error may repeat."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a call has no result."""

    message: str
    again: bool = False
    """Whether it is worth asking again."""
    busy: bool = False
    """Whether the server was asked too much."""
    wait: float | None = None
    """Seconds that the server asks to wait."""
    status: int | None = None
    """Of the HTTP reply; None where there was none."""
    unreachable: bool = False
    """Whether there is no server at the address."""


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What was read from a reply."""

    value: T


class Transport:
    """An HTTP client for one event loop. Follows no redirects, so that a key goes nowhere else."""

    def __init__(self, *, key: str | None, timeout: float) -> None:
        """timeout: seconds for all of one call, from connecting to the reply's last byte."""
        self._key = key
        self._timeout = timeout
        self._client = httpx2.AsyncClient(
            headers={} if key is None else {"authorization": f"Bearer {key}"},
            verify=_certificates(),
            timeout=httpx2.Timeout(None, connect=min(timeout, _CONNECT_SECONDS)),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
        )

    async def __aenter__(self) -> Transport:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def send(self, call: Call[T]) -> Answer[T] | Failure:
        """Send it once."""
        try:
            # In a thread: it opens and encodes images.
            content = None if call.body is None else await asyncio.to_thread(_dump, call.body)
        except InputError as error:
            return Failure(message=str(error))
        try:
            async with asyncio.timeout(self._timeout):
                response, body = await self._exchange(call.url, content)
        except TimeoutError:
            return Failure(message=f"no answer in {self._timeout:g} s", again=True, busy=True)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            host = httpx2.URL(call.url).netloc.decode()
            why = f"no connection to {host} ({first_line(error)})"
            return Failure(message=why, again=True, unreachable=True)
        except httpx2.HTTPError as error:
            return Failure(message=f"the connection broke ({type(error).__name__})", again=True)
        if response.status_code != 200:
            return self._refusal(response, body, call.private)
        if body is None:
            return Failure(message=f"the reply is larger than {LARGEST_BODY:,} bytes", again=True)
        try:
            reply = json.loads(body)
        except (ValueError, RecursionError):
            return Failure(message="the reply is no JSON", again=True)
        try:
            return Answer(call.read(reply))
        except BadReplyError as error:
            return Failure(message=self._quotable(str(error), call.private), again=error.again)

    async def _exchange(
        self, url: str, content: bytes | None
    ) -> tuple[httpx2.Response, bytes | None]:
        """The response and its body; None for one that is too large."""
        method = "GET" if content is None else "POST"
        headers = {} if content is None else {"content-type": "application/json"}
        async with self._client.stream(method, url, content=content, headers=headers) as response:
            body = bytearray()
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > LARGEST_BODY:
                    return response, None
            return response, bytes(body)

    def _refusal(
        self, response: httpx2.Response, body: bytes | None, private: Sequence[str]
    ) -> Failure:
        status = response.status_code
        said, code = _error(body or b"")
        said = self._quotable(said, private)
        wait = retry_after(response.headers)
        message = f"HTTP {status}{said and f': {said}'}"
        if status == 401:
            message += " (the key comes from the variable that api_key_env names)"
        too_long = wait is not None and wait > LONGEST_WAIT
        if too_long:
            message += f"; the server asks to wait {wait:,.0f} s"
        return Failure(
            message=message,
            # A spent quota is a 429, too, that no waiting mends.
            again=(status in (408, 409, 425, 429) or (status >= 500 and status != 501))
            and code != "insufficient_quota"
            and not too_long,
            busy=status in (429, 503, 529),
            wait=wait,
            status=status,
        )

    def _quotable(self, text: str, private: Sequence[str]) -> str:
        """One short line of what a server said, without the key or the prompt."""
        for secret in (self._key, *sorted(private, key=len, reverse=True)):
            # A word of three letters gives nothing away, and stands in any message.
            if secret is not None and len(secret) > 3:
                text = text.replace(secret, "…")
        text = " ".join(re.sub(r"data:image/\S*", "data:…", text).split())
        return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}…"


@lru_cache(maxsize=1)
def _certificates() -> ssl.SSLContext:
    """Reading them takes longer than a short answer: once, not for each client."""
    return httpx2.create_ssl_context()


def _dump(make: Callable[[], dict[str, Any]]) -> bytes:
    return json.dumps(make()).encode()


def _error(body: bytes) -> tuple[str, object]:
    """Message and code of an error reply, in whichever of the usual forms."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return "", None
    if isinstance(value, dict) and isinstance(value.get("error"), dict):
        value = value["error"]
    if not isinstance(value, dict):
        return "", None
    messages = [value.get(name) for name in ("message", "error", "detail")]
    return next((each for each in messages if isinstance(each, str)), ""), value.get("code")
