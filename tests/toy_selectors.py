"""Selectors of a third party: one from scratch, which can stop, and one that extends `pointer`."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import Distribution, EntryPoint
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from pointer_rl import registry as registered
from pointer_rl.hookspecs import hookimpl
from pointer_rl.registry import registry
from pointer_rl.selectors import PointerConfig, PointerSelector, Selector, take_hypotheses


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """Options of `toy`."""

    d_model: int
    """Size of the embeddings."""
    scale: float = 1.0
    """Logits are multiplied by it."""
    widths: tuple[int, ...] = (3, 2)
    """A tuple, which JSON does not have."""
    stops: bool = True
    """Whether it may stop."""


@dataclass(frozen=True)
class ToyPool:
    """An encoded pool: keys [K, d] or [B, K, d]."""

    keys: Tensor

    def of(self, rows: Tensor) -> ToyPool:
        return ToyPool(embedding(rows, self.keys))


@dataclass(frozen=True)
class ToyState:
    """Scores of the rows [B, 1, K], blocked rows [B, N, K], number of chosen rows [B, N]."""

    scores: Tensor
    blocked: Tensor
    chosen: Tensor

    def select(self, parents: Tensor) -> ToyState:
        chosen = take_hypotheses(self.chosen.unsqueeze(-1), parents).squeeze(-1)
        return replace(self, blocked=take_hypotheses(self.blocked, parents), chosen=chosen)


class ToySelector(Selector):
    """q · W p for a row; a learned logit per number of rows for stopping."""

    name = "toy"

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.bilinear = nn.Linear(config.d_model, config.d_model, bias=False)
        self.stop = nn.Parameter(torch.linspace(-0.5, 1.0, 8))

    def encode_pool(self, pool: Tensor) -> ToyPool:
        return ToyPool(self.bilinear(pool))

    def encode(self, query: Tensor, pool: ToyPool, allowed: Tensor | None = None) -> ToyState:
        scores = self.config.scale * (pool.keys @ query.unsqueeze(-1)).squeeze(-1).unsqueeze(1)
        if allowed is None:
            allowed = torch.ones_like(scores[:, 0], dtype=torch.bool)
        counts = torch.zeros(len(query), 1, dtype=torch.int64)
        return ToyState(scores, ~allowed.unsqueeze(1), counts)

    def step_logits(self, state: ToyState) -> Tensor:
        # Rows gain with every choice, so that the history matters.
        bonus = state.chosen.unsqueeze(-1) * 0.3
        return (state.scores * (1 + bonus)).masked_fill(state.blocked, -torch.inf)

    @property
    def can_stop(self) -> bool:
        return self.config.stops

    def stop_logit(self, state: ToyState) -> Tensor | None:
        return self.stop[state.chosen] if self.config.stops else None

    def advance(self, state: ToyState, rows: Tensor) -> ToyState:
        blocked = state.blocked.expand(*rows.shape, -1).scatter(-1, rows.unsqueeze(-1), True)
        return replace(state, blocked=blocked, chosen=state.chosen.expand(rows.shape) + 1)


class StoppingSelector(PointerSelector):
    """`pointer` with a stop logit from its query vector."""

    name = "stopping"
    can_stop = True

    def __init__(self, config: PointerConfig) -> None:
        super().__init__(config)
        self.stop = nn.Linear(config.hidden_dim, 1)

    def stop_logit(self, state) -> Tensor:
        return self.stop(state.query).squeeze(-1)


def perturbed(selector, seed=0):
    """The selector, with every parameter moved, so that no bias is zero and no norm is plain."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in selector.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.3 * noise)
    return selector.eval()


class ToyDistribution(Distribution):
    def read_text(self, filename):
        return "Metadata-Version: 2.1\nName: toy-dist\nVersion: 1.0\n"

    def locate_file(self, path):
        raise AssertionError(path)


@contextmanager
def installed(**more):
    """The toy selectors as an installed plugin; `more` are other factories by name."""

    def pointer_rl_register_selectors(register):
        register("toy", ToySelector, options=ToyConfig, summary="a toy")
        register("stopping", StoppingSelector, options=PointerConfig, summary="with a stop")
        for name, factory in more.items():
            register(name, factory, options=ToyConfig, summary="wrong")

    module = ModuleType("toy_plugin_module")
    module.pointer_rl_register_selectors = hookimpl(pointer_rl_register_selectors)
    point = EntryPoint("toys", module.__name__, "pointer_rl")._for(ToyDistribution())
    points = [*registered.entry_points(group="pointer_rl"), point]
    plugins = ",".join(filter(None, (os.environ.get("POINTER_RL_PLUGINS"), "toys")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        patch.setattr("pointer_rl.registry.entry_points", lambda group: points)
        patch.setenv("POINTER_RL_PLUGINS", plugins)
        registry.cache_clear()
        yield
    registry.cache_clear()
