"""Options of the openai backend. The API key is not an option; it is read from the environment."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from pointer_rl.options import SecretRoute


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenAIOptions:
    """The model, the server, and how requests are sent."""

    model: str | None = None
    """Model name on the server; by default the only model that it serves."""
    base_url: SecretRoute | None = None
    """Address of the API, as in http://127.0.0.1:8000/v1; by default OPENAI_BASE_URL, else, with a
    key, https://api.openai.com/v1. Several, separated by commas, share the requests; they must
    serve the same model."""
    api_key_env: SecretRoute = "OPENAI_API_KEY"
    """Environment variable with the API key. If it is not set, no key is sent."""
    images: Literal["data", "file"] = "data"
    """data sends each image; file sends its path, for a server that may read it there
    (vLLM: --allowed-local-media-path)."""
    max_concurrency: int = 32
    """Most concurrent requests to a server; lowered while it is overloaded."""
    timeout: float = 120.0
    """Seconds until a request times out and is retried."""
    retries: int = 6
    """Most retries of a request after temporary failures."""
    backoff: float = 0.5
    """Seconds before the first retry; doubles with each retry, up to 30."""
    seed: int | None = None
    """Sent with each request, for servers that sample even at temperature 0."""
    revision: str | None = None
    """Any text that identifies the model beyond its name (a date, a quantisation). It is part
    of the key of cached responses: change it to ask again."""
    prompt_price: float | None = None
    """Price of a million prompt tokens, in any currency."""
    generated_price: float | None = None
    """Price of a million generated tokens."""

    def __post_init__(self) -> None:
        if self.base_url is not None:
            split_urls(self.base_url)
        # Options are recorded, so this must be a name and not a key given by mistake.
        if not re.fullmatch("[A-Z][A-Z0-9_]*", self.api_key_env):
            raise ValueError(
                "api_key_env must be the name of an environment variable, in capitals, not the key"
            )
        if self.max_concurrency < 1 or self.retries < 0:
            raise ValueError("max_concurrency must be at least 1, and retries not negative")
        for name in ("timeout", "backoff"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a positive number of seconds")
        for name in ("prompt_price", "generated_price"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number that is not negative")


def split_urls(urls: str) -> list[str]:
    """The addresses in a comma-separated list.

    Raises ValueError for one that is not a server's address, or that could contain a key, and for
    one that is repeated. The message does not repeat the URL.
    """
    split = [url.strip().rstrip("/") for url in urls.split(",")]
    for url in split:
        _check_url(url)
    if len(set(split)) < len(split):
        raise ValueError("base_url names a server twice")
    return split


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not url.isprintable() or " " in url:
        raise ValueError("base_url must be an http(s) URL, such as http://127.0.0.1:8000/v1")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(
            "base_url must not have a user, query or fragment, since options are recorded; put the"
            " key into the environment variable that api_key_env names"
        )
