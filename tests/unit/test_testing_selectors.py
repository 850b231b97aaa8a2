"""Selectors with one fault each: the kit finds it, and its message says what to fix."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace

import pytest
import torch

from pointer_rl.selectors import Selector, take_hypotheses
from pointer_rl.testing import SelectorTests


@dataclass(frozen=True, kw_only=True)
class Sizes:
    d_model: int
    """Size of the embeddings."""
    hidden_dim: int = 4
    """Size in which query and rows are compared."""


@dataclass(frozen=True)
class Rows:
    rows: torch.Tensor

    def of(self, rows):
        return Rows(torch.nn.functional.embedding(rows, self.rows))


@dataclass(frozen=True)
class State:
    logits: torch.Tensor
    blocked: torch.Tensor

    def select(self, parents):
        return replace(self, blocked=take_hypotheses(self.blocked, parents))


class Dots(Selector):
    """Dot products of the projected query and rows."""

    name = "mine"

    def __init__(self, config):
        super().__init__(config)
        self.query = torch.nn.Linear(config.d_model, config.hidden_dim)
        self.rows = torch.nn.Linear(config.d_model, config.hidden_dim)

    def encode_pool(self, pool):
        return Rows(self.rows(pool))

    def encode(self, query, pool, allowed=None):
        logits = self.query(query).unsqueeze(1) @ pool.rows.mT
        blocked = torch.zeros_like(logits).bool() if allowed is None else ~allowed.unsqueeze(1)
        return State(logits, blocked)

    def step_logits(self, state):
        return state.logits.expand_as(state.blocked).masked_fill(state.blocked, -torch.inf)

    def advance(self, state, rows):
        blocked = state.blocked.expand(*rows.shape, -1).scatter(-1, rows.unsqueeze(-1), True)
        return replace(state, blocked=blocked)


class Stops(Dots):
    def stop_logit(self, state):
        return state.blocked.sum(-1).float()


class Unmasked(Dots):
    def encode(self, query, pool, allowed=None):
        return super().encode(query, pool)


class Forgetful(Dots):
    def advance(self, state, rows):
        return replace(state, blocked=state.blocked.expand(*rows.shape, -1))


class HalfMasked(Dots):
    """As Lever-Plus's: chosen rows stay possible, if hardly."""

    def step_logits(self, state):
        return state.logits.expand_as(state.blocked).masked_fill(state.blocked, -100.0)


class StopsLater(Stops):
    def stop_logit(self, state):
        return super().stop_logit(state) if state.blocked.any() else None


class StopsByOption(Stops):
    def stop_logit(self, state):
        return None


class StopsInThreeDimensions(Stops):
    def stop_logit(self, state):
        return super().stop_logit(state).unsqueeze(-1)


class Noisy(Dots):
    def encode(self, query, pool, allowed=None):
        return super().encode(query + torch.randn_like(query), pool, allowed)


class Drifts(Dots):
    """The last digits of its logits change from call to call."""

    calls = 0

    def encode(self, query, pool, allowed=None):
        self.calls += 1
        return super().encode(query * (1 + self.calls * 1e-6), pool, allowed)


class Unseeded(Dots):
    def __init__(self, config):
        super().__init__(config)
        torch.nn.init.constant_(self.query.bias, random.random())


class Normalises(Dots):
    """By the batch, as batch normalisation in training mode."""

    def encode(self, query, pool, allowed=None):
        return super().encode(query - query.mean(0), pool, allowed)


class BlocksInPlace(Dots):
    def advance(self, state, rows):
        advanced = super().advance(state, rows)
        state.logits.sub_(0.1)
        return advanced


class StuckState(State):
    def select(self, parents):
        return replace(self, blocked=self.blocked[:, : parents.shape[1]])


class Stuck(Dots):
    def encode(self, query, pool, allowed=None):
        state = super().encode(query, pool, allowed)
        return StuckState(state.logits, state.blocked)


class SortedRows(Rows):
    def of(self, rows):
        return SortedRows(super().of(rows.sort().values).rows)


class SortsPools(Dots):
    def encode_pool(self, pool):
        return SortedRows(super().encode_pool(pool).rows)


class MixesHypotheses(Dots):
    """What is chosen by one hypothesis changes the logits of all."""

    def advance(self, state, rows):
        advanced = super().advance(state, rows)
        chosen = state.logits.expand(*rows.shape, -1).gather(-1, rows.unsqueeze(-1))
        counts = torch.arange(state.logits.shape[-1]) * chosen.mean(1, keepdim=True)
        return replace(advanced, logits=state.logits + counts)


class Frozen(Dots):
    def step_logits(self, state):
        return super().step_logits(state).detach()


class OtherConfig(Dots):
    def __init__(self, config):
        super().__init__(config)
        self.config = replace(config, hidden_dim=config.hidden_dim + 1)


FAULTS = [
    (Unmasked, "not allowed or already chosen has a logit: make it -inf"),
    (HalfMasked, "not allowed or already chosen has a logit"),
    (Forgetful, "not allowed or already chosen has a logit"),
    (StopsLater, "None at one step and a tensor at another: give a tensor"),
    (StopsByOption, "can_stop is True, and stop_logit says otherwise"),
    (StopsInThreeDimensions, r"not a finite tensor of shape \[3, 1\]"),
    (Noisy, "asked again it gives .*: draw nothing in evaluation mode"),
    (Drifts, "asked again it gives .*: draw nothing in evaluation mode"),
    (Unseeded, "built again it gives .*: .* initialise weights"),
    (Normalises, "alone it gives .*: keep queries independent"),
    (BlocksInPlace, "after advance or select: return a new state"),
    (Stuck, "does not give the hypotheses that parents name: index each"),
    (SortsPools, "does not score the rows in that order: index each"),
    (MixesHypotheses, "other log-probabilities than log_prob: let advance and"),
    (Frozen, "require no gradient, so it cannot be trained: compute them"),
    (OtherConfig, r"it raised InputError .*has shape \(4, 8\)"),
]


@pytest.mark.parametrize(
    ("factory", "sentence"), FAULTS, ids=[factory.__name__ for factory, _ in FAULTS]
)
def test_a_fault_is_found_and_explained(check, factory, sentence):
    first, *_ = [each for each in check(SelectorTests, factory, Sizes) if each.state == "broken"]
    assert re.search(sentence, first.message)


@pytest.mark.parametrize("factory", [Dots, Stops])
def test_what_the_faulty_ones_are_made_of_passes(check, factory):
    results = check(SelectorTests, factory, Sizes)
    assert [each for each in results if each.state == "broken"] == []
