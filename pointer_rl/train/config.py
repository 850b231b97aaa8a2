"""What decides a training run, and the recipes that have a name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pointer_rl.errors import InputError

__all__ = ["RECIPES", "SelectorSizes", "TrainConfig"]


@dataclass(frozen=True, kw_only=True)
class SelectorSizes:
    """The selector that training starts with where it is given none."""

    hidden_dim: int | None = None
    """None: that of the embeddings."""
    num_layers: int = 3
    num_heads: int = 8
    history: Literal["static", "gated"] = "static"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to learn from groups of judged pointers: RCE first, then GRPO."""

    rce_epochs: int = 20
    """Of reward-weighted cross-entropy."""
    grpo_epochs: int = 5
    """Each is an iteration: the old policy is the one at its start."""
    batch_size: int = 32
    """Queries a step."""
    rce_lr: float = 1e-3
    grpo_lr: float = 1e-4
    rce_temperatures: tuple[float, float] = (0.1, 0.1)
    """Of softmax(reward / T), from the first epoch to the last, linearly."""
    contrast: float = 3.0
    """Weight of the contrast between a query's own candidates, beside RCE."""
    clip: float = 0.2
    """The ratio's range, 1 ± clip."""
    kl_beta: float = 0.3
    """Weight of KL(policy ‖ reference), taken over the whole pool at each step."""
    old_policy: Literal["epoch", "start"] = "epoch"
    """The old policy of GRPO's ratio. `epoch`: the policy at the start of each epoch; the reference
    of the KL is the policy at the start of GRPO. `start`: both are the policy that training started
    from, before RCE."""
    advantage: Literal["mean", "mean-std"] = "mean-std"
    """What a reward is compared with: less the group's mean, over its standard deviation or not."""
    grpo_on: Literal["all", "sampled"] = "all"
    """The candidates that GRPO learns from. `sampled`: those drawn from the policy; the others then
    learn through RCE alone, and those through GRPO alone."""
    keep_by: Literal["reward", "cross_entropy"] = "reward"
    """By what, on held-out groups, the policy to keep is chosen."""
    own_pools: bool = False
    """A query attends to, and chooses from, the `pool` of its record alone. Otherwise from the
    whole pool, as it does wherever the policy is used."""
    all_steps: bool = False
    """Also teach the steps at which all candidates of a query chose the same row."""
    imitate: bool = False
    """Every group teaches, tied ones too: what is there is to be imitated, not compared."""
    held_out: float = 0.1
    """Share of the images whose queries do nothing but choose the policy to keep."""
    seed: int = 0
    sizes: SelectorSizes = field(default_factory=SelectorSizes)

    def __post_init__(self) -> None:
        for name in ("rce_epochs", "grpo_epochs"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}: it cannot be below 0")
        if self.rce_epochs + self.grpo_epochs == 0:
            raise InputError("no epochs: give --rce-epochs, --grpo-epochs or both")
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}: it must be at least 1")
        positive = {
            "rce_lr": self.rce_lr,
            "grpo_lr": self.grpo_lr,
            "rce_temperatures": min(self.rce_temperatures),
            "clip": self.clip,
        }
        for name, value in positive.items():
            if not 0 < value < math.inf:
                raise InputError(f"{name} is {value}: it must be above 0")
        for name in ("kl_beta", "contrast"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}: it cannot be below 0")
        if not 0 < self.held_out < 1:
            raise InputError(f"held_out is {self.held_out}: it must be between 0 and 1")


RECIPES: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "guide": {
        "rce_epochs": 25,
        "grpo_epochs": 25,
        "rce_lr": 5e-4,
        "grpo_lr": 5e-6,
        "kl_beta": 0.3,
        "rce_temperatures": (2.0, 0.5),
        "contrast": 0.0,
        "all_steps": True,
        "old_policy": "start",
    },
}
"""`guide`: the request that pointer-rl began with. GRPO compares the whole group, and the policy
that training starts from is both the old policy and the reference."""
