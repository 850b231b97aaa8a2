"""Which server is asked, with which key, and what it says of itself.

The fingerprint hashes the model's name, what the server's list of models says of it (who serves it,
from what, on top of what), vLLM's and SGLang's version, and the options that decide an answer. The
address is a part of it only where it is a provider's, who serves a name in his own way: the same
model on another node or port is the same. None of this shows a hosted model that changes behind its
name: for that there is the option `revision`.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import logging
import os
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pointer_rl.errors import InputError, did_you_mean
from pointer_rl_openai.asking import Asker
from pointer_rl_openai.options import OpenAIOptions, check_url
from pointer_rl_openai.transport import BadReplyError, Call, Failure

__all__ = ["Address", "Server", "api_key", "discover", "server_address"]

logger = logging.getLogger(__name__)

_OPENAI = "https://api.openai.com/v1"
_VERSION_PATHS = {"vllm": "version", "sglang": "get_server_info"}
"""Who says so in `owned_by` → where the server's version is, beside the API."""
_ABOUT = ("id", "owned_by", "root", "parent")
"""Of a listed model. The rest changes between starts of the same server, or decides no answer."""


@dataclass(frozen=True)
class Address:
    """Where the API is."""

    base_url: str

    @property
    def chat(self) -> str:
        """The chat completions."""
        return f"{self.base_url}/chat/completions"

    @property
    def models(self) -> str:
        """The list of models."""
        return f"{self.base_url}/models"

    def beside(self, path: str) -> str:
        """What vLLM and SGLang have next to the API."""
        return f"{self.base_url.removesuffix('/v1')}/{path}"

    @property
    def provider(self) -> str | None:
        """The host's name where it is a public one."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            return host if ipaddress.ip_address(host).is_global else None
        except ValueError:
            return host if "." in host else None


@dataclass(frozen=True)
class Server:
    """A server that was found, and the model that it is asked for."""

    address: Address
    model: str
    kind: str
    """Who serves the model, in the server's words: vllm, sglang, or an owner's name; may be ""."""
    fingerprint: str


def api_key(options: OpenAIOptions) -> str | None:
    """The key, from the environment. Raises InputError where a variable was named and is not set.

    It is read each time that it is needed, and kept by nothing that is stored, sent or pickled.
    """
    name = options.api_key_env
    key = os.environ.get(name, "").strip()
    if not key:
        if name != "OPENAI_API_KEY":
            raise InputError(f"backend openai: the environment variable {name} is not set")
        return None
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"backend openai: {name} holds characters that no key has")
    return key


def server_address(options: OpenAIOptions) -> Address:
    """The option base_url, else OPENAI_BASE_URL, else OpenAI's own where there is a key."""
    url = options.base_url
    if url is None and (url := os.environ.get("OPENAI_BASE_URL")):
        try:
            check_url(url)
        except ValueError as error:
            raise InputError(f"OPENAI_BASE_URL: {error}") from error
    if not url:
        if api_key(options) is None:
            raise InputError(
                "backend openai: no server is named: give --backend-opt"
                " base_url=http://127.0.0.1:8000/v1, or set OPENAI_BASE_URL (or, for OpenAI's own,"
                " OPENAI_API_KEY)"
            )
        url = _OPENAI
    return Address(url.rstrip("/"))


async def discover(asker: Asker, address: Address, options: OpenAIOptions) -> Server:
    """Ask the server what it serves. Raises InputError where it cannot say, or not that model."""
    listed = await asker.ask(Call(url=address.models, read=_read_models))
    if isinstance(listed, Failure):
        if listed.status not in (404, 405, 501):
            hint = "is the server running?" if listed.unreachable else "is base_url right?"
            raise InputError(f"backend openai, {address.models}: {listed.message}; {hint}")
        logger.warning(
            "%s: HTTP %d: the server does not say what it serves; base_url usually ends in /v1",
            *(address.models, listed.status),
        )
        listed = []
    names = [entry["id"] for entry in listed]
    model = options.model
    if model is None:
        if len(names) != 1:
            raise InputError(
                f"backend openai: give --backend-opt model=NAME; {address.base_url} serves"
                f" {', '.join(sorted(names)[:20]) or 'none that it names'}"
            )
        [model] = names
    about = next((entry for entry in listed if entry["id"] == model), None)
    kinds = {entry.get("owned_by") for entry in listed}
    if about is None and any(kind in _VERSION_PATHS for kind in kinds):
        # Others load what they do not list.
        raise InputError(
            f"backend openai: {address.base_url} does not serve {model!r}"
            f"{did_you_mean(model, names)}"
        )
    kind = str(about.get("owned_by")) if about else ""
    version = await _version(asker, address, kind)
    logger.info("asking %s for %s, served by %s %s", address.base_url, model, kind, version)
    fingerprint = _fingerprint(address, model, about or {}, version, options)
    return Server(address, model, kind, fingerprint)


def _read_models(reply: object) -> list[dict[str, Any]]:
    data = reply.get("data") if isinstance(reply, dict) else None
    if not isinstance(data, list):
        raise BadReplyError("the reply is no list of models", again=False)
    return [each for each in data if isinstance(each, dict) and isinstance(each.get("id"), str)]


async def _version(asker: Asker, address: Address, kind: str) -> str | None:
    if kind not in _VERSION_PATHS:
        return None
    url = address.beside(_VERSION_PATHS[kind])

    def read(reply: object) -> str | None:
        version = reply.get("version") if isinstance(reply, dict) else None
        return version if isinstance(version, str) else None

    version = await asker.ask(Call(url=url, read=read))
    if not isinstance(version, Failure):
        return version
    if version.status is None or version.status >= 500 or version.status == 429:
        # Without it the fingerprint would be another, and what is kept be asked anew.
        raise InputError(f"backend openai: {url}: {version.message}; try again")
    return None  # a proxy that lets only the API through


def _fingerprint(
    address: Address,
    model: str,
    about: dict[str, Any],
    version: str | None,
    options: OpenAIOptions,
) -> str:
    parts = {
        "model": model,
        "about": {name: about.get(name) for name in _ABOUT},
        "version": version,
        "provider": address.provider,
        "images": options.images,
        "seed": options.seed,
        "revision": options.revision,
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    name = re.sub("[^A-Za-z0-9._]+", "-", model).strip("-")[-40:]
    return f"openai-{name}-{digest[:20]}"
