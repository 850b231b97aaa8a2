"""The flamingo plugin: OpenFlamingo, implemented here, and IDEFICS-1 through transformers.

Importing this module does not import torch or transformers; creating a backend does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pointer_rl.hookspecs import hookimpl

if TYPE_CHECKING:
    from pointer_rl.types import Register, VQABackend
    from pointer_rl_flamingo.options import FlamingoOptions

__all__ = ["FlamingoOptions", "create_backend", "pointer_rl_register_backends"]

ALIASES: dict[str, dict[str, object]] = {
    "flamingo_3B": {
        "model": "openflamingo/OpenFlamingo-3B-vitl-mpt1b",
        "language_model": "anas-awadalla/mpt-1b-redpajama-200b",
    },
    "flamingo_4B": {
        "model": "openflamingo/OpenFlamingo-4B-vitl-rpj3b",
        "language_model": "togethercomputer/RedPajama-INCITE-Base-3B-v1",
    },
    "flamingo_9B": {
        "model": "openflamingo/OpenFlamingo-9B-vitl-mpt7b",
        "language_model": "anas-awadalla/mpt-7b",
    },
    "idefics_9B": {"model": "HuggingFaceM4/idefics-9b"},
}
"""Short names → options."""


def create_backend(options: FlamingoOptions) -> VQABackend:
    """Load a checkpoint as a backend. Raises InputError."""
    from pointer_rl_flamingo.loading import load_backend

    return load_backend(options)


@hookimpl
def pointer_rl_register_backends(register: Register) -> None:
    """Register the backend and the short names of checkpoints."""
    register(
        "flamingo",
        create_backend,
        options="pointer_rl_flamingo.options:FlamingoOptions",
        summary="OpenFlamingo or IDEFICS-1, from folders or the Hugging Face Hub",
        aliases=ALIASES,
    )
