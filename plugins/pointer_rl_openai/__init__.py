"""The openai plugin: uses servers with the OpenAI chat API (vLLM, SGLang, transformers serve, …).

Importing this module does not import the HTTP client; creating a backend does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pointer_rl.hookspecs import hookimpl

if TYPE_CHECKING:
    from pointer_rl.types import Register
    from pointer_rl_openai.backend import OpenAIBackend
    from pointer_rl_openai.options import OpenAIOptions

__all__ = ["OpenAIOptions", "create_backend", "pointer_rl_register_backends"]


def create_backend(options: OpenAIOptions) -> OpenAIBackend:
    """Connect to a server. Raises InputError if it is unreachable or does not serve the model."""
    from pointer_rl_openai.backend import OpenAIBackend

    return OpenAIBackend.connect(options)


@hookimpl
def pointer_rl_register_backends(register: Register) -> None:
    """Register the backend."""
    register(
        "openai",
        create_backend,
        options="pointer_rl_openai.options:OpenAIOptions",
        summary="a server with the OpenAI chat API: vLLM, SGLang, transformers serve, hosted",
        needs={"httpx2": "pointer-rl[openai]"},
    )
