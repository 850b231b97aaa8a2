"""The kit with which a plugin's author tests it.

A check takes what `register` takes, a factory and its options, and raises `ContractError`, a
sentence for each finding:

    def test_it_keeps_the_contract():
        check_backend(ShoutBackend, ShoutOptions(word="no"))

Each name is imported when it is first used: importing the kit costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pointer_rl.testing.backend import check_backend
    from pointer_rl.testing.dataset import check_dataset
    from pointer_rl.testing.encoder import check_encoder
    from pointer_rl.testing.fakes import (
        EqualMetric,
        FakeBackend,
        PlainPrompt,
        batch,
        example,
        fake_policy,
        pool,
    )
    from pointer_rl.testing.findings import ContractError
    from pointer_rl.testing.generator import check_generator
    from pointer_rl.testing.metric import check_metric
    from pointer_rl.testing.prompt import check_prompt_builder
    from pointer_rl.testing.reward import check_reward
    from pointer_rl.testing.tiny import tiny_dataset

__all__ = [
    "ContractError",
    "EqualMetric",
    "FakeBackend",
    "PlainPrompt",
    "batch",
    "check_backend",
    "check_dataset",
    "check_encoder",
    "check_generator",
    "check_metric",
    "check_prompt_builder",
    "check_reward",
    "example",
    "fake_policy",
    "pool",
    "tiny_dataset",
]

_HOME = {
    "ContractError": "findings",
    "check_backend": "backend",
    "check_dataset": "dataset",
    "check_encoder": "encoder",
    "check_generator": "generator",
    "check_metric": "metric",
    "check_prompt_builder": "prompt",
    "check_reward": "reward",
    "tiny_dataset": "tiny",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME.get(name, 'fakes')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
