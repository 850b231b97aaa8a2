"""Greedy, beam search, sampling and log-probability: loops over the selector's step function.

Every function starts from a state, `selector.encode(query, pool, allowed)`; several may start from
the same. Logits come in the selector's precision; softmax, sums and comparisons are float64.

All raise InputError when a query has fewer allowed rows than shots.

Shapes: B queries, K pool rows, N hypotheses a query, S shots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from pointer_rl.errors import InputError
from pointer_rl.selectors.pointer import PointerSelector, SelectorState
from pointer_rl.types import Decoded

__all__ = ["beam_search", "greedy", "log_prob", "sample"]


def greedy(selector: PointerSelector, state: SelectorState, *, shots: int) -> Decoded:
    """The likeliest row at each step: rows [B, 1, S]; of equals, the lowest row."""
    return beam_search(selector, state, shots=shots, width=1)


def beam_search(
    selector: PointerSelector, state: SelectorState, *, shots: int, width: int
) -> Decoded:
    """The `width` best pointers that beam search finds, best first: rows [B, width, S].

    Exact ties go to the beam that ranked higher so far, then to the lowest row. Where fewer than
    `width` pointers exist, the remaining log-probabilities are -inf.
    """
    if width < 1:
        raise InputError(f"beam width is {width}; it must be at least 1")
    _check_shots(state, shots)
    batch = len(state.query)
    scores_BN = torch.zeros(batch, 1, dtype=torch.float64, device=state.query.device)
    rows_BNS = torch.empty(batch, 1, 0, dtype=torch.int64, device=state.query.device)
    for step in range(shots):
        logp_BNK = _log_distribution(selector.step_logits(state))
        scores_BN, parents, chosen = _best(scores_BN.unsqueeze(-1) + logp_BNK, width)
        prefixes = rows_BNS.gather(1, parents.unsqueeze(-1).expand(-1, -1, step))
        rows_BNS = torch.cat([prefixes, chosen.unsqueeze(-1)], dim=-1)
        if step + 1 < shots:
            state = selector.advance(state.select(parents), chosen)
    missing = width - scores_BN.shape[1]
    if missing:
        scores_BN = pad(scores_BN, (0, missing), value=-math.inf)
        rows_BNS = pad(rows_BNS, (0, 0, 0, missing))
    return Decoded(rows_BNS, scores_BN.float())


def sample(
    selector: PointerSelector,
    state: SelectorState,
    *,
    shots: int,
    num_samples: int,
    rngs: Sequence[np.random.Generator],
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Decoded:
    """Independent draws: rows [B, num_samples, S], and their log-probability as drawn.

    Each step divides the logits by `temperature`, and keeps the likeliest rows up to probability
    `top_p` (Holtzman et al. 2020). Query b takes `rngs[b].random((num_samples, shots))` and
    inverts the cumulative distribution: its draws do not depend on which queries share the batch.
    """
    if num_samples < 1:
        raise InputError(f"num_samples is {num_samples}; it must be at least 1")
    if len(rngs) != len(state.query):
        raise ValueError(f"{len(rngs)} generators for {len(state.query)} queries")
    _check_distribution(temperature, top_p)
    _check_shots(state, shots)
    uniforms_BNS = torch.from_numpy(np.stack([rng.random((num_samples, shots)) for rng in rngs]))
    uniforms_BNS = uniforms_BNS.to(state.query.device)
    logprob_BN = torch.zeros_like(uniforms_BNS[..., 0])
    rows: list[Tensor] = []
    for step in range(shots):
        if step:
            state = selector.advance(state, rows[-1])
        logp_BNK = _log_distribution(selector.step_logits(state), temperature, top_p)
        rows.append(_invert(logp_BNK.exp().cumsum(-1), uniforms_BNS[..., step]))
        logprob_BN += _pick(logp_BNK, rows[-1])
    return Decoded(torch.stack(rows, dim=-1), logprob_BN.float())


def log_prob(
    selector: PointerSelector,
    state: SelectorState,
    rows: Tensor,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Tensor:
    """[B, N] log-probability of the pointers `rows` [B, N, S], differentiable.

    Under temperature 1 and top_p 1 that of the policy; otherwise that of `sample` with the same
    arguments. A pointer with a row that may not be chosen has -inf.
    """
    _check_distribution(temperature, top_p)
    shots = rows.shape[-1]
    _check_shots(state, shots)
    total_BN = torch.zeros(rows.shape[:2], dtype=torch.float64, device=state.query.device)
    for step in range(shots):
        if step:
            state = selector.advance(state, rows[..., step - 1])
        logp_BNK = _log_distribution(selector.step_logits(state), temperature, top_p)
        total_BN = total_BN + _pick(logp_BNK, rows[..., step])
    return total_BN.to(torch.promote_types(state.query.dtype, torch.float32))


def _check_shots(state: SelectorState, shots: int) -> None:
    if shots < 1:
        raise InputError(f"shots is {shots}; it must be at least 1")
    counts_B = (~state.blocked).sum(-1).flatten()
    short = (counts_B < shots).nonzero()
    if len(short):
        first = int(short[0])
        raise InputError(
            f"query {first} of the batch: {int(counts_B[first])} rows of the pool are allowed and "
            f"{shots} are wanted; lower the shots or enlarge the pool"
        )


def _check_distribution(temperature: float, top_p: float) -> None:
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature is {temperature}; it must be above 0")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p is {top_p}; it must be in (0, 1]")


def _log_distribution(logits_BNK: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """Float64 log-probabilities of the next row; the row that crosses `top_p` is kept."""
    logp_BNK = (logits_BNK.double() / temperature).log_softmax(-1)
    if top_p == 1.0:
        return logp_BNK
    probs, order = logp_BNK.detach().exp().sort(dim=-1, descending=True, stable=True)
    outside = probs.cumsum(-1) - probs >= top_p
    outside_BNK = torch.empty_like(outside).scatter_(-1, order, outside)
    return logp_BNK.masked_fill(outside_BNK, -math.inf).log_softmax(-1)


def _best(scores_BNK: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `width` highest scores, stably: their scores, hypotheses and rows, [B, ≤ width] each.

    topk decides which score just gets in but not which of its equals do: those are taken in order.
    """
    flat = scores_BNK.flatten(1)
    width = min(width, flat.shape[1])
    last = flat.topk(width).values[:, -1:]
    above, tied = flat > last, flat == last
    kept = above | (tied & (tied.cumsum(-1) <= width - above.sum(-1, keepdim=True)))
    index = kept.nonzero()[:, 1].view(-1, width)
    scores, order = flat.gather(1, index).sort(dim=-1, descending=True, stable=True)
    index = index.gather(1, order)
    pool_size = scores_BNK.shape[-1]
    return scores, index.div(pool_size, rounding_mode="floor"), index.remainder(pool_size)


def _invert(cdf_BNK: Tensor, uniforms_BM: Tensor) -> Tensor:
    """The first row whose cumulative probability exceeds u: never one of probability 0."""
    targets_BM = uniforms_BM * cdf_BNK[..., -1]
    if cdf_BNK.shape[1] == 1:
        return torch.searchsorted(cdf_BNK.squeeze(1), targets_BM, right=True)
    return torch.searchsorted(cdf_BNK, targets_BM.unsqueeze(-1), right=True).squeeze(-1)


def _pick(logp_BNK: Tensor, rows_BM: Tensor) -> Tensor:
    return logp_BNK.expand(*rows_BM.shape, -1).gather(-1, rows_BM.unsqueeze(-1)).squeeze(-1)
