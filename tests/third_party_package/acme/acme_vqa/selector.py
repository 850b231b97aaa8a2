from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from pointer_rl.selectors import Selector, take_hypotheses


@dataclass(frozen=True)
class EncodedPool:
    rows: Tensor

    def of(self, rows):
        return EncodedPool(embedding(rows, self.rows))


@dataclass(frozen=True)
class State:
    logits: Tensor
    """[B, 1, K]"""
    blocked: Tensor
    """[B, N, K] bool"""
    chosen: Tensor
    """[B, N, 1]: how many rows were chosen"""

    def select(self, parents):
        return State(
            self.logits,
            take_hypotheses(self.blocked, parents),
            take_hypotheses(self.chosen, parents),
        )


class StoppingSelector(Selector):
    """Dot products with a projected query; the stop has a logit per row chosen so far."""

    name = "acme"

    def __init__(self, config):
        super().__init__(config)
        self.query = nn.Linear(config.d_model, config.d_model, bias=False)
        self.stop = nn.Parameter(torch.zeros(2))

    def encode_pool(self, pool):
        return EncodedPool(pool)

    def encode(self, query, pool, allowed=None):
        logits = self.query(query).unsqueeze(1) @ pool.rows.mT
        blocked = torch.zeros_like(logits, dtype=torch.bool)
        if allowed is not None:
            blocked = ~allowed.unsqueeze(1)
        return State(logits, blocked, torch.zeros_like(logits[..., :1]))

    def step_logits(self, state):
        return state.logits.expand_as(state.blocked).masked_fill(state.blocked, -math.inf)

    def stop_logit(self, state):
        return (self.stop[0] + self.stop[1] * state.chosen).squeeze(-1)

    def advance(self, state, rows):
        blocked = state.blocked.expand(*rows.shape, -1).scatter(-1, rows.unsqueeze(-1), True)
        return State(state.logits, blocked, state.chosen.expand(*rows.shape, -1) + 1)
