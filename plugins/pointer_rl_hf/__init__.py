"""The plugin hf: any image-text-to-text model that transformers loads.

Light to import: torch and transformers are imported when a backend is created.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pointer_rl.hookspecs import hookimpl
from pointer_rl_hf.options import HFOptions

if TYPE_CHECKING:
    from pointer_rl.types import Register, VQABackend

__all__ = ["HFOptions", "create_backend", "pointer_rl_register_backends"]


def create_backend(options: HFOptions) -> VQABackend:
    """Load a checkpoint as a backend. Raises InputError and MissingExtraError."""
    from pointer_rl_hf.checkpoint import load_checkpoint
    from pointer_rl_hf.model import make_backend

    return make_backend(load_checkpoint(options), options.batch_tokens)


@hookimpl
def pointer_rl_register_backends(register: Register) -> None:
    """Register the backend."""
    register(
        "hf",
        create_backend,
        options=HFOptions,
        summary="any image-text-to-text model of transformers (LLaVA, InternVL, Gemma 3, SmolVLM…)",
    )
