"""Selectors that can stop, against the enumeration of every pointer in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_selectors import ToyConfig, ToySelector, perturbed

import pointer_rl
from pointer_rl.selectors import (
    PointerConfig,
    PointerSelector,
    SelectorPolicy,
    SequentialConfig,
    SequentialSelector,
    beam_search,
    greedy,
    initial_state,
    log_prob,
    sample,
)
from pointer_rl.testing import example
from pointer_rl.types import NO_ROW, Pool, QueryBatch
from pointer_rl_standard.generators import BeamGenerator, ProbeGenerator, SampleGenerator
from pointer_rl_standard.options import BeamOptions, ProbeOptions, SampleOptions


def make(kind: str, seed: int = 0):
    if kind == "toy":
        return ToySelector.seeded(ToyConfig(d_model=6), seed).eval()
    sizes = {"d_model": 6, "hidden_dim": 4, "num_layers": 1, "num_heads": 2, "temperature": 0.5}
    if kind == "sequential":
        return perturbed(SequentialSelector.seeded(SequentialConfig(**sizes, stop=True), seed))
    config = PointerConfig(**sizes, history=kind, stop=True)
    return perturbed(PointerSelector.seeded(config, seed))


KINDS = ("toy", "static", "gated", "sequential")


class World:
    """Queries and a pool for a selector that can stop, in float64."""

    def __init__(self, kind="gated", seed=0, queries=3, rows=4, own=False, masked=False):
        generator = torch.Generator().manual_seed(seed)
        self.selector = make(kind, seed).double()
        self.query = torch.randn(queries, 6, generator=generator).double()
        shape = (queries, rows, 6) if own else (rows, 6)
        self.pool = torch.randn(shape, generator=generator).double()
        self.allowed = torch.ones(queries, rows, dtype=torch.bool)
        if masked:
            ranks = torch.rand(queries, rows, generator=generator).argsort(-1)
            self.allowed = ranks < 2 + torch.arange(queries).unsqueeze(-1) % (rows - 1)

    @property
    def state(self):
        return initial_state(self.selector, self.query, self.pool, self.allowed)

    def rngs(self):
        return [np.random.default_rng([7, b]) for b in range(len(self.query))]

    @torch.no_grad()
    def step(self, b, chosen, temperature, top_p):
        """{row or NO_ROW: probability} of one query's next choice, by the definitions."""
        pool = self.pool[b] if self.pool.dim() == 3 else self.pool
        state = initial_state(self.selector, self.query[b : b + 1], pool, self.allowed[b : b + 1])
        for row in chosen:
            state = self.selector.advance(state, torch.tensor([[row]]))
        logits = dict(enumerate(self.selector.step_logits(state)[0, 0].tolist()))
        logits[NO_ROW] = float(self.selector.stop_logit(state).flatten()[0])
        weights = {choice: math.exp(each / temperature) for choice, each in logits.items()}
        probs = {choice: each / sum(weights.values()) for choice, each in weights.items() if each}
        nucleus, mass = {}, 0.0
        for choice in sorted(probs, key=lambda choice: -probs[choice]):
            if mass < top_p:
                nucleus[choice] = probs[choice]
                mass += probs[choice]
        return {choice: each / mass for choice, each in nucleus.items()}

    def all_pointers(self, b, shots, temperature=1.0, top_p=1.0):
        """{pointer: log-probability} of every pointer of 0 to `shots` rows."""
        found, open_ = {}, {(): 0.0}
        for _ in range(shots):
            grown = {}
            for pointer, score in open_.items():
                for choice, probability in self.step(b, pointer, temperature, top_p).items():
                    if choice == NO_ROW:
                        found[pointer] = score + math.log(probability)
                    else:
                        grown[(*pointer, choice)] = score + math.log(probability)
            open_ = grown
        return {**found, **open_}


worlds = st.builds(
    World,
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 1000),
    queries=st.integers(1, 3),
    rows=st.integers(3, 5),
    own=st.booleans(),
    masked=st.booleans(),
)


