"""The checkpoint of a training run after an epoch: one safetensors file, replaced atomically.

It holds the policies (the learning one, the best, GRPO's reference, the one that training started
from), the optimizer's state and, as metadata, everything else as JSON, with a checksum of it all.
There is no random state, because every epoch draws from (seed, its own number). So an interrupted
run that continues from a checkpoint ends in the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pointer_rl.errors import InputError, first_line
from pointer_rl.files import tensor_bytes, write_tensors
from pointer_rl.selectors.selector import Selector, create_selector

_METADATA = "pointer_rl_training"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(eq=False)
class TrainState:
    """Everything that the next epoch depends on."""

    policies: dict[str, Selector]
    """`policy` learns; `best`, `start` and, once GRPO has begun, `reference` are copies."""
    optimizer: torch.optim.AdamW | None
    """The optimizer of the current stage; None between stages."""
    run: Mapping[str, Any]
    """Identifies the run: another run cannot continue from this checkpoint."""
    stage: int = 0
    """The number of the next epoch's stage."""
    epoch: int = 0
    """The number of the next epoch in its stage."""
    log: list[dict[str, Any]] = field(default_factory=list)
    """A line for each epoch, and one for the start of each round."""
    rounds: dict[str, str] = field(default_factory=dict)
    """The file of each round of an online run → its SHA-256."""


def new_optimizer(selector: Selector) -> torch.optim.AdamW:
    """AdamW without weight decay; `Schedule` sets the learning rate of each step.

    Raises InputError for a selector without parameters.
    """
    if next(selector.parameters(), None) is None:
        raise InputError(
            f"the selector {selector.name} has no parameters: there is nothing to learn"
        )
    return torch.optim.AdamW(selector.parameters(), weight_decay=0.0, fused=True)


def save_state(path: Path, state: TrainState) -> None:
    """Replace the file. Raises InputError if it cannot be written."""
    tensors: dict[str, Tensor] = {}
    for name, selector in state.policies.items():
        for key, tensor in selector.state_dict().items():
            # Copies: safetensors refuses tensors that share memory.
            tensors[f"{name}/{key}"] = tensor.detach().cpu().clone().contiguous()
    if state.optimizer is not None:
        for index, moments in state.optimizer.state_dict()["state"].items():
            for name in _MOMENTS:
                tensors[f"optimizer/{index}/{name}"] = moments[name].cpu().clone()
    about = {
        "selector": state.policies["policy"].name,
        "config": asdict(state.policies["policy"].config),
        "optimizer": state.optimizer is not None,
        "run": state.run,
        "stage": state.stage,
        "epoch": state.epoch,
        "log": state.log,
        "rounds": state.rounds,
    }
    about["sha256"] = _digest(about, tensors)
    write_tensors(path, tensors, {_METADATA: json.dumps(about)})


def load_state(path: Path, device: torch.device) -> TrainState:
    """Read a file that `save_state` wrote. Raises InputError for any other, or a damaged one."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[_METADATA])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if about.pop("sha256") != _digest(about, tensors):
            raise InputError(
                f"{path}: damaged, its checksum is wrong: put a copy in its place, or train anew "
                "with --overwrite"
            )
        return _restored(about, tensors, device)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path}: no state of a training run of this version ({first_line(error)}); train anew "
            "with --overwrite"
        ) from error


def _digest(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of everything in a checkpoint."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def _restored(
    about: Mapping[str, Any], tensors: Mapping[str, Tensor], device: torch.device
) -> TrainState:
    names = {key.partition("/")[0] for key in tensors} - {"optimizer"}
    policies = {}
    for name in sorted(names):
        selector = create_selector(about["selector"], about["config"])
        own = {
            key.partition("/")[2]: tensor
            for key, tensor in tensors.items()
            if key.startswith(f"{name}/")
        }
        selector.load_state_dict(own)
        policies[name] = selector.to(device).eval().requires_grad_(name == "policy")
    optimizer = None
    if about["optimizer"]:
        optimizer = new_optimizer(policies["policy"])
        _load_moments(optimizer, tensors)
    return TrainState(
        policies,
        optimizer,
        about["run"],
        about["stage"],
        about["epoch"],
        about["log"],
        about["rounds"],
    )


def _load_moments(optimizer: torch.optim.AdamW, tensors: Mapping[str, Tensor]) -> None:
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        kind, _, rest = key.partition("/")
        if kind == "optimizer":
            index, _, name = rest.partition("/")
            moments.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
