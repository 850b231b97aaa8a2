"""The training loop: stages of epochs, with a checkpoint and a log line after each epoch.

A run is a list of stages. Offline there are two, RCE and GRPO, over logged groups. Online, each
round has these two, over all groups so far.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from pointer_rl.errors import InputError, NothingToLearnError
from pointer_rl.records.provenance import EARLIER, INPUTS, PLUGINS, Change, changeable, earlier_of
from pointer_rl.selectors.selector import Selector
from pointer_rl.train.config import TrainConfig
from pointer_rl.train.groups import Groups
from pointer_rl.train.learner import Learner, Metrics, Schedule, frozen
from pointer_rl.train.state import TrainState, load_state, new_optimizer, save_state

SPLIT_SEED = 0
"""The same for every run, so that a policy trained further keeps the same validation split."""
ENOUGH_HELD_OUT = 10
"""Held-out queries below which no epoch is chosen by them: the last one is kept."""
EpochLine = dict[str, Any]
AT_START = "held_out_reward_at_start"
"""Key in the first log line of later rounds: the starting policy's held-out reward on the current
validation split."""

REWARDS = ("held_out_reward", "held_out_random_reward", "held_out_best", "zero_variance_groups")
"""Metrics that are about rewards; imitation of beams has none."""


@dataclass(frozen=True)
class Stage:
    """Some epochs with one objective."""

    kind: Literal["rce", "sft", "grpo"]
    epochs: int
    lr: float
    round: int
    """The online round; 0 offline."""


def imitation(config: TrainConfig) -> list[Stage]:
    """SFT: RCE on demonstrations of what to do, whose weights are not rewards."""
    return [Stage("sft", config.rce_epochs, config.rce_lr, 0)]


def round_stages(config: TrainConfig, number: int) -> list[Stage]:
    """RCE and GRPO, without a stage of no epochs."""
    stages = [
        Stage("rce", config.rce_epochs, config.rce_lr, number),
        Stage("grpo", config.grpo_epochs, config.grpo_lr, number),
    ]
    return [stage for stage in stages if stage.epochs]


def split_by_image(
    groups: Groups, config: TrainConfig, seed: int = SPLIT_SEED
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Indices of the queries to train on, and of those held out: no image is on both sides.

    An image's side depends on the seed and the image alone, so that it stays when groups are added;
    but at least one query is held out. Raises NothingToLearnError if a side would have only
    zero-variance groups (unless these are included).
    """
    numbers = np.array([_number(f"{seed}/{image}") for image in groups.images], dtype=np.uint64)
    trainable = groups.trainable(config.include_zero_variance)
    lowest = int(numbers[trainable].min(initial=2**64 - 1))
    held = numbers <= np.uint64(max(int(config.held_out * 2**64) - 1, lowest))
    for side, what in ((held, "hold out"), (~held, "train on")):
        if not (trainable & side).any():
            raise NothingToLearnError(
                f"no query is left to {what} whose candidates differ in reward "
                f"({int(trainable.sum()):,} of {len(groups):,} have such): use more queries"
            )
    return np.flatnonzero(~held), np.flatnonzero(held)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


