"""The hf plugin: runs any image-text-to-text model that transformers loads.

Importing this module does not import torch or transformers; creating a backend does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pointer_rl.hookspecs import hookimpl

if TYPE_CHECKING:
    from pointer_rl.types import Register, VQABackend
    from pointer_rl_hf.options import HFBackendOptions

__all__ = ["HFBackendOptions", "create_backend", "pointer_rl_register_backends"]

ALIASES = {
    "idefics2_8B": "HuggingFaceM4/idefics2-8b",
    "idefics3_8B": "HuggingFaceM4/Idefics3-8B-Llama3",
}
"""Short names → Hugging Face Hub ids."""


def create_backend(options: HFBackendOptions) -> VQABackend:
    """Load a checkpoint as a backend. Raises InputError and MissingExtraError."""
    from pointer_rl_hf.checkpoint import load_checkpoint
    from pointer_rl_hf.model import make_backend

    return make_backend(load_checkpoint(options), options.batch_tokens, options.threads)


@hookimpl
def pointer_rl_register_backends(register: Register) -> None:
    """Register the backend and the short names of checkpoints."""
    register(
        "hf",
        create_backend,
        options="pointer_rl_hf.options:HFBackendOptions",
        summary="any image-text-to-text model of transformers (LLaVA, InternVL, Gemma 3, SmolVLM…)",
        aliases={alias: {"model": model} for alias, model in ALIASES.items()},
    )