def padded(pointer, shots):
    return [*pointer, *[NO_ROW] * (shots - len(pointer))]


@settings(max_examples=20)
@given(
    world=worlds,
    shots=st.integers(1, 2),
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
    top_p=st.sampled_from([0.7, 1.0]),
)
def test_log_prob_is_that_of_the_enumeration_and_sums_to_one(world, shots, temperature, top_p):
    size = world.allowed.shape[1]
    pointers = [
        pointer for n in range(shots + 1) for pointer in itertools.permutations(range(size), n)
    ]
    rows = torch.tensor([padded(pointer, shots) for pointer in pointers])
    found = log_prob(
        world.selector,
        world.state,
        rows.expand(len(world.query), -1, -1),
        temperature=temperature,
        top_p=top_p,
    ).detach()
    for b in range(len(world.query)):
        every = world.all_pointers(b, shots, temperature, top_p)
        expected = [every.get(pointer, -math.inf) for pointer in pointers]
        assert found[b].tolist() == pytest.approx(expected, abs=1e-9)
        assert float(found[b].exp().sum()) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shots", [1, 2, 3])
def test_a_wide_beam_finds_every_pointer_in_order(kind, shots):
    world = World(kind, seed=3, masked=shots < 3)
    found = beam_search(world.selector, world.state, shots=shots, width=80)
    for b in range(3):
        every = sorted(world.all_pointers(b, shots).items(), key=lambda each: -each[1])
        count = len(every)
        assert [pointer for pointer, _ in every] == found.pointers()[b][:count]
        scores = found.logprobs[b, :count].tolist()
        assert scores == pytest.approx([score for _, score in every], abs=1e-6)
        assert found.logprobs[b, count:].eq(-math.inf).all()


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_takes_the_likeliest_choice_each_time(kind):
    world, lengths = World(kind, seed=1, queries=12, rows=5), set()
    found = greedy(world.selector, world.state, shots=3)
    for b, (pointer,) in enumerate(found.pointers()):
        expected, score = (), 0.0
        while len(expected) < 3:
            probs = world.step(b, expected, 1.0, 1.0)
            best = max(probs, key=probs.get)
            score += math.log(probs[best])
            if best == NO_ROW:
                break
            expected = (*expected, best)
        assert pointer == expected
        assert found.logprobs[b].tolist() == pytest.approx([score], abs=1e-6)
        lengths.add(len(pointer))
    assert len(lengths) > 1, "the world is to have pointers of different lengths"


@pytest.mark.parametrize("kind", ["toy", "gated"])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (1.3, 0.9)])
def test_samples_are_as_frequent_as_they_are_probable(kind, temperature, top_p):
    world, number = World(kind, seed=5, queries=2, rows=3), 20_000
    distribution = {"temperature": temperature, "top_p": top_p}
    drawn = sample(
        world.selector,
        world.state,
        shots=2,
        num_samples=number,
        rngs=world.rngs(),
        **distribution,
    )
    again = log_prob(world.selector, world.state, drawn.rows, **distribution)
    torch.testing.assert_close(drawn.logprobs, again.float(), rtol=0, atol=1e-5)
    for b, pointers in enumerate(drawn.pointers()):
        every = world.all_pointers(b, 2, **distribution)
        assert set(pointers) <= every.keys()
        for pointer, score in every.items():
            probability = math.exp(score)
            deviation = math.sqrt(number * probability * (1 - probability))
            seen = pointers.count(pointer)
            assert abs(seen - number * probability) <= 4.5 * deviation + 1e-6


def test_log_prob_has_the_right_gradient():
    world = World(seed=2)
    pointers = [(), (1,), (0, 2), (3, 1, 2)]
    rows = torch.tensor([padded(pointer, 3) for pointer in pointers]).expand(3, -1, -1)

    def total(query, pool):
        state = initial_state(world.selector, query, pool)
        return log_prob(world.selector, state, rows, temperature=1.3)

    inputs = (world.query.requires_grad_(), world.pool.requires_grad_())
    assert torch.autograd.gradcheck(total, inputs)


