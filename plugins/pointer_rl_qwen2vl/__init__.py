"""The qwen2vl plugin: runs Qwen2-VL, Qwen2.5-VL and Qwen3-VL checkpoints.

Importing this module does not import torch or transformers; creating a backend does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pointer_rl.hookspecs import hookimpl

if TYPE_CHECKING:
    from pointer_rl.types import Register
    from pointer_rl_qwen2vl.backend import Qwen2VLBackend
    from pointer_rl_qwen2vl.options import Qwen2VLOptions

__all__ = ["Qwen2VLOptions", "create_backend", "pointer_rl_register_backends"]

ALIASES = {
    "qwen2_vl_2B": "Qwen/Qwen2-VL-2B-Instruct",
    "qwen2_vl_7B": "Qwen/Qwen2-VL-7B-Instruct",
    "qwen2.5_vl_3B": "Qwen/Qwen2.5-VL-3B-Instruct",
    "qwen2.5_vl_7B": "Qwen/Qwen2.5-VL-7B-Instruct",
    "qwen3_vl_2B": "Qwen/Qwen3-VL-2B-Instruct",
    "qwen3_vl_4B": "Qwen/Qwen3-VL-4B-Instruct",
    "qwen3_vl_8B": "Qwen/Qwen3-VL-8B-Instruct",
    "glyphs": "pointer_rl_glyphs:model",
}
"""Short names → Hugging Face Hub ids, and the folder of the glyph model."""


def create_backend(options: Qwen2VLOptions) -> Qwen2VLBackend:
    """Load a checkpoint as a backend. Raises InputError and MissingExtraError."""
    from pointer_rl_qwen2vl.backend import Qwen2VLBackend
    from pointer_rl_qwen2vl.checkpoint import load_checkpoint

    return Qwen2VLBackend(
        load_checkpoint(options),
        engine=options.engine,
        batch_tokens=options.batch_tokens,
        cache_gib=options.cache_gib,
        cuda_graphs=options.cuda_graphs,
        threads=options.threads,
    )


@hookimpl
def pointer_rl_register_backends(register: Register) -> None:
    """Register the backend and the short names of checkpoints."""
    register(
        "qwen2vl",
        create_backend,
        options="pointer_rl_qwen2vl.options:Qwen2VLOptions",
        summary="Qwen2-VL, Qwen2.5-VL or Qwen3-VL, from a folder or the Hugging Face Hub",
        aliases={alias: {"model": model} for alias, model in ALIASES.items()},
    )
