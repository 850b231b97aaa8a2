"""Epochs of RCE and of GRPO, and what a policy is worth on held-out groups.

Three policies are kept apart. The one that learns; `old`, in the ratio, which is the policy at the
start of the epoch; and `reference`, in the KL, which is the policy at the start of GRPO
(`TrainConfig.old_policy` has the guide's alternative). The policy that drew the data is in no loss:
log-probabilities recorded in the data are not used.

Dropout is off throughout, so that a policy gives a pointer one probability, whoever computes it.

Shapes: B queries, N candidates, S shots, K pool rows, C choices of a step: the rows and, for a
selector that can stop, to stop.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.utils.checkpoint import checkpoint

from pointer_rl.selectors.decoding import logits_along, pick
from pointer_rl.selectors.selector import EncodedPool, Selector, check_embeddings
from pointer_rl.train import losses
from pointer_rl.train.config import TrainConfig
from pointer_rl.train.groups import Batch, Groups

Metrics = dict[str, float]
SelectorT = TypeVar("SelectorT", bound=Selector)
_GRADIENT_NORM = 1.0
_WARMUP_STEPS = 50
_LOGITS = 2**24
"""Most logits per step to compute at once. A larger batch is computed in parts."""


def step_logprobs(
    selector: Selector,
    batch: Batch,
    steps: int | None = None,
    encoded: EncodedPool | None = None,
) -> list[Tensor]:
    """For each step the log-probabilities of the choices along the batch's pointers.

    [B, 1, C] at the first step, which all candidates share, then [B, N, C]. `steps`: only the first
    of them. `encoded`: the batch's pool, if `selector` has encoded it already. A step that a
    pointer does not take has probability 1 on its last choice; see `logits_along`.
    """
    pool = selector.encode_pool(batch.pool) if encoded is None else encoded
    if batch.own is not None:
        pool = pool.of(batch.own)
    state = selector.encode(batch.queries, pool, batch.allowed)
    along = logits_along(selector, state, batch.pointers[..., :steps], padded=batch.padded)
    return [logits.log_softmax(-1) for logits in along]


def pointer_logprobs(batch: Batch, steps: list[Tensor], credited: Tensor | None = None) -> Tensor:
    """[B, N] log-probabilities of the pointers, from those of their steps; 0 where invalid.

    For a selector that can stop, a pointer shorter than S includes its stop. For one that never
    stops, it is the log-probability of the rows that the pointer has.

    `credited` [B, N, S] bool: the log-probability that a pointer begins with these choices, up to
    the last credited one; only the credited ones have a gradient. Later choices explain nothing and
    are left open, and `steps` may lack them. All candidates are thus events under the same policy,
    even if they are credited at different steps.
    None: the log-probability of the whole pointer.
    """
    along = zip(steps, batch.pointers.unbind(-1), strict=False)
    logprobs_BNS = torch.stack([pick(logp_BNC, rows) for logp_BNC, rows in along], dim=-1)
    if credited is not None:
        credited = credited[..., : len(steps)]
        begun = credited.flip(-1).cumsum(-1).flip(-1) > 0
        logprobs_BNS = logprobs_BNS.where(credited, logprobs_BNS.detach()).where(begun, 0.0)
    return logprobs_BNS.sum(-1).masked_fill(~batch.valid, 0.0)


def frozen(selector: SelectorT) -> SelectorT:
    """A frozen copy in evaluation mode."""
    return copy.deepcopy(selector).eval().requires_grad_(False)


@dataclass(frozen=True)
class Schedule:
    """The learning rate of each step of a stage: warm-up, then a linear decay to 5 %."""

    lr: float
    steps: int

    def __call__(self, step: int) -> float:
        warmup = min(1.0, (step + 1) / min(_WARMUP_STEPS, max(1, self.steps // 10)))
        return self.lr * warmup * (1 - 0.95 * step / max(1, self.steps))


class _Mean:
    """Means over an epoch, kept on the device, since reading them at each step would block."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor, count: Tensor | None = None) -> None:
        total = values.detach().double().sum() if values.device.type != "mps" else values.sum()
        self._sums[name] = self._sums[name] + total if name in self._sums else total
        number = torch.tensor(values.numel()) if count is None else count
        self._counts[name] = self._counts[name] + number if name in self._counts else number

    def metrics(self) -> Metrics:
        return {
            name: float(self._sums[name]) / max(1, int(self._counts[name])) for name in self._sums
        }


