"""The pointer selector: cross-attention over the pool, then one cosine a step.

One query token x attends to the pool in L layers, x = LayerNorm(x + MHA(x, pool, pool)); query
and pool rows are then projected to unit vectors, and a step's logits are cosine / temperature.
`history="static"` scores every step with the same query vector s; `history="gated"` moves it to
what was chosen, g = sigmoid(G [s; c]), s = unit(g * s + (1 - g) * c).

Parameter names and arithmetic are those of Lever-Plus's PointerSelectorV2, so that its
checkpoints load. Two things are computed otherwise, with equal results: chosen rows are -inf
instead of -100, and keys and values of the pool are never formed. With a single query token

    q · (W_k p + b_k) = (W_kᵀ q) · p + const,     Σ a_k (W_v p_k + b_v) = W_v (Σ a_k p_k) + b_v,

so a layer costs O(K·H) a query and head where projecting the pool costs O(K·H²).

Shapes: B queries, K pool rows, N hypotheses (beams, samples, members of a group) a query,
D embedding size, H hidden size, A attention heads, E = H / A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, normalize

from pointer_rl.errors import InputError

__all__ = ["EncodedPool", "PointerSelector", "SelectorConfig", "SelectorState"]


@dataclass(frozen=True, kw_only=True)
class SelectorConfig:
    """Sizes of a pointer selector and how it remembers what was chosen."""

    d_model: int
    """Size of the embeddings that come in."""
    hidden_dim: int
    """Size that it works in; embeddings of another size are projected to it."""
    num_layers: int
    """Cross-attention layers."""
    num_heads: int
    """Attention heads of each layer; divides hidden_dim."""
    history: Literal["static", "gated"]
    """Whether the query vector stays as it is, or is updated with each chosen row."""
    temperature: float = 0.1
    """By which the cosine is divided to give a logit."""
    dropout: float = 0.0
    """In training, on what goes into the query and candidate projections."""

    def __post_init__(self) -> None:
        for name in ("d_model", "hidden_dim", "num_layers", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.hidden_dim % self.num_heads:
            raise ValueError(
                f"hidden_dim {self.hidden_dim} is no multiple of {self.num_heads} heads"
            )
        if self.history not in ("static", "gated"):
            raise ValueError(f"history is {self.history!r}; it must be static or gated")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be in [0, 1)")


@dataclass(frozen=True)
class EncodedPool:
    """What of a pool does not depend on the query: computed once for any number of queries."""

    inputs: Tensor
    """[K, H] or [B, K, H]: what a query attends to"""
    candidates: Tensor
    """[K, H] or [B, K, H], unit vectors: what it is compared with"""

    def of(self, rows: Tensor) -> EncodedPool:
        """For each query a pool of its own, `rows` [B, M] of this one of K rows: [B, M, H]."""
        return EncodedPool(embedding(rows, self.inputs), embedding(rows, self.candidates))


@dataclass(frozen=True)
class SelectorState:
    """Where each hypothesis stands. Immutable: what starts from the same state may share it.

    A dimension N of size 1 stands for all hypotheses.
    """

    candidates: Tensor
    """[K, H] or [B, K, H], unit vectors"""
    query: Tensor
    """[B, N, H], unit vectors"""
    blocked: Tensor
    """[B, N, K] bool: rows that are not allowed or already chosen"""

    def select(self, parents: Tensor) -> SelectorState:
        """The state whose hypothesis n is this one's hypothesis `parents[b, n]`."""
        return SelectorState(
            self.candidates, _take(self.query, parents), _take(self.blocked, parents)
        )


def _take(values_BNX: Tensor, parents_BM: Tensor) -> Tensor:
    if values_BNX.shape[1] == 1:
        return values_BNX
    return values_BNX.gather(1, parents_BM.unsqueeze(-1).expand(-1, -1, values_BNX.shape[2]))


class CrossAttention(nn.Module):
    """nn.MultiheadAttention (its parameters, initialised alike) for one query token."""

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


