"""The kit by kind: what `pointer-rl plugins check` runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pointer_rl.testing.backend import examine_backend
from pointer_rl.testing.dataset import examine_dataset
from pointer_rl.testing.encoder import examine_encoder
from pointer_rl.testing.findings import Result
from pointer_rl.testing.generator import examine_generator
from pointer_rl.testing.metric import examine_metric
from pointer_rl.testing.prompt import examine_prompt_builder
from pointer_rl.testing.reward import examine_reward

__all__ = ["EXAMINATIONS"]

EXAMINATIONS: dict[str, Callable[[Callable[..., Any], Any], Iterator[Result]]] = {
    "backend": examine_backend,
    "prompt": examine_prompt_builder,
    "metric": examine_metric,
    "generator": examine_generator,
    "reward": examine_reward,
    "dataset": examine_dataset,
    "encoder": examine_encoder,
}
"""Kind of the registry → a result for each check of a factory and its options."""
