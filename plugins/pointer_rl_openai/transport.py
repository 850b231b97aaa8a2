"""Send one HTTP request once: read the reply, or say why it failed and if a retry may help."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import ssl
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

import httpx2

from pointer_rl.errors import first_line
from pointer_rl_openai.keys import holds_key
from pointer_rl_openai.pacing import retry_after

LONGEST_WAIT = 300.0
"""Seconds. If a server asks to wait for longer, the request fails."""
LARGEST_BODY = 32 * 2**20
"""Most bytes of a reply. The log-probabilities of a long prompt take a few MB."""
_CONNECT_SECONDS = 10.0
_LONGEST_QUOTE = 200
"""Most characters of a server's error message that are quoted."""

T = TypeVar("T")


@dataclass(eq=False)
class CallError(Exception):
    """Why a call failed."""

    message: str
    _: KW_ONLY
    again: bool = False
    """Whether a retry may help."""
    busy: bool = False
    """Whether the server is overloaded."""
    wait: float | None = None
    """Seconds that the server asks to wait."""
    status: int | None = None
    """Status of the HTTP reply; None without a reply."""
    unreachable: bool = False
    """Whether no connection was possible."""

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T]):
    """A request, and how to read its reply."""

    url: str
    body: Callable[[], dict[str, Any]] | None = None
    """Makes the body when the request is sent; may raise InputError. None sends a GET."""
    read: Callable[[object], T]
    """Reads the reply's JSON. May raise CallError."""
    private: Sequence[str] = ()
    """Texts that no error message may contain."""


class Transport:
    """An HTTP client for one event loop. It does not follow redirects, to keep the key safe."""

    def __init__(self, *, key: str | None, timeout: float) -> None:
        """`timeout` covers a whole call, from connecting to the reply's last byte, in seconds."""
        for name in ("httpx2", "httpcore2"):  # They log what the server writes in its headers.
            logging.getLogger(name).setLevel(logging.WARNING)
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

    async def send(self, call: Call[T]) -> T:
        """Send a call once. Raises CallError, and InputError from making the body."""
        # Opening and encoding images would block the event loop.
        content = None if call.body is None else await asyncio.to_thread(_dump, call.body)
        try:
            async with asyncio.timeout(self._timeout):
                response, body = await self._exchange(call.url, content)
        except TimeoutError:
            message = f"no answer in {self._timeout:g} s"
            raise CallError(message, again=True, busy=True) from None
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            host = httpx2.URL(call.url).netloc.decode()
            message = f"no connection to {host} ({first_line(error)})"
            raise CallError(message, again=True, unreachable=True) from error
        except httpx2.HTTPError as error:
            message = f"the connection broke ({type(error).__name__})"
            raise CallError(message, again=True) from error
        try:
            reply = None if body is None else json.loads(body)
        except (ValueError, RecursionError):
            body = reply = None
        key_returned = holds_key(reply, self._key)
        if response.status_code != 200:
            raise self._refusal(response, None if key_returned else reply, call.private)
        if key_returned:
            raise CallError("the reply contains the API key, and is not used")
        if body is None:
            raise CallError(f"the reply is not JSON of at most {LARGEST_BODY:,} bytes", again=True)
        try:
            return call.read(reply)
        except CallError as error:
            message = self._quotable(error.message, call.private)
            raise CallError(message, again=error.again) from error

    async def _exchange(
        self, url: str, content: bytes | None
    ) -> tuple[httpx2.Response, bytes | None]:
        """The response and its body, which is None if it is too large."""
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
        self, response: httpx2.Response, reply: object, private: Sequence[str]
    ) -> CallError:
        status = response.status_code
        said, code = _error(reply)
        said = self._quotable(said, private)
        wait = retry_after(response.headers)
        message = f"HTTP {status}{said and f': {said}'}"
        if status == 401:
            message += " (the key comes from the variable that api_key_env names)"
        too_long = wait is not None and wait > LONGEST_WAIT
        if too_long:
            message += f"; the server asks to wait {wait:,.0f} s"
        return CallError(
            message=message,
            # A used-up quota is also a 429, but waiting does not help.
            again=(status in (408, 409, 425, 429) or (status >= 500 and status != 501))
            and code != "insufficient_quota"
            and not too_long,
            busy=status in (429, 503, 529),
            wait=wait,
            status=status,
        )

    def _quotable(self, text: str, private: Sequence[str]) -> str:
        """Shorten a server's message to one line, without the key or the prompt."""
        for secret in (self._key, *sorted(private, key=len, reverse=True)):
            # Very short texts occur in any message, and reveal nothing.
            if secret is not None and len(secret) > 3:
                text = text.replace(secret, "…")
        text = " ".join(re.sub(r"data:image/\S*", "data:…", text).split())
        return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}…"


def look_up(reply: object, *names: str) -> object:
    """A value in nested JSON objects; None if any of the names is missing."""
    for name in names:
        reply = reply.get(name) if isinstance(reply, dict) else None
    return reply


@lru_cache(maxsize=1)
def _certificates() -> ssl.SSLContext:
    """Load the certificates once, since this takes longer than a short answer."""
    return httpx2.create_ssl_context()


def _dump(make: Callable[[], dict[str, Any]]) -> bytes:
    return json.dumps(make()).encode()


def _error(value: object) -> tuple[str, object]:
    """Message and code of an error reply in any of the usual formats."""
    if isinstance(value, dict) and isinstance(value.get("error"), dict):
        value = value["error"]
    if not isinstance(value, dict):
        return "", None
    messages = [value.get(name) for name in ("message", "error", "detail")]
    return next((each for each in messages if isinstance(each, str)), ""), value.get("code")
