"""pointer-rl: learn which solved examples to show a vision-language model.

The names exported here are the public API. Each is imported when it is first used, so that
`import pointer_rl` is fast and does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pointer_rl.api import (
        build_vqa_prompt,
        compute_reward_for_candidate,
        compute_step_logits,
        compute_vqa_accuracy,
        evaluate_pointer_candidate,
        generate_pointer_candidates_for_query,
        load_vqa_model,
        sample_pointer_with_temperature,
    )
    from pointer_rl.datasets.embeddings import load_embeddings
    from pointer_rl.errors import PointerRLError
    from pointer_rl.hookspecs import hookimpl
    from pointer_rl.records.beam_dataset import (
        BeamDataset,
        BeamDatasetWithEmbedding,
        collate_groups,
    )
    from pointer_rl.runs import Session
    from pointer_rl.selectors import load_selector
    from pointer_rl.selectors.selecting import Policy

    __version__: str

__all__ = [
    "BeamDataset",
    "BeamDatasetWithEmbedding",
    "PointerRLError",
    "Policy",
    "Session",
    "__version__",
    "build_vqa_prompt",
    "collate_groups",
    "compute_reward_for_candidate",
    "compute_step_logits",
    "compute_vqa_accuracy",
    "evaluate_pointer_candidate",
    "generate_pointer_candidates_for_query",
    "hookimpl",
    "load_embeddings",
    "load_selector",
    "load_vqa_model",
    "sample_pointer_with_temperature",
]

_HOME = {
    "BeamDataset": "pointer_rl.records.beam_dataset",
    "BeamDatasetWithEmbedding": "pointer_rl.records.beam_dataset",
    "PointerRLError": "pointer_rl.errors",
    "Policy": "pointer_rl.selectors.selecting",
    "Session": "pointer_rl.runs",
    "collate_groups": "pointer_rl.records.beam_dataset",
    "hookimpl": "pointer_rl.hookspecs",
    "load_embeddings": "pointer_rl.datasets.embeddings",
    "load_selector": "pointer_rl.selectors",
}
"""The module of each name that is not in pointer_rl.api."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "__version__":
        from importlib.metadata import version

        return version("pointer-rl")
    return getattr(import_module(_HOME.get(name, "pointer_rl.api")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
