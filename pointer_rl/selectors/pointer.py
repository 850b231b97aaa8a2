"""The pointer selector: cross-attention over the pool, then one cosine per step.

A single query token x attends to the pool in L layers, x = LayerNorm(x + MHA(x, pool, pool)). Query
and pool rows are then projected to unit vectors, and the logits of a step are cosine / temperature.
`history="static"` scores every step with the same query vector s. `history="gated"` moves it
towards the chosen row c: g = sigmoid(G [s; c]), s = unit(g * s + (1 - g) * c).

With `stop`, the probability to stop after n rows is the sigmoid of (u + n v) / temperature, where u
and v are linear in the query vector. The logit of stopping is that number plus the log-sum-exp of
the rows' logits, so it depends neither on the size of the pool nor on how sharp the choice is.

Parameter names and arithmetic are those of Lever-Plus's PointerSelectorV2, so that its checkpoints
load. Two things are computed differently, with equal results: logits of chosen rows are -inf
instead of -100, and the keys and values of the pool are never formed. With a single query token

    q · (W_k p + b_k) = (W_kᵀ q) · p + const,     Σ a_k (W_v p_k + b_v) = W_v (Σ a_k p_k) + b_v,

so a layer costs O(K·H) per query and head, where projecting the pool would cost O(K·H²).

Shapes: B queries, K pool rows, N hypotheses of a query, D embedding size, H hidden size,
A attention heads, E = H / A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, normalize
from torch.utils.checkpoint import checkpoint

from pointer_rl.selectors.options import PointerConfig
from pointer_rl.selectors.selector import Selector, take_hypotheses

_TOGETHER = 2**16
"""Most rows of a pool to encode at once."""
FIRST_STOP = 0.05
"""Probability of an untrained selector to stop, at each step. Rare enough that nearly all samples
show demonstrations, and frequent enough that some show none."""


@dataclass(frozen=True)
class PointerPool:
    """An encoded pool."""

    inputs: Tensor
    """[K, H] or [B, K, H]: what a query attends to"""
    candidates: Tensor
    """[K, H] or [B, K, H], unit vectors: what a query is compared with"""

    def of(self, rows: Tensor) -> PointerPool:
        """Each query's own pool, [B, M, H]: `rows` [B, M] of this one of K rows."""
        return PointerPool(embedding(rows, self.inputs), embedding(rows, self.candidates))


@dataclass(frozen=True)
class PointerState:
    """Where each hypothesis stands."""

    candidates: Tensor
    """[K, H] or [B, K, H], unit vectors"""
    query: Tensor
    """[B, N, H], unit vectors"""
    blocked: Tensor
    """[B, N, K] bool: rows that are not allowed or already chosen"""
    chosen: int = 0
    """Number of rows chosen so far, the same for all hypotheses"""

    def select(self, parents: Tensor) -> Self:
        """The state whose hypothesis n of query b is this one's hypothesis `parents[b, n]`."""
        return replace(
            self,
            query=take_hypotheses(self.query, parents),
            blocked=take_hypotheses(self.blocked, parents),
        )


