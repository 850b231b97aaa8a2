"""Lever-Plus's training as it was, with the six faults that kept its GRPO from learning.

stale old policy  the ratio's old policy and the KL's reference are the policy from before RCE
dropout           dropout 0.5 while learning, none where old log-probabilities are computed
top-k             only the 3 best candidates of a group, chosen before advantages are taken
double z-score    rewards are z-scored, and then z-scored once more as advantages
no history        old log-probabilities come from a policy that ignores what it has chosen
cross-entropy     the checkpoint with the lowest held-out cross-entropy is kept

Its KL, too, is an estimate from the pointers at hand. `learning.py` compares it with our training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pointer_rl.devices import resolve_device
from pointer_rl.selectors import PointerSelector
from pointer_rl.selectors.bundle import DataFile
from pointer_rl.train import losses
from pointer_rl.train.config import RECIPES, TrainConfig
from pointer_rl.train.groups import Batch, Groups
from pointer_rl.train.learner import Learner, Metrics, frozen, pointer_logprobs
from pointer_rl.train.run import CHECKPOINT, TrainRun, finish
from pointer_rl.train.sources import open_source, start_policy
from pointer_rl.train.trainer import Trainer, round_stages

__all__ = ["AncestorTrainer", "ancestor_config", "sampled_kl", "standardise", "train_ancestor"]

TOP_K = 3
DROPOUT = 0.5


def ancestor_config(**changes: Any) -> TrainConfig:
    """The guide's recipe, whose learning rates and temperatures are Lever-Plus's."""
    return TrainConfig(**{**RECIPES["guide"], "keep_by": "cross_entropy", **changes})


def standardise(rewards: Tensor, valid: Tensor) -> Tensor:
    """z-scores within each group: [B, N], 0 where invalid."""
    count = valid.sum(-1, keepdim=True)
    mean = rewards.where(valid, 0.0).sum(-1, keepdim=True) / count.clamp(min=1)
    squares = ((rewards - mean) ** 2).where(valid, 0.0)
    variance = squares.sum(-1, keepdim=True) / (count - 1).clamp(min=1)
    return ((rewards - mean) / (variance.sqrt() + 1e-6)).where(valid, 0.0)


def sampled_kl(logprobs: Tensor, reference_logprobs: Tensor, valid: Tensor) -> Tensor:
    """Estimate of the KL from the pointers at hand, r - 1 - log r with r = p / reference.

    [B, N], 0 where invalid. For pointers drawn from the reference its mean is KL(reference ‖ p).
    For any other pointers it is no divergence, which is one reason why GRPO stalled.
    """
    log_ratio = (logprobs - reference_logprobs).masked_fill(~valid, 0.0)
    return (log_ratio.exp() - 1 - log_ratio).where(valid, 0.0)


def without_history(selector: PointerSelector) -> PointerSelector:
    """A copy that scores every step with the first step's query."""
    copied = frozen(selector)
    copied.config = replace(copied.config, history="static")
    return copied


class AncestorLearner(Learner):
    """A learner with dropout, top-k, the double z-score and the estimated KL."""

    selector: PointerSelector

    def rce_epoch(self, *arguments: Any) -> Metrics:
        with self._dropout():
            return super().rce_epoch(*arguments)

    def grpo_epoch(self, *arguments: Any) -> Metrics:
        with self._dropout():
            return super().grpo_epoch(*arguments)

    @contextmanager
    def _dropout(self) -> Iterator[None]:
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            self.selector.dropout.p = DROPOUT
            self.selector.train()
            try:
                yield
            finally:
                self.selector.eval()

    def _batches(self, rng: np.random.Generator) -> Iterator[Batch]:
        for batch in super()._batches(rng):
            torch.manual_seed(int(rng.integers(2**63)))
            yield batch

    def _compared(self, batch: Batch) -> tuple[Tensor, Tensor]:
        best = batch.rewards.masked_fill(~batch.valid, -torch.inf)
        best = best.topk(min(TOP_K, best.shape[1]))
        valid = batch.valid & torch.zeros_like(batch.valid).scatter(1, best.indices, True)
        rewards = standardise(batch.rewards, valid)
        return valid, losses.advantages(rewards, valid, divide_by_std=True)

    def _kl(
        self, batch: Batch, valid: Tensor, steps: list[Tensor], reference: list[Tensor]
    ) -> Tensor:
        pair = (pointer_logprobs(batch, steps), pointer_logprobs(batch, reference))
        return sampled_kl(*pair, valid).sum(-1) / valid.sum(-1).clamp(min=1)


class AncestorTrainer(Trainer):
    """A trainer whose old policy is stale and has no history."""

    learner = AncestorLearner

    def _references(self) -> tuple[PointerSelector, PointerSelector]:
        start = self.state.policies["start"]
        return without_history(start), start


def train_ancestor(run: TrainRun) -> None:
    """`run_training`, with the ancestor's trainer."""
    source = open_source(run.data, run.img_emb, run.query_emb, run.cand_emb)
    data = source.read(run.data, run.reward)
    groups = Groups.of(data, run.shots)
    start = start_policy(run.sft_ckpt, source, run.config)
    folder = run.output.folder
    folder.mkdir(parents=True, exist_ok=True)
    decided = {"data": data.sha256, "seed": run.config.seed}
    device = resolve_device(run.device or "auto")
    trainer = AncestorTrainer(start, run.config, device, folder / CHECKPOINT, decided)
    trainer.fit(groups, round_stages(run.config, 0), first=0)
    file = DataFile(name=run.data.name, sha256=data.sha256)
    finish(trainer, source, groups, folder, file, run.sft_ckpt)
