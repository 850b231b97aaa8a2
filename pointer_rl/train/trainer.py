"""The loop: stages of epochs, a checkpoint and a line after each, the best policy kept.

A run is a list of stages. Offline there are two, RCE and GRPO, over logged groups; online each
round has these two again, over all groups so far.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from pointer_rl.errors import InputError
from pointer_rl.selectors.pointer import PointerSelector
from pointer_rl.train.config import TrainConfig
from pointer_rl.train.groups import Groups
from pointer_rl.train.learner import Learner, Metrics, Schedule, frozen
from pointer_rl.train.state import TrainState, load_state, new_optimizer, save_state

__all__ = ["AT_START", "Stage", "Trainer", "round_stages", "split_by_image"]

SPLIT_SEED = 0
"""The same for every run: a policy that goes on from another's keeps what that held out."""
EpochLine = dict[str, Any]
AT_START = "held_out_reward_at_start"
"""In the first line of every round but the first: the reward, on the groups now held out, of the
policy that the run began with."""


@dataclass(frozen=True)
class Stage:
    """Some epochs with one objective."""

    kind: Literal["rce", "grpo"]
    epochs: int
    lr: float
    round: int
    """Of online learning; 0 offline."""


def round_stages(config: TrainConfig, number: int) -> list[Stage]:
    """RCE and GRPO, where they have epochs."""
    stages = [
        Stage("rce", config.rce_epochs, config.rce_lr, number),
        Stage("grpo", config.grpo_epochs, config.grpo_lr, number),
    ]
    return [stage for stage in stages if stage.epochs]