class Learner:
    """A selector, the groups that it trains on, and the held-out groups that choose checkpoints."""

    def __init__(
        self,
        selector: Selector,
        groups: Groups,
        training: npt.NDArray[np.int64],
        held_out: npt.NDArray[np.int64],
        config: TrainConfig,
        device: torch.device,
    ) -> None:
        self.selector = selector.to(device).eval()
        self.config = config
        self.device = device
        self._groups = groups
        check_embeddings(groups.queries, selector.config.d_model, "query")
        check_embeddings(groups.pool, selector.config.d_model, "pool")
        trainable = groups.trainable(config.include_zero_variance)
        self.excluded_share = 1 - float(trainable[training].mean())
        """Share of the training groups that are left out of every loss, being zero-variance."""
        self._training = training[trainable[training]]
        self._held_out = held_out[trainable[held_out]]

    @property
    def held_out_queries(self) -> int:
        """Number of held-out groups that a policy is judged by."""
        return len(self._held_out)

    @property
    def steps_per_epoch(self) -> int:
        return len(self._groups.plan(self._training, self.config.batch_size))

    def rce_epoch(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        first_step: int,
        rng: np.random.Generator,
        temperature: float,
    ) -> Metrics:
        """One pass of reward-weighted cross-entropy over the training groups."""
        mean = _Mean()

        def compute(batch: Batch, pool: EncodedPool) -> tuple[Tensor, ...]:
            steps = step_logprobs(self.selector, batch, self._depth(batch), pool)
            logprobs = pointer_logprobs(batch, steps, self._credited(batch))
            valid = batch.valid if self.config.grpo_on == "all" else batch.valid & ~batch.sampled
            rce = losses.rce_loss(logprobs, batch.rewards, valid, temperature)
            contrast = losses.contrast_loss(logprobs, batch.rewards, valid)
            return rce, contrast, _entropy(steps[0])

        for step, batch in enumerate(self._batches(rng), first_step):
            rce, contrast, entropy = self._in_parts(batch, compute)
            self._step(optimizer, schedule(step), (rce + self.config.contrast * contrast).mean())
            mean.add("rce", rce)
            mean.add("contrast", contrast)
            mean.add("entropy", entropy)
        return mean.metrics()

    def grpo_epoch(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        first_step: int,
        rng: np.random.Generator,
        old: Selector,
        reference: Selector,
    ) -> Metrics:
        """One pass of the clipped policy gradient with a KL term over the training groups.

        If `old` and `reference` are the same object, it is evaluated once.
        """
        mean = _Mean()
        old_pool, reference_pool = self._encoded(old), self._encoded(reference)

        def compute(batch: Batch, pool: EncodedPool) -> tuple[Tensor, ...]:
            valid, advantage = self._compared(batch)
            steps = step_logprobs(self.selector, batch, encoded=pool)
            credited = self._credited(batch)
            logprobs = pointer_logprobs(batch, steps, credited)
            with torch.no_grad():
                reference_steps = step_logprobs(reference, batch, encoded=reference_pool)
                old_steps = reference_steps
                if old is not reference:
                    old_steps = step_logprobs(old, batch, self._depth(batch), old_pool)
                old_logprobs = pointer_logprobs(batch, old_steps, credited)
            ppo, clipped = losses.clipped_ratio_loss(
                logprobs, old_logprobs, advantage, valid, self.config.clip
            )
            kl = self._kl(batch, valid, steps, reference_steps)
            ratio = (logprobs - old_logprobs).exp().where(valid, 0.0)
            return ppo, kl, ratio, clipped, valid, _entropy(steps[0])

        for step, batch in enumerate(self._batches(rng), first_step):
            ppo, kl, ratio, clipped, valid, entropy = self._in_parts(batch, compute)
            self._step(optimizer, schedule(step), (ppo + self.config.kl_beta * kl).mean())
            count = valid.sum()
            mean.add("ppo", ppo)
            mean.add("kl", kl)
            mean.add("ratio", ratio, count)
            mean.add("clipped", clipped, count)
            mean.add("entropy", entropy)
        return mean.metrics()

    def _in_parts(
        self, batch: Batch, compute: Callable[[Batch, EncodedPool], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """Apply `compute` to a batch; it returns tensors with a row for each query.

        With a large pool, the logits of a whole batch do not fit into memory. The batch is then
        split, and each part is recomputed in the backward pass (activation checkpointing).
        """
        pool = self.selector.encode_pool(batch.pool)
        parts = batch.parts(_LOGITS)
        if len(parts) == 1:
            return compute(batch, pool)
        again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        found = [again(compute, part, pool) for part in parts]
        return tuple(torch.cat(each) for each in zip(*found, strict=True))

    def _credited(self, batch: Batch) -> Tensor | None:
        return None if self.config.all_steps else batch.credited

    def _depth(self, batch: Batch) -> int | None:
        """How many steps the loss needs; None: all."""
        return None if self.config.all_steps else batch.depth

    @torch.no_grad()
    def _encoded(self, selector: Selector) -> EncodedPool | None:
        """The pool that all batches share, encoded by a policy that does not learn."""
        if any(pool is not None for pool in self._groups.pools):
            return None  # batches share no pool
        return selector.encode_pool(self._groups.pool.to(self.device))

    def _compared(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The candidates that GRPO compares, [B, N] bool, and their advantages."""
        valid, rewards = batch.valid, batch.rewards
        if self.config.grpo_on == "sampled":
            valid = batch.sampled
            # The sampled ones may have equal rewards: no advantage, but they would add a KL.
            valid = valid & ~losses.zero_variance(rewards, valid).unsqueeze(-1)
        divide = self.config.advantage == "mean-std"
        return valid, losses.advantages(rewards, valid, divide_by_std=divide)

    def _kl(
        self, batch: Batch, valid: Tensor, steps: list[Tensor], reference: list[Tensor]
    ) -> Tensor:
        """[B] KL against the reference, averaged over the candidates compared."""
        kl = torch.stack(
            [
                losses.exact_kl(*pair).expand(valid.shape)
                for pair in zip(steps, reference, strict=True)
            ]
        ).sum(0)
        return kl.where(valid, 0.0).sum(-1) / valid.sum(-1).clamp(min=1)

    @torch.no_grad()
    def held_out(self, selector: Selector | None = None) -> Metrics:
        """What the selector, or another one, is worth on the held-out groups.

        `reward`: expected reward (`losses.expected_reward`), by the log-probabilities of the loss;
        `best`: the reward of each group's best candidate; `cross_entropy`: RCE at its last
        temperature. `random_reward` and `random_cross_entropy` are those of a selector that chooses
        at random.
        """
        mean = _Mean()
        selector = selector or self.selector
        pool = self._encoded(selector)
        batches = self._groups.batches(self._held_out, self.config.batch_size, self.device)
        for batch in chain.from_iterable(each.parts(_LOGITS) for each in batches):
            steps = step_logprobs(selector, batch, self._depth(batch), pool)
            logprobs = pointer_logprobs(batch, steps, self._credited(batch))
            scored = (logprobs, batch.rewards, batch.valid)
            mean.add("reward", losses.expected_reward(*scored))
            mean.add("best", batch.rewards.masked_fill(~batch.valid, -torch.inf).amax(-1))
            temperature = self.config.rce_temperatures[1]
            mean.add("cross_entropy", losses.rce_loss(*scored, temperature))
            at_random = pointer_logprobs(batch, list(map(_uniform, steps)), self._credited(batch))
            scored = (at_random, batch.rewards, batch.valid)
            number = batch.valid.sum(-1)
            mean.add("random_reward", batch.rewards.where(batch.valid, 0.0).sum(-1) / number)
            mean.add("random_cross_entropy", losses.rce_loss(*scored, temperature))
        return mean.metrics()

    def _batches(self, rng: np.random.Generator) -> Iterator[Batch]:
        return self._groups.batches(self._training, self.config.batch_size, self.device, rng)

    def _step(self, optimizer: torch.optim.Optimizer, lr: float, loss: Tensor) -> None:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(self.selector.parameters(), _GRADIENT_NORM)
        optimizer.step()


def _uniform(logprobs: Tensor) -> Tensor:
    """Log-probabilities of a random choice among the same choices."""
    possible = logprobs > -torch.inf
    return -possible.sum(-1, keepdim=True).log().where(possible, torch.inf)


def _entropy(logprobs: Tensor) -> Tensor:
    """Entropy of the first choice, in nats: [B]."""
    logprobs = logprobs.detach()
    terms = logprobs.exp() * logprobs.masked_fill(logprobs == -torch.inf, 0.0)
    # All candidates share the distribution; those that choose nothing have 0 (`logits_along`).
    return -terms.sum(-1).amin(1)
