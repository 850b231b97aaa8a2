"""Find the server, its key, and the model that it serves.

The fingerprint hashes the model's name, its entry in the server's list of models (owner, root,
parent), the version of vLLM or SGLang, and the options that affect an answer. A public host is part
of the fingerprint, since providers serve models of the same name differently. A private address is
not, so the same model on another node or port has the same fingerprint. A hosted model that changes
under the same name cannot be detected; the option `revision` is for that.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pointer_rl.errors import InputError, did_you_mean
from pointer_rl.local.fingerprints import digest_of
from pointer_rl_openai.asking import Asker
from pointer_rl_openai.options import OpenAIOptions, split_urls
from pointer_rl_openai.transport import Call, CallError, look_up

logger = logging.getLogger(__name__)

_OPENAI = "https://api.openai.com/v1"
_VERSION_PATHS = {"vllm": "version", "sglang": "get_server_info"}
"""The value of `owned_by` → path of the server's version, next to the API."""
_ABOUT = ("id", "owned_by", "root", "parent")
"""Fields of a listed model. The others change at each start, or do not affect an answer."""


@dataclass(frozen=True)
class Address:
    """The address of the API."""

    base_url: str

    @property
    def chat(self) -> str:
        """URL of chat completions."""
        return f"{self.base_url}/chat/completions"

    @property
    def models(self) -> str:
        """URL of the list of models."""
        return f"{self.base_url}/models"

    def next_to_api(self, path: str) -> str:
        """URL of a path that vLLM and SGLang serve next to the API."""
        return f"{self.base_url.removesuffix('/v1')}/{path}"

    @property
    def provider(self) -> str | None:
        """The host's name if it is public."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            return host if ipaddress.ip_address(host).is_global else None
        except ValueError:
            return host if "." in host else None


@dataclass(frozen=True)
class Server:
    """A server, and the model to ask it for."""

    address: Address
    model: str
    kind: str
    """The model's `owned_by`: vllm, sglang, or the name of an owner; "" if unknown."""
    fingerprint: str


def api_key(options: OpenAIOptions) -> str | None:
    """Read the key from the environment. Raises InputError if a named variable is not set.

    The key is read whenever it is needed. No object that is stored, sent or pickled holds it.
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


def server_addresses(options: OpenAIOptions) -> list[Address]:
    """The option base_url, else OPENAI_BASE_URL, else OpenAI's own address if there is a key."""
    urls = options.base_url or os.environ.get("OPENAI_BASE_URL")
    if not urls:
        if api_key(options) is None:
            raise InputError(
                "backend openai: no server is named: give --backend-opt"
                " base_url=http://127.0.0.1:8000/v1, or set OPENAI_BASE_URL (or, for OpenAI's own,"
                " OPENAI_API_KEY)"
            )
        urls = _OPENAI
    try:
        return [Address(url) for url in split_urls(urls)]
    except ValueError as error:
        raise InputError(f"OPENAI_BASE_URL: {error}") from error


async def discover(asker: Asker, address: Address, options: OpenAIOptions) -> Server:
    """Ask the server for its models. Raises InputError if it fails, or lacks the wanted model."""
    try:
        listed = await asker.ask(Call(url=address.models, read=_read_models))
    except CallError as error:
        if error.status not in (404, 405, 501):
            hint = "is the server running?" if error.unreachable else "is base_url right?"
            raise InputError(f"backend openai, {address.models}: {error}; {hint}") from error
        logger.warning(
            "%s: HTTP %d: the server does not say what it serves; base_url usually ends in /v1",
            *(address.models, error.status),
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
        # Other servers load models that they do not list.
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
    data = look_up(reply, "data")
    if not isinstance(data, list):
        raise CallError("the reply is not a list of models")
    return [each for each in data if isinstance(each, dict) and isinstance(each.get("id"), str)]


async def _version(asker: Asker, address: Address, kind: str) -> str | None:
    if kind not in _VERSION_PATHS:
        return None
    url = address.next_to_api(_VERSION_PATHS[kind])

    def read(reply: object) -> str | None:
        version = look_up(reply, "version")
        return version if isinstance(version, str) else None

    try:
        return await asker.ask(Call(url=url, read=read))
    except CallError as error:
        if error.status is None or error.status >= 500 or error.status == 429:
            # Without the version the fingerprint would change, and cached responses would be lost.
            raise InputError(f"backend openai: {url}: {error}; try again") from error
        return None  # The server is behind a proxy that only passes the API.


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
    name = re.sub("[^A-Za-z0-9._]+", "-", model).strip("-")[-40:]
    return f"openai-{name}-{digest_of(parts)}"
