"""The losses, as pure functions of log-probabilities and rewards.

Groups are ragged: [B, N] tensors are padded, and `valid` says which places hold a candidate. A
log-probability is that of a whole pointer, summed over its steps. No loss is averaged over
queries here: what a batch of them means is the caller's.

Sources: RCE and GRPO of Lever-Plus (rce weights softmax(reward / T); PPO's clipped ratio,
Schulman et al. 2017; group-relative advantages, Shao et al. 2024, "DeepSeekMath").

Shapes: B queries, N candidates of a query, K pool rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "advantages",
    "clipped_ratio_loss",
    "contrast_loss",
    "exact_kl",
    "expected_reward",
    "has_spread",
    "rce_loss",
    "rce_weights",
]

STD_FLOOR = 0.1
ADVANTAGE_LIMIT = 5.0


def rce_weights(rewards: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """softmax(reward / temperature) over the candidates of each query: [B, N], 0 where invalid."""
    scaled = (rewards / temperature).masked_fill(~valid, -torch.inf)
    # A query without a valid candidate would be 0 / 0. (Not nan_to_num: it hides what is broken.)
    return scaled.softmax(-1).masked_fill(~valid, 0.0)


def rce_loss(logprobs: Tensor, rewards: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """Reward-weighted cross-entropy of each query: [B], -Σ_i w_i · log p(pointer_i)."""
    weights = rce_weights(rewards, valid, temperature)
    return -(weights * logprobs.masked_fill(~valid, 0.0)).sum(-1)


def contrast_loss(logprobs: Tensor, rewards: Tensor, valid: Tensor) -> Tensor:
    """-log of the expected reward among a query's own candidates, best = 1 and worst = 0: [B].

    RCE raises good pointers against the whole pool; this, against those that were tried and did
    worse, which is what a policy near the truth still has to learn. 0 for a group without spread.
    """
    lowest = rewards.masked_fill(~valid, torch.inf).amin(-1, keepdim=True)
    highest = rewards.masked_fill(~valid, -torch.inf).amax(-1, keepdim=True)
    spread = (highest > lowest) & valid.any(-1, keepdim=True)
    scaled = ((rewards - lowest) / (highest - lowest)).where(valid, 0.0)
    # A group without spread: any finite value will do, for a gradient of nothing but zeros.
    scaled = scaled.where(spread, 1.0)
    among = logprobs.masked_fill(~valid & spread, -torch.inf)
    # log Σ p_i s_i - log Σ p_i, without leaving the logarithm: -inf where a candidate scores 0.
    earned = torch.logsumexp(among + scaled.log(), -1)
    loss = torch.logsumexp(among, -1) - earned
    return loss.masked_fill(~spread.squeeze(-1), 0.0)


def has_spread(rewards: Tensor, valid: Tensor) -> Tensor:
    """[B] bool: whether the valid rewards of a query are not all equal. Two at least, then."""
    highest = rewards.masked_fill(~valid, -torch.inf).amax(-1)
    lowest = rewards.masked_fill(~valid, torch.inf).amin(-1)
    return highest > lowest


def _moments(rewards: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (unbiased, as the ancestor's) standard deviation of the valid ones: [B, 1] each."""
    count = valid.sum(-1, keepdim=True)
    mean = rewards.where(valid, 0.0).sum(-1, keepdim=True) / count.clamp(min=1)
    squares = ((rewards - mean) ** 2).where(valid, 0.0)
    variance = squares.sum(-1, keepdim=True) / (count - 1).clamp(min=1)
    return mean, variance.sqrt()


def advantages(rewards: Tensor, valid: Tensor, *, divide_by_std: bool) -> Tensor:
    """Reward minus the group's mean: [B, N], 0 where invalid, within ±5.

    `divide_by_std`: over max(standard deviation of the group, 0.1). Once, from raw rewards.
    """
    mean, std = _moments(rewards, valid)
    centred = rewards - mean
    if divide_by_std:
        centred = centred / std.clamp(min=STD_FLOOR)
    return centred.clamp(-ADVANTAGE_LIMIT, ADVANTAGE_LIMIT).where(valid, 0.0)


def clipped_ratio_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantage: Tensor, valid: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """PPO's loss of each query, [B], its candidates averaged; and which were clipped, [B, N] bool.

    ratio = exp(logprob - old logprob); -min(ratio · A, clamp(ratio, 1 ± clip) · A).
    """
    ratio = (logprobs - old_logprobs).masked_fill(~valid, 0.0).exp()
    unclipped = ratio * advantage
    clipped = ratio.clamp(1 - clip, 1 + clip) * advantage
    losses = -torch.minimum(unclipped, clipped).where(valid, 0.0)
    count = valid.sum(-1).clamp(min=1)
    return losses.sum(-1) / count, (clipped < unclipped) & valid


def exact_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) of the next row, summed over the pool: [..., K] each → [...].

    Rows that may not be chosen are -inf in both and add nothing.
    """
    # 0 · (-inf - -inf) is NaN, in value and gradient: such rows are taken out before.
    blocked = log_p == -torch.inf
    difference = (log_p - log_q).masked_fill(blocked, 0.0)
    return (log_p.exp() * difference).sum(-1)


def expected_reward(logprobs: Tensor, rewards: Tensor, valid: Tensor) -> Tensor:
    """Σ_i p_i r_i / Σ_i p_i over a query's candidates: [B].

    What the policy is to earn if it chooses among the pointers that were judged; of the others
    nothing is known.
    """
    weights = logprobs.masked_fill(~valid, -torch.inf).softmax(-1).masked_fill(~valid, 0.0)
    return (weights * rewards.where(valid, 0.0)).sum(-1)
