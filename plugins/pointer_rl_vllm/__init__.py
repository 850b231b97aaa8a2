"""The vllm plugin: runs any image-text-to-text model that vLLM supports, in this process.

Importing this module does not import vLLM; creating a backend does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pointer_rl.hookspecs import hookimpl

if TYPE_CHECKING:
    from pointer_rl.types import Register
    from pointer_rl_vllm.backend import VLLMBackend
    from pointer_rl_vllm.options import VLLMOptions

__all__ = ["VLLMOptions", "create_backend", "pointer_rl_register_backends"]


def create_backend(options: VLLMOptions) -> VLLMBackend:
    """Load a checkpoint into vLLM. Raises InputError."""
    from pointer_rl_vllm.loading import load_backend

    return load_backend(options)


@hookimpl
def pointer_rl_register_backends(register: Register) -> None:
    """Register the backend."""
    register(
        "vllm",
        create_backend,
        options="pointer_rl_vllm.options:VLLMOptions",
        summary="any image-text-to-text model of vLLM, in this process",
        needs={"vllm": "pointer-rl[vllm]"},
    )
