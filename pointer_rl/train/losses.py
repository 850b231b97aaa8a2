"""The losses, as pure functions of log-probabilities and rewards.

Groups are ragged: [B, N] tensors are padded, and `valid` says which places hold a candidate. A
log-probability is that of a pointer, or of its beginning up to the last step that explains its
reward (`learner.pointer_logprobs`); a shorter pointer's may include the stop. Losses are per query;
the caller averages them over a batch.

    RCE        -Σ_i w_i log p_i,  w = softmax(reward / T)                         (Lever-Plus)
    contrast   -log Σ_i p_i s_i / Σ_i p_i,  s = reward scaled to [0, 1] in the group      (ours)
    GRPO       -mean_i min(r_i A_i, clip(r_i, 1 ± ε) A_i) + β KL,  r = p / p_old
               (PPO's ratio, Schulman et al. 2017; group-relative advantages A, Shao et al. 2024,
               "DeepSeekMath"; the KL is exact, over the whole pool at each step)

Shapes: B queries, N candidates of a query, C choices of a step.
"""

from __future__ import annotations

import torch
from torch import Tensor

STD_FLOOR = 0.1
ADVANTAGE_LIMIT = 5.0


def rce_weights(rewards: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """softmax(reward / temperature) over the candidates of each query: [B, N], 0 where invalid."""
    scaled = (rewards / temperature).masked_fill(~valid, -torch.inf)
    # A query without a valid candidate would be 0 / 0. nan_to_num would hide broken rewards.
    return scaled.softmax(-1).masked_fill(~valid, 0.0)


def rce_loss(logprobs: Tensor, rewards: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """Reward-weighted cross-entropy of each query: [B], -Σ_i w_i · log p(pointer_i)."""
    weights = rce_weights(rewards, valid, temperature)
    return -(weights * logprobs.masked_fill(~valid, 0.0)).sum(-1)


def contrast_loss(logprobs: Tensor, rewards: Tensor, valid: Tensor) -> Tensor:
    """-log of the expected reward among a query's own candidates, best = 1 and worst = 0: [B].

    RCE raises good pointers against the whole pool. This raises them against the pointers that were
    tried and did worse, which is what a nearly right policy still has to learn. It is 0 for a
    zero-variance group.
    """
    lowest = rewards.masked_fill(~valid, torch.inf).amin(-1, keepdim=True)
    highest = rewards.masked_fill(~valid, -torch.inf).amax(-1, keepdim=True)
    varied = (highest > lowest) & valid.any(-1, keepdim=True)
    scaled = ((rewards - lowest) / (highest - lowest)).where(valid, 0.0)
    # In a zero-variance group any finite value keeps the gradient finite, and it is masked below.
    scaled = scaled.where(varied, 1.0)
    among = logprobs.masked_fill(~valid & varied, -torch.inf)
    # log Σ p_i s_i - log Σ p_i, in logarithms throughout; the log of a score 0 is -inf.
    earned = torch.logsumexp(among + scaled.log(), -1)
    loss = torch.logsumexp(among, -1) - earned
    return loss.masked_fill(~varied.squeeze(-1), 0.0)


def zero_variance(rewards: Tensor, valid: Tensor) -> Tensor:
    """[B] bool: whether a query's valid rewards are all equal, or there are none."""
    highest = rewards.masked_fill(~valid, -torch.inf).amax(-1)
    lowest = rewards.masked_fill(~valid, torch.inf).amin(-1)
    return ~(highest > lowest)


def _moments(rewards: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation of the valid rewards: [B, 1] each."""
    count = valid.sum(-1, keepdim=True)
    mean = rewards.where(valid, 0.0).sum(-1, keepdim=True) / count.clamp(min=1)
    squares = ((rewards - mean) ** 2).where(valid, 0.0)
    variance = squares.sum(-1, keepdim=True) / (count - 1).clamp(min=1)
    return mean, variance.sqrt()


def advantages(rewards: Tensor, valid: Tensor, *, divide_by_std: bool) -> Tensor:
    """Reward minus the group's mean: [B, N], 0 where invalid, clipped to ±5.

    `divide_by_std`: divided by max(standard deviation of the group, 0.1).
    """
    mean, std = _moments(rewards, valid)
    centred = rewards - mean
    if divide_by_std:
        centred = centred / std.clamp(min=STD_FLOOR)
    return centred.clamp(-ADVANTAGE_LIMIT, ADVANTAGE_LIMIT).where(valid, 0.0)


def clipped_ratio_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantage: Tensor, valid: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """PPO's loss of each query, [B], averaged over its candidates; and which are clipped, [B, N].

    ratio = exp(logprob - old logprob); -min(ratio · A, clamp(ratio, 1 ± clip) · A).
    """
    ratio = (logprobs - old_logprobs).masked_fill(~valid, 0.0).exp()
    unclipped = ratio * advantage
    clipped = ratio.clamp(1 - clip, 1 + clip) * advantage
    losses = -torch.minimum(unclipped, clipped).where(valid, 0.0)
    count = valid.sum(-1).clamp(min=1)
    return losses.sum(-1) / count, (clipped < unclipped) & valid


def exact_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) of the next choice: [..., C] each → [...].

    Choices that are not allowed are -inf in both and add nothing.
    """
    # 0 · (-inf - -inf) is NaN, in value and gradient, so these choices are masked first.
    blocked = log_p == -torch.inf
    difference = (log_p - log_q).masked_fill(blocked, 0.0)
    return (log_p.exp() * difference).sum(-1)


def expected_reward(logprobs: Tensor, rewards: Tensor, valid: Tensor) -> Tensor:
    """Σ_i p_i r_i / Σ_i p_i over a query's candidates: [B].

    The expected reward of a policy that chooses among the judged pointers; the rewards of all
    others are unknown.
    """
    weights = logprobs.masked_fill(~valid, -torch.inf).softmax(-1).masked_fill(~valid, 0.0)
    return (weights * rewards.where(valid, 0.0)).sum(-1)