class CrossAttention(nn.Module):
    """nn.MultiheadAttention for a single query token: same parameters, same initialisation."""

    def __init__(self, hidden_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden_dim, hidden_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden_dim))
        self.out_proj = nn.Linear(hidden_dim, hidden_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x_BH: Tensor, pool: Tensor) -> Tensor:
        """[B, H] attending to [K, H] or [B, K, H] → [B, H]. The key bias cancels in the softmax."""
        weight_q, weight_k, weight_v = self.in_proj_weight.chunk(3)
        bias_q, _, bias_v = self.in_proj_bias.chunk(3)
        batch, hidden = x_BH.shape
        heads = (self.num_heads, hidden // self.num_heads)
        q_BAE = linear(x_BH, weight_q, bias_q).view(batch, *heads)
        q_BAH = torch.einsum("bae,aeh->bah", q_BAE, weight_k.view(*heads, hidden))
        weights_BAK = (q_BAH @ pool.mT / math.sqrt(heads[1])).softmax(-1)
        v_BAE = torch.einsum("bah,aeh->bae", weights_BAK @ pool, weight_v.view(*heads, hidden))
        out: Tensor = self.out_proj(v_BAE.reshape(batch, hidden) + bias_v)
        return out


class PointerSelector(Selector):
    """Scores rows by cosine after cross-attention."""

    name = "pointer"
    config: PointerConfig

    def __init__(self, config: PointerConfig) -> None:
        super().__init__(config)
        hidden = config.hidden_dim
        assert hidden is not None
        self.input_proj: nn.Module = nn.Identity()
        if config.d_model != hidden:
            self.input_proj = nn.Linear(config.d_model, hidden, bias=False)
            nn.init.xavier_uniform_(self.input_proj.weight)
        layers = range(config.num_layers)
        self.cross_attn_layers = nn.ModuleList(
            CrossAttention(hidden, config.num_heads) for _ in layers
        )
        self.attn_norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in layers)
        self.dropout = nn.Dropout(config.dropout)
        self.query_proj = nn.Linear(hidden, hidden, bias=False)
        self.cand_proj = nn.Linear(hidden, hidden, bias=False)
        with torch.no_grad():
            for projection in (self.query_proj, self.cand_proj):
                projection.weight.normal_(std=0.01).add_(torch.eye(hidden))
        if config.history == "gated":
            self.query_update_gate = nn.Linear(2 * hidden, hidden)
            nn.init.xavier_uniform_(self.query_update_gate.weight)
            nn.init.zeros_(self.query_update_gate.bias)
        if config.stop:
            # skip_init draws no numbers: the other weights are those of a selector without stop.
            self.stop = nn.utils.skip_init(nn.Linear, hidden, 2)  # type: ignore[no-untyped-call]
            nn.init.zeros_(self.stop.weight)
            odds = FIRST_STOP / (1 - FIRST_STOP)
            with torch.no_grad():
                self.stop.bias.copy_(torch.tensor([config.temperature * math.log(odds), 0.0]))

    def encode_pool(self, pool: Tensor) -> PointerPool:
        """Encode a pool [K, d] that all queries share, or a pool of each query [B, K, d].

        A large shared pool is encoded in parts with activation checkpointing, to save memory.
        """
        inputs = self.input_proj(pool)
        if len(inputs) <= _TOGETHER:
            return PointerPool(inputs, self._unit_vectors(inputs))
        parts = (
            checkpoint(self._unit_vectors, part, use_reentrant=False)
            for part in inputs.split(_TOGETHER)
        )
        return PointerPool(inputs, torch.cat(list(parts)))

    def _unit_vectors(self, inputs: Tensor) -> Tensor:
        return normalize(self.cand_proj(self.dropout(inputs)), dim=-1)

    def encode(
        self, query: Tensor, pool: PointerPool, allowed: Tensor | None = None
    ) -> PointerState:
        """The state before the first choice.

        Attention sees the whole pool: `allowed` restricts the choice, not the view.
        """
        x_BH = self.input_proj(query)
        for attention, norm in zip(self.cross_attn_layers, self.attn_norms, strict=True):
            x_BH = norm(x_BH + attention(x_BH, pool.inputs))
        if allowed is None:
            allowed = query.new_ones(len(query), pool.candidates.shape[-2], dtype=torch.bool)
        return self._first_state(pool.candidates, x_BH.unsqueeze(1), ~allowed.unsqueeze(1))

    def _first_state(self, candidates: Tensor, x_B1H: Tensor, blocked_B1K: Tensor) -> PointerState:
        return PointerState(candidates, self._query_vector(x_B1H), blocked_B1K)

    def _query_vector(self, x_BNH: Tensor) -> Tensor:
        return normalize(self.query_proj(self.dropout(x_BNH)), dim=-1)

    def step_logits(self, state: PointerState) -> Tensor:
        """[B, N, K] logits of the next row; -inf for rows not allowed or already chosen."""
        cosine_BNK = state.query @ state.candidates.mT
        return (cosine_BNK / self.config.temperature).masked_fill(state.blocked, -math.inf)

    @property
    def can_stop(self) -> bool:
        """Whether it was made with `stop`."""
        return self.config.stop

    def stop_logit(self, state: PointerState) -> Tensor | None:
        """[B, N] logits of choosing no further row; None without `stop`."""
        if not self.config.stop:
            return None
        # Where no row is left, any finite logit means to stop.
        over_BN1 = state.blocked.all(-1, keepdim=True)
        rows_BN = self.step_logits(state).masked_fill(over_BN1, 0.0).logsumexp(-1)
        first_BN, by_row_BN = self.stop(state.query).unbind(-1)
        odds_BN: Tensor = (first_BN + state.chosen * by_row_BN) / self.config.temperature
        return rows_BN + odds_BN

    def advance(self, state: PointerState, rows: Tensor) -> PointerState:
        """The state after hypothesis n of query b has chosen `rows[b, n]`."""
        blocked_BNK = state.blocked.expand(*rows.shape, -1).scatter(-1, rows.unsqueeze(-1), True)
        state = replace(state, blocked=blocked_BNK, chosen=state.chosen + 1)
        if self.config.history == "static":
            return state
        gate_BNH = linear_of_pair(self.query_update_gate, state.query, state.candidates, rows)
        chosen_BNH = _rows_of(state.candidates, rows)
        query_BNH = normalize(torch.lerp(chosen_BNH, state.query, gate_BNH.sigmoid()), dim=-1)
        return replace(state, query=query_BNH)


def linear_of_pair(layer: nn.Linear, x_BNH: Tensor, candidates: Tensor, rows_BN: Tensor) -> Tensor:
    """layer([x; chosen row]), for the chosen rows [B, N] of the candidates [K, H] or [B, K, H].

    It is computed in two halves: that of x once for hypotheses that share it, and that of the rows
    once per pool row where the pool is the smaller.
    """
    weight_x, weight_chosen = layer.weight.chunk(2, dim=1)
    if candidates.dim() == 2 and len(candidates) < rows_BN.numel():
        of_rows = embedding(rows_BN, linear(candidates, weight_chosen))
    else:
        of_rows = linear(_rows_of(candidates, rows_BN), weight_chosen)
    return of_rows + linear(x_BNH, weight_x, layer.bias)


def _rows_of(candidates: Tensor, rows_BN: Tensor) -> Tensor:
    # Not gather: embedding's gradient is faster on a CPU, and deterministic on a GPU.
    if candidates.dim() == 3:
        batch, size, _ = candidates.shape
        first_B1 = torch.arange(0, batch * size, size, device=rows_BN.device).unsqueeze(1)
        candidates, rows_BN = candidates.flatten(0, 1), rows_BN + first_B1
    return embedding(rows_BN, candidates)
