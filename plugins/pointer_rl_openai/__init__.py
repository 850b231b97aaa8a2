"""The plugin openai: any server with the OpenAI chat API (vLLM, SGLang, transformers serve, …).

Light to import: the HTTP client is imported when a backend is created.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from pointer_rl.errors import MissingExtraError
from pointer_rl.hookspecs import hookimpl
from pointer_rl_openai.options import OpenAIOptions

if TYPE_CHECKING:
    from pointer_rl.types import Register
    from pointer_rl_openai.backend import OpenAIBackend

__all__ = ["OpenAIOptions", "create_backend", "pointer_rl_register_backends"]


def create_backend(options: OpenAIOptions) -> OpenAIBackend:
    """A backend for the server, which is asked what it serves.

    Raises InputError where it cannot be reached or does not serve the model, MissingExtraError.
    """
    if find_spec("httpx2") is None:
        raise MissingExtraError("httpx2", "the backend openai", "'pointer-rl[openai]'")
    from pointer_rl_openai.backend import OpenAIBackend

    return OpenAIBackend.connect(options)


@hookimpl
def pointer_rl_register_backends(register: Register) -> None:
    """Register the backend."""
    register(
        "openai",
        create_backend,
        options=OpenAIOptions,
        summary="a server with the OpenAI chat API: vLLM, SGLang, transformers serve, hosted",
    )