def split_by_image(
    groups: Groups, share: float, seed: int, *, imitate: bool = False
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Indices of the queries to train on, and of those held out: no image is on both sides.

    An image's side depends on the seed and the image alone, so that it stays there when groups are
    added; but of few queries at least one is held out. Raises InputError where a side would have
    no group that teaches.
    """
    numbers = np.array([_number(f"{seed}/{image}") for image in groups.images], dtype=np.uint64)
    teaching = groups.teaching(imitate)
    lowest = int(numbers[teaching].min(initial=2**64 - 1))
    held = numbers <= np.uint64(max(int(share * 2**64) - 1, lowest))
    for side, what in ((held, "hold out"), (~held, "train on")):
        if not (teaching & side).any():
            raise InputError(
                f"no query is left to {what} whose candidates differ in reward "
                f"({int(teaching.sum()):,} of {len(groups):,} have such): use more queries"
            )
    return np.flatnonzero(~held), np.flatnonzero(held)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


class Trainer:
    """Runs stages, from the start or from where a checkpoint stands.

    Raises InputError when a checkpoint is of another run, and when the loss is no number any more:
    the checkpoint of the last good epoch stays.
    """

    learner: type[Learner] = Learner

    def __init__(
        self,
        selector: PointerSelector,
        config: TrainConfig,
        device: torch.device,
        checkpoint: Path,
        run: Mapping[str, Any],
        on_epoch: Callable[[EpochLine], object] = lambda line: None,
    ) -> None:
        """`run`, plain JSON, says what decides the run; with a checkpoint there, it goes on."""
        self.config = config
        self.device = device
        self._checkpoint = checkpoint
        self._on_epoch = on_epoch
        if checkpoint.exists():
            self.state = load_state(checkpoint, device)
            _check_same(self.state.run, run, checkpoint)
        else:
            selector = selector.to(device).eval().requires_grad_(True)
            copies = {"best": frozen(selector), "start": frozen(selector)}
            self.state = TrainState({"policy": selector, **copies}, None, run)

    @property
    def policy(self) -> PointerSelector:
        """The one that learns."""
        return self.state.policies["policy"]

    @property
    def best(self) -> PointerSelector:
        """The one with the highest expected reward on held-out groups, in this round."""
        return self.state.policies["best"]

    @property
    def log(self) -> list[EpochLine]:
        """A line for each epoch so far, those before a resumption included."""
        return self.state.log

    @property
    def kept(self) -> EpochLine:
        """The line of the best policy."""
        last = max(line["round"] for line in self.log)
        return max((line for line in self.log if line["round"] == last), key=self._worth)

    def save(self) -> None:
        """Write the checkpoint: from then on no other run goes on in its folder."""
        save_state(self._checkpoint, self.state)

    def fit(self, groups: Groups, stages: Sequence[Stage], first: int) -> None:
        """Run the stages that have not been run; `first` is the number of the first of them.

        Each round starts from the best policy of the one before, and chooses its own best.
        """
        if self.state.stage >= first + len(stages):
            return
        training, held_out = split_by_image(
            groups, self.config.held_out, SPLIT_SEED, imitate=self.config.imitate
        )
        learner = self.learner(self.policy, groups, training, held_out, self.config, self.device)
        if (self.state.stage, self.state.epoch) == (first, 0):
            self.policy.load_state_dict(self.best.state_dict())
            before = _held_out(learner)
            self.state.best_reward = self._worth(before)
            if first:
                start = learner.held_out(self.state.policies["start"])
                before[AT_START] = start["reward"]
            self._report(learner, stages[0], "start", {}, before)
        while self.state.stage < first + len(stages):
            stage = stages[self.state.stage - first]
            self._epoch(learner, stage)
            self.state.epoch += 1
            if self.state.epoch == stage.epochs:
                self.state.stage, self.state.epoch = self.state.stage + 1, 0
                self.state.optimizer = None
            self.save()

    def _epoch(self, learner: Learner, stage: Stage) -> None:
        state, config = self.state, self.config
        if state.epoch == 0:
            state.optimizer = new_optimizer(self.policy)
            if stage.kind == "grpo":
                state.policies["reference"] = frozen(self.policy)
        assert state.optimizer is not None
        steps = learner.steps_per_epoch
        schedule = Schedule(stage.lr, steps * stage.epochs)
        place = (schedule, steps * state.epoch, self._rng())
        if stage.kind == "rce":
            first, last = config.rce_temperatures
            progress = state.epoch / max(1, stage.epochs - 1)
            metrics = learner.rce_epoch(state.optimizer, *place, first + (last - first) * progress)
        else:
            metrics = learner.grpo_epoch(state.optimizer, *place, *self._references())
        # A step that breaks the weights shows in the next step's loss or, after the last, here.
        held_out = _held_out(learner)
        for name, value in {**metrics, **held_out}.items():
            if not math.isfinite(value):
                raise InputError(
                    f"{stage.kind} epoch {state.epoch + 1}: {name} is {value}; stopped, and "
                    f"{self._kept_where()}: lower the learning rate, and train again with "
                    "--overwrite"
                )
        self._report(learner, stage, stage.kind, metrics, held_out)
        worth = self._worth(held_out)
        if state.best_reward is None or worth > state.best_reward:
            state.best_reward = worth
            self.best.load_state_dict(self.policy.state_dict())

    def _references(self) -> tuple[PointerSelector, PointerSelector]:
        """GRPO's old policy and reference."""
        policies = self.state.policies
        if self.config.old_policy == "start":
            return policies["start"], policies["start"]
        reference = policies["reference"]
        # At the start of GRPO they are the same policy.
        return (frozen(self.policy) if self.state.epoch else reference), reference

    def _worth(self, line: Mapping[str, Any]) -> float:
        """By which the best is chosen: higher is better."""
        if self.config.keep_by == "cross_entropy":
            return -float(line["held_out_cross_entropy"])
        return float(line["held_out_reward"])

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, self.state.stage, self.state.epoch])

    def _kept_where(self) -> str:
        if not self._checkpoint.exists():
            return "there was no good epoch before"
        return f"the last good epoch is in {self._checkpoint}"

    def _report(
        self, learner: Learner, stage: Stage, kind: str, metrics: Metrics, held_out: Metrics
    ) -> None:
        line = {
            "round": stage.round,
            "stage": kind,
            "epoch": self.state.epoch + 1 if kind != "start" else 0,
            **metrics,
            "tied_groups": learner.tied_share,
            **held_out,
        }
        self.state.log.append(line)
        self._on_epoch(line)


def _held_out(learner: Learner) -> Metrics:
    return {f"held_out_{name}": value for name, value in learner.held_out().items()}


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise InputError(
                f"{path}: the run that stopped there had another {key} ({before.get(key)!r}, now "
                f"{now.get(key)!r}): give the same, or start anew with --overwrite"
            )