class PointerSelector(nn.Module):
    """p(next row | query, pool, rows chosen so far): `encode`, then `step_logits` and `advance`.

    These three are the only place where a logit is computed: decoding, training and evaluation
    are loops over them.
    """

    def __init__(self, config: SelectorConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden_dim
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

    @classmethod
    def seeded(cls, config: SelectorConfig, seed: int) -> PointerSelector:
        """A fresh selector decided by the seed alone; the global random state stays as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return cls(config)

    def encode_pool(self, pool: Tensor) -> EncodedPool:
        """The query's counterpart, from [K, d] (shared by all queries) or [B, K, d].

        Raises InputError as `encode` does.
        """
        self.check(pool, "pool")
        return self.project(pool)

    def encode(
        self, query: Tensor, pool: Tensor | EncodedPool, allowed: Tensor | None = None
    ) -> SelectorState:
        """The state before the first choice, with one hypothesis a query.

        `query` is [B, d]; `pool` what `encode_pool` made, or takes: [K, d] or [B, K, d];
        `allowed` [B, K] bool says which rows may be chosen (default: all). Attention sees the
        whole pool: `allowed` restricts the choice, not the view.
        Raises InputError for embeddings of another size or with values that are not finite.
        """
        self.check(query, "query")
        return self.attend(
            query, self.encode_pool(pool) if isinstance(pool, Tensor) else pool, allowed
        )

    def project(self, pool: Tensor) -> EncodedPool:
        """`encode_pool`, of embeddings that are known to be sound: they are not looked at."""
        inputs = self.input_proj(pool)
        return EncodedPool(inputs, normalize(self.cand_proj(self.dropout(inputs)), dim=-1))

    def attend(
        self, query: Tensor, pool: EncodedPool, allowed: Tensor | None = None
    ) -> SelectorState:
        """`encode`, of embeddings that are known to be sound: they are not looked at."""
        x_BH = self.input_proj(query)
        for attention, norm in zip(self.cross_attn_layers, self.attn_norms, strict=True):
            x_BH = norm(x_BH + attention(x_BH, pool.inputs))
        query_BH = normalize(self.query_proj(self.dropout(x_BH)), dim=-1)
        if allowed is None:
            allowed = query.new_ones(len(query), pool.candidates.shape[-2], dtype=torch.bool)
        return SelectorState(pool.candidates, query_BH.unsqueeze(1), ~allowed.unsqueeze(1))

    def step_logits(self, state: SelectorState) -> Tensor:
        """[B, N, K] logits of the next row; -inf for rows that may not be chosen."""
        cosine_BNK = state.query @ state.candidates.mT
        return (cosine_BNK / self.config.temperature).masked_fill(state.blocked, -math.inf)

    def advance(self, state: SelectorState, rows: Tensor) -> SelectorState:
        """The state after hypothesis n of query b has chosen `rows[b, n]`."""
        blocked_BNK = state.blocked.expand(*rows.shape, -1).scatter(-1, rows.unsqueeze(-1), True)
        if self.config.history == "static":
            return SelectorState(state.candidates, state.query, blocked_BNK)
        chosen_BNH = _rows_of(state.candidates, rows)
        # The gate in two halves. That of the state is computed once for hypotheses that share it;
        # that of the chosen rows once a pool row, where the pool is the smaller of the two.
        weight_state, weight_chosen = self.query_update_gate.weight.chunk(2, dim=1)
        if state.candidates.dim() == 2 and len(state.candidates) < rows.numel():
            gate_BNH = embedding(rows, linear(state.candidates, weight_chosen))
        else:
            gate_BNH = linear(chosen_BNH, weight_chosen)
        gate_BNH = gate_BNH + linear(state.query, weight_state, self.query_update_gate.bias)
        gate_BNH = gate_BNH.sigmoid()
        query_BNH = normalize(torch.lerp(chosen_BNH, state.query, gate_BNH), dim=-1)
        return SelectorState(state.candidates, query_BNH, blocked_BNK)

    def check(self, embeddings: Tensor, name: str) -> None:
        """Raise InputError for embeddings of another size or with values that are not finite."""
        if embeddings.shape[-1] != self.config.d_model:
            raise InputError(
                f"{name} embeddings have {embeddings.shape[-1]} values a row, the selector takes "
                f"{self.config.d_model}: encode with the encoder that it was trained with"
            )
        if embeddings.numel() and not torch.stack(embeddings.aminmax()).isfinite().all():
            where = (~embeddings.isfinite()).nonzero()[0, :-1].tolist()
            raise InputError(
                f"{name} embeddings, row {', '.join(map(str, where))}: "
                "not all values are finite; encode it again"
            )


def _rows_of(candidates: Tensor, rows_BN: Tensor) -> Tensor:
    # Not gather: embedding's gradient is faster on a CPU, and on a GPU the same every time.
    if candidates.dim() == 3:
        batch, size, _ = candidates.shape
        first_B1 = torch.arange(0, batch * size, size, device=rows_BN.device).unsqueeze(1)
        candidates, rows_BN = candidates.flatten(0, 1), rows_BN + first_B1
    return embedding(rows_BN, candidates)