class Trainer:
    """Runs stages from the start, or from the epoch that a checkpoint was written after.

    Raises InputError if a checkpoint belongs to another run, and if the loss is no longer finite;
    the checkpoint of the last good epoch stays.
    """

    learner: type[Learner] = Learner
    """The class that computes the epochs."""

    def __init__(
        self,
        selector: Selector,
        config: TrainConfig,
        device: torch.device,
        checkpoint: Path,
        run: Mapping[str, Any],
        on_epoch: Callable[[EpochLine, int], object] = lambda line, of: None,
        accept: Collection[Change] = (),
    ) -> None:
        """`run` is JSON that identifies the run. It continues from `checkpoint` if that exists.

        on_epoch: called with an epoch's line, and with the number of epochs of its stage.
        accept: what of the run may have changed since. Both states are then recorded.
        """
        self.config = config
        self.device = device
        self._checkpoint = checkpoint
        self._on_epoch = on_epoch
        if checkpoint.exists():
            self.state = load_state(checkpoint, device)
            self.state.run = _same_run(self.state.run, run, checkpoint, accept)
        else:
            selector = selector.to(device).eval().requires_grad_(True)
            copies = {"best": frozen(selector), "start": frozen(selector)}
            self.state = TrainState({"policy": selector, **copies}, None, run)

    @property
    def policy(self) -> Selector:
        """The policy that learns."""
        return self.state.policies["policy"]

    @property
    def best(self) -> Selector:
        """The policy with the highest held-out expected reward in this round, or the last one if
        too few queries are held out."""
        return self.state.policies["best"]

    @property
    def log(self) -> list[EpochLine]:
        """A line for each epoch and for the start of each round, those before a resume included."""
        return self.state.log

    @property
    def kept(self) -> EpochLine:
        """The line of the best policy, or the last one if too few queries are held out."""
        last = self.log[-1]
        if last["held_out_queries"] < ENOUGH_HELD_OUT:
            return last
        return max((each for each in self.log if each["round"] == last["round"]), key=self._worth)

    def save(self) -> None:
        """Write the checkpoint. From then on no other run can continue in its folder."""
        save_state(self._checkpoint, self.state)

    def skip(self, stages: Sequence[Stage]) -> None:
        """Count the first stages of a run as done."""
        self.state.stage = max(self.state.stage, len(stages))

    def fit(self, groups: Groups, stages: Sequence[Stage], first: int) -> None:
        """Run those of the stages that have not been run; `first` is the number of the first.

        Each round starts from the best policy of the previous round, and chooses its own best.
        """
        if self.state.stage >= first + len(stages):
            return
        training, held_out = split_by_image(groups, self.config)
        learner = self.learner(self.policy, groups, training, held_out, self.config, self.device)
        if (self.state.stage, self.state.epoch) == (first, 0):
            self.policy.load_state_dict(self.best.state_dict())
            before = _held_out(learner)
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
        if stage.kind != "grpo":
            first, last = config.rce_temperatures
            progress = state.epoch / max(1, stage.epochs - 1)
            metrics = learner.rce_epoch(state.optimizer, *place, first + (last - first) * progress)
            if stage.kind == "sft":
                metrics = {"cross_entropy": metrics["rce"], "entropy": metrics["entropy"]}
        else:
            metrics = learner.grpo_epoch(state.optimizer, *place, *self._references())
        # Broken weights show in the next step's loss or, after the last step, in these.
        held_out = _held_out(learner)
        for name, value in {**metrics, **held_out}.items():
            if not math.isfinite(value):
                raise InputError(
                    f"{stage.kind} epoch {state.epoch + 1}: {name} is {value}; stopped, and "
                    f"{self._kept_where()}: lower the learning rate, and train again with "
                    "--overwrite"
                )
        self._report(learner, stage, stage.kind, metrics, held_out)
        if self.kept is self.log[-1]:
            self.best.load_state_dict(self.policy.state_dict())

    def _references(self) -> tuple[Selector, Selector]:
        """GRPO's old policy and reference."""
        policies = self.state.policies
        if self.config.old_policy == "start":
            return policies["start"], policies["start"]
        reference = policies["reference"]
        # At the start of GRPO they are the same policy.
        return (frozen(self.policy) if self.state.epoch else reference), reference

    def _worth(self, line: Mapping[str, Any]) -> float:
        """The criterion that the best policy is chosen by: higher is better."""
        if self.config.keep_by == "cross_entropy":
            return -float(line["held_out_cross_entropy"])
        return float(line["held_out_reward"])

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, self.state.stage, self.state.epoch])

    def _kept_where(self) -> str:
        if not any(line["epoch"] for line in self.log):
            return "there was no good epoch before"
        return f"the last good epoch is in {self._checkpoint}"

    def _report(
        self, learner: Learner, stage: Stage, kind: str, metrics: Metrics, held_out: Metrics
    ) -> None:
        line = {
            "round": stage.round,
            "stage": kind,
            "keep_by": self.config.keep_by,
            "epoch": self.state.epoch + 1 if kind != "start" else 0,
            **metrics,
            "zero_variance_groups": learner.excluded_share,
            "held_out_queries": learner.held_out_queries,
            **held_out,
        }
        if self.config.keep_by == "cross_entropy":  # the scores of beams are not rewards
            line = {key: each for key, each in line.items() if key not in REWARDS}
        self.state.log.append(line)
        self._on_epoch(line, stage.epochs)


def _held_out(learner: Learner) -> Metrics:
    return {f"held_out_{name}": value for name, value in learner.held_out().items()}


def _same_run(
    before: Mapping[str, Any], now: Mapping[str, Any], path: Path, accept: Collection[Change]
) -> dict[str, Any]:
    """What identifies the run from now on. Raises InputError if it is not the same run."""
    for key in sorted((before.keys() | now.keys()) - {EARLIER, *accept}):
        if before.get(key) == now.get(key):
            continue
        if key in (PLUGINS, INPUTS):
            what = "the code of a plugin" if key == PLUGINS else "an image, question or answer"
            raise InputError(
                f"{path}: {what} has changed since the run began: start over with --overwrite, or "
                f"accept the change with --accept-changed {key}"
            )
        raise InputError(
            f"{path}: holds a run with {key} {before.get(key)!r}, now {now.get(key)!r}: give "
            "the same to continue it, or start over with --overwrite"
        )
    was = changeable(before)
    earlier = earlier_of(before) + ([] if was == changeable(now) else [was])
    return {**now, **({EARLIER: earlier} if earlier else {})}
