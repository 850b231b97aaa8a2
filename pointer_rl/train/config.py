"""The options of a training run, and the recipes that have a name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pointer_rl.errors import InputError

DEFAULT_SELECTOR = "pointer"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to learn from groups of judged pointers: RCE first, then GRPO."""

    rce_epochs: int = 20
    """Epochs of reward-weighted cross-entropy."""
    grpo_epochs: int = 5
    """Epochs of GRPO. Each is an iteration: the old policy is the one at its start."""
    batch_size: int = 32
    """Queries per step."""
    rce_lr: float = 1e-3
    """Learning rate of RCE."""
    grpo_lr: float = 1e-4
    """Learning rate of GRPO."""
    rce_temperatures: tuple[float, float] = (0.1, 0.1)
    """T of the weights softmax(reward / T): at the first epoch and, linearly, at the last."""
    contrast: float = 3.0
    """Weight of the contrast between a query's own candidates, added to RCE."""
    clip: float = 0.2
    """GRPO clips the ratio to 1 ± clip."""
    kl_beta: float = 0.3
    """Weight of KL(policy ‖ reference), taken over the whole pool at each step."""
    old_policy: Literal["epoch", "start"] = "epoch"
    """The old policy of GRPO's ratio. `epoch`: the policy at the start of each epoch; the reference
    of the KL is then the policy at the start of GRPO. `start`: both are the policy that training
    started from, before RCE."""
    advantage: Literal["mean", "mean-std"] = "mean-std"
    """Reward minus the group's mean; `mean-std` divides by the group's standard deviation."""
    grpo_on: Literal["all", "sampled"] = "all"
    """The candidates that GRPO learns from. `sampled`: those drawn from the policy, which RCE then
    leaves out."""
    demonstration_price: float = 0.0
    """Taken from a candidate's reward for each demonstration that it shows, in reward units."""
    keep_by: Literal["reward", "cross_entropy"] = "reward"
    """The held-out metric that chooses the policy to keep."""
    per_query_pool: bool = False
    """A query attends to, and chooses from, the `pool` of its record. Otherwise it uses the whole
    pool, as it does wherever the policy is used."""
    all_steps: bool = False
    """Train every candidate at all its steps, whether they explain its reward or not."""
    include_zero_variance: bool = False
    """Also train on groups whose rewards are all equal, as imitation does."""
    held_out: float = 0.1
    """Share of the images whose queries only choose the policy to keep."""
    seed: int = 0
    """Seed of a new selector's weights and of the order of batches."""
    selector: str = DEFAULT_SELECTOR
    """The registered name of a new selector."""
    selector_options: Mapping[str, object] = field(default_factory=dict)
    """The options of a new selector, without `d_model`, which is that of the embeddings."""

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
                raise InputError(f"{name} is {value}: it must be above 0, and finite")
        for name in ("kl_beta", "contrast", "demonstration_price"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(
                    f"{name} is {getattr(self, name)}: it must be 0 or more, and finite"
                )
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