def test_gradients_are_finite_where_a_stopped_pointer_has_used_up_the_pool():
    """Row 0 stands in for the choices after a stop, and may be the last row that is left."""
    world = World(queries=1, rows=2)
    rows = torch.tensor([[[1, NO_ROW], [NO_ROW, NO_ROW]]])
    log_prob(world.selector, world.state, rows).sum().backward()
    assert all(each.grad.isfinite().all() for each in world.selector.parameters())


def test_what_follows_a_stop_has_no_probability():
    world = World(queries=1)
    rows = torch.tensor([[[1, NO_ROW, 2]]])
    assert log_prob(world.selector, world.state, rows).eq(-math.inf).all()


def test_a_selector_that_never_stops_scores_the_rows_that_a_pointer_has():
    selector = ToySelector.seeded(ToyConfig(d_model=6, stops=False), 0).double()
    world = World()
    state = initial_state(selector, world.query, world.pool)
    rows = torch.tensor([[2, 1, 0], [2, 1, NO_ROW], [2, NO_ROW, NO_ROW], [NO_ROW] * 3])
    found = log_prob(selector, state, rows.expand(3, -1, -1))
    two = log_prob(selector, state, rows[:1, :2].expand(3, -1, -1))
    one = log_prob(selector, state, rows[:1, :1].expand(3, -1, -1))
    torch.testing.assert_close(found[:, 1], two[:, 0])
    torch.testing.assert_close(found[:, 2], one[:, 0])
    assert found[:, 3].eq(0).all()


# --- through the policy ----------------------------------------------------------------------


def test_generators_propose_pointers_without_padding():
    policy = SelectorPolicy(make("gated", seed=1))
    generator = torch.Generator().manual_seed(0)
    allowed = torch.ones(5, 6, dtype=torch.bool)
    queries = QueryBatch(
        [example(query) for query in range(5)],
        torch.randn(5, 6, generator=generator),
        allowed,
        shots=3,
    )
    pool = Pool([example(row) for row in range(6)], torch.randn(6, 6, generator=generator))
    rngs = [np.random.default_rng(query) for query in range(5)]
    lengths = set()
    for each in (
        BeamGenerator(BeamOptions(width=9)),
        SampleGenerator(SampleOptions(temperatures=(1.0, 2.0), num_samples=8)),
    ):
        for b, candidates in enumerate(each.propose(policy, queries, pool, rngs)):
            for candidate in candidates:
                row = torch.tensor([[padded(candidate.pointer, 3)]]).expand(5, -1, -1)
                temperature = candidate.temperature or 1.0
                expected = policy.log_prob(queries, pool, row, temperature)[b, 0]
                assert candidate.logprob_score == pytest.approx(float(expected), abs=1e-5)
                lengths.add(len(candidate.pointer))
    assert lengths == {0, 1, 2, 3}
    for candidates in ProbeGenerator(ProbeOptions(num=5)).propose(policy, queries, pool, rngs):
        assert {len(candidate.pointer) for candidate in candidates} == {3}


def test_the_guides_functions_take_it():
    selector = make("toy", seed=1)
    query, pool = torch.linspace(-1, 1, 6), torch.linspace(1, -1, 30).reshape(5, 6).sin()
    assert pointer_rl.compute_step_logits(selector, query, pool, [2]).shape == (5,)
    lengths = set()
    for seed in range(30):
        rows, logprob = pointer_rl.sample_pointer_with_temperature(
            selector, query, pool, shots=2, rng=np.random.default_rng(seed)
        )
        state = initial_state(selector, query[None], pool)
        expected = log_prob(selector, state, torch.tensor([[padded(rows, 2)]])).detach()
        assert logprob == pytest.approx(float(expected), abs=1e-5)
        lengths.add(len(rows))
    assert lengths == {0, 1, 2}
