"""Greedy, beam search, sampling and log-probability, for any selector.

Every function starts from a state, `selector.encode(query, pool, allowed)`; several may start from
the same state. A step chooses among C choices: the K rows and, for a selector that can stop, to
stop, which is the last. So the index NO_ROW, -1, which pads pointers, is the stop. With S shots

    log p(pointer) = Σ log p(row | rows before) + log p(stop | rows), the last term only for a
                     pointer shorter than S.

Logits have the selector's precision; softmax, sums and comparisons are in float64. Functions that
take shots raise InputError when a query has fewer allowed rows.

Shapes: B queries, K pool rows, C choices, N hypotheses of a query, S shots.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from pointer_rl.errors import InputError
from pointer_rl.selectors.selector import Selector, State
from pointer_rl.types import NO_ROW, Decoded


def greedy(selector: Selector, state: State, *, shots: int) -> Decoded:
    """The likeliest choice at each step: rows [B, 1, S]. Of equal rows, the lowest is chosen."""
    return beam_search(selector, state, shots=shots, width=1)


def beam_search(
    selector: Selector, state: State, *, shots: int, width: int, may_stop: bool = True
) -> Decoded:
    """The `width` best pointers that beam search finds, best first: rows [B, width, S].

    Exact ties go to the beam that ranked higher so far, then to the lowest row, then to the stop.
    Where fewer than `width` pointers exist, the remaining log-probabilities are -inf. Without
    `may_stop` a selector that can stop chooses among the rows alone, as one that cannot.
    """
    if width < 1:
        raise InputError(f"beam width is {width}; it must be at least 1")
    logits_BNC, stops = _first_logits(selector, state, shots, may_stop)
    batch, device = len(logits_BNC), logits_BNC.device
    scores_BN = torch.zeros(batch, 1, dtype=torch.float64, device=device)
    rows_BNS = torch.empty(batch, 1, 0, dtype=torch.int64, device=device)
    for step in range(shots):
        logp_BNC = _log_distribution(logits_BNC)
        scores_BN, parents, choices = _best(scores_BN.unsqueeze(-1) + logp_BNC, width)
        prefixes = rows_BNS.gather(1, parents.unsqueeze(-1).expand(-1, -1, step))
        chosen = _to_rows(choices, logp_BNC.shape[-1], stops)
        rows_BNS = torch.cat([prefixes, chosen.unsqueeze(-1)], dim=-1)
        if step + 1 < shots:
            state, logits_BNC = _next_logits(selector, state.select(parents), chosen, stops)
    missing = width - scores_BN.shape[1]
    if missing:
        scores_BN = pad(scores_BN, (0, missing), value=-math.inf)
        rows_BNS = pad(rows_BNS, (0, 0, 0, missing))
    return Decoded(rows_BNS, scores_BN.float())


def sample(
    selector: Selector,
    state: State,
    *,
    shots: int,
    num_samples: int,
    rngs: Sequence[np.random.Generator],
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Decoded:
    """Independent draws: rows [B, num_samples, S], and their log-probability as drawn.

    Each step divides the logits by `temperature`, and keeps the likeliest choices up to probability
    `top_p` (Holtzman et al. 2020). Query b takes `rngs[b].random((num_samples, shots))` and
    inverts the cumulative distribution: its draws do not depend on which queries share the batch.
    """
    if num_samples < 1:
        raise InputError(f"num_samples is {num_samples}; it must be at least 1")
    _check_distribution(temperature, top_p)
    logits_BNC, stops = _first_logits(selector, state, shots)
    if len(rngs) != len(logits_BNC):
        raise ValueError(f"{len(rngs)} generators for {len(logits_BNC)} queries")
    uniforms_BNS = torch.from_numpy(np.stack([rng.random((num_samples, shots)) for rng in rngs]))
    uniforms_BNS = uniforms_BNS.to(logits_BNC.device)
    logprob_BN = torch.zeros_like(uniforms_BNS[..., 0])
    rows: list[Tensor] = []
    for step in range(shots):
        logp_BNC = _log_distribution(logits_BNC, temperature, top_p)
        choices = _invert(logp_BNC.exp().cumsum(-1), uniforms_BNS[..., step])
        logprob_BN += pick(logp_BNC, choices)
        rows.append(_to_rows(choices, logp_BNC.shape[-1], stops))
        if step + 1 < shots:
            state, logits_BNC = _next_logits(selector, state, rows[-1], stops)
    return Decoded(torch.stack(rows, dim=-1), logprob_BN.float())


def log_prob(
    selector: Selector,
    state: State,
    rows: Tensor,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Tensor:
    """[B, N] log-probability of the pointers `rows` [B, N, S], padded with NO_ROW; differentiable.

    Under temperature 1 and top_p 1 that of the policy; otherwise that of `sample` with the same
    arguments. A pointer with a row that may not be chosen has -inf. For a selector that never
    stops, a shorter pointer has the log-probability of the rows that it has.
    """
    _check_distribution(temperature, top_p)
    shots = rows.shape[-1]
    _first_logits(selector, state, shots)
    total_BN = torch.zeros(rows.shape[:2], dtype=torch.float64, device=rows.device)
    dtype = torch.float32
    steps = logits_along(selector, state, rows, padded=bool((rows == NO_ROW).any()))
    for logits_BNC, chosen_BN in zip(steps, rows.unbind(-1), strict=True):
        dtype = torch.promote_types(logits_BNC.dtype, dtype)
        logp_BNC = _log_distribution(logits_BNC, temperature, top_p)
        total_BN = total_BN + pick(logp_BNC, chosen_BN)
    return total_BN.to(dtype)


def logits_along(
    selector: Selector, state: State, pointers: Tensor, *, padded: bool
) -> Iterator[Tensor]:
    """Logits of the choices at each step along `pointers` [B, N, S]: [B, N, C], at first [B, 1, C].

    A step that a pointer does not take has probability 1 on its last choice, and so adds neither
    log-probability nor divergence. That is every step after a stop and, for a selector that never
    stops, every step beyond the pointer's rows. `padded`: whether any pointer is shorter than S.
    """
    logits_BNC, stops = _choice_logits(selector, state)
    for step, rows_BN in enumerate(pointers.unbind(-1)):
        if step:
            before_BN = pointers[..., step - 1]
            state = selector.advance(state, before_BN.clamp(min=0) if padded else before_BN)
            logits_BNC = _choice_logits(selector, state)[0]
        if padded and not stops:
            logits_BNC = _only_last(logits_BNC, rows_BN == NO_ROW)
        elif padded and step:
            logits_BNC = _only_last(logits_BNC, before_BN == NO_ROW)
        yield logits_BNC


def _choice_logits(selector: Selector, state: State, may_stop: bool = True) -> tuple[Tensor, bool]:
    """[B, N, C] logits of the next choice, and whether the last one is to stop."""
    rows_BNK = selector.step_logits(state)
    stop_BN = selector.stop_logit(state) if may_stop else None
    if stop_BN is None:
        return rows_BNK, False
    hypotheses = max(rows_BNK.shape[1], stop_BN.shape[1])  # either may be shared by all
    parts = (rows_BNK.expand(-1, hypotheses, -1), stop_BN.unsqueeze(-1).expand(-1, hypotheses, -1))
    return torch.cat(parts, dim=-1), True


def _first_logits(
    selector: Selector, state: State, shots: int, may_stop: bool = True
) -> tuple[Tensor, bool]:
    """`_choice_logits` of the first step, after checking that every query has enough rows."""
    if shots < 1:
        raise InputError(f"shots is {shots}; it must be at least 1")
    logits_BNC, stops = _choice_logits(selector, state, may_stop)
    rows_BNK = logits_BNC[..., :-1] if stops else logits_BNC
    counts_B = (rows_BNK > -math.inf).sum(-1).flatten()
    short = (counts_B < shots).nonzero()
    if len(short):
        first = int(short[0])
        raise InputError(
            f"query {first} of the batch: {int(counts_B[first])} rows of the pool are allowed and "
            f"{shots} are wanted; lower the shots or enlarge the pool"
        )
    return logits_BNC, stops


def _next_logits(
    selector: Selector, state: State, rows_BN: Tensor, stops: bool
) -> tuple[State, Tensor]:
    """The state after these choices, and its logits; what has stopped can only stop again."""
    state = selector.advance(state, rows_BN.clamp(min=0))
    logits_BNC, _ = _choice_logits(selector, state, stops)
    return state, _only_last(logits_BNC, rows_BN == NO_ROW) if stops else logits_BNC


def _only_last(logits_BNC: Tensor, over_BN: Tensor) -> Tensor:
    """Give hypotheses that are over no choice but the last."""
    only_C = logits_BNC.new_full(logits_BNC.shape[-1:], -math.inf)
    only_C[-1] = 0.0
    return torch.where(over_BN.unsqueeze(-1), only_C, logits_BNC)


def _to_rows(choices: Tensor, number: int, stops: bool) -> Tensor:
    """Choices as rows of the pool; the last of `number` is NO_ROW if it is to stop."""
    return choices.where(choices < number - 1, NO_ROW) if stops else choices


def _check_distribution(temperature: float, top_p: float) -> None:
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature is {temperature}; it must be above 0")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p is {top_p}; it must be in (0, 1]")


def _log_distribution(logits_BNC: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """Float64 log-probabilities of the next choice; the one that crosses `top_p` is kept."""
    logp_BNC = (logits_BNC.double() / temperature).log_softmax(-1)
    if top_p == 1.0:
        return logp_BNC
    probs, order = logp_BNC.detach().exp().sort(dim=-1, descending=True, stable=True)
    outside = probs.cumsum(-1) - probs >= top_p
    outside_BNC = torch.empty_like(outside).scatter_(-1, order, outside)
    return logp_BNC.masked_fill(outside_BNC, -math.inf).log_softmax(-1)


def _best(scores_BNC: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """`highest` over all hypotheses: scores, hypotheses and choices, [B, ≤ width] each."""
    scores, index = highest(scores_BNC.flatten(1), width)
    number = scores_BNC.shape[-1]
    return scores, index.div(number, rounding_mode="floor"), index.remainder(number)


def highest(scores_BX: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The `number` highest scores and their indices, [B, ≤ number] each. Lower indices win ties.

    topk only finds the lowest score that is kept, because its order of ties is unspecified.
    """
    number = min(number, scores_BX.shape[1])
    last_B1 = scores_BX.topk(number).values[:, -1:]
    kept = scores_BX >= last_B1
    if int(kept.sum()) > number * len(kept):
        equal, places_B1 = scores_BX == last_B1, number - (scores_BX > last_B1).sum(-1, True)
        kept &= ~equal | (equal.cumsum(-1, dtype=torch.int32) <= places_B1)
    index = kept.nonzero()[:, 1].view(-1, number)
    scores, order = scores_BX.gather(1, index).sort(dim=-1, descending=True, stable=True)
    return scores, index.gather(1, order)


def _invert(cdf_BNC: Tensor, uniforms_BM: Tensor) -> Tensor:
    """The first choice whose cumulative probability exceeds u: never one of probability 0."""
    targets_BM = uniforms_BM * cdf_BNC[..., -1]
    if cdf_BNC.shape[1] == 1:
        return torch.searchsorted(cdf_BNC.squeeze(1), targets_BM, right=True)
    return torch.searchsorted(cdf_BNC, targets_BM.unsqueeze(-1), right=True).squeeze(-1)


def pick(logp_BNC: Tensor, choices_BM: Tensor) -> Tensor:
    """The log-probabilities [B, M] of these choices; -1 is the last."""
    choices_BM = choices_BM.where(choices_BM >= 0, logp_BNC.shape[-1] - 1)
    return logp_BNC.expand(*choices_BM.shape, -1).gather(-1, choices_BM.unsqueeze(-1)).squeeze(-1)
