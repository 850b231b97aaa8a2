"""The frozen selector that generators are handed."""

import dataclasses

import numpy as np
import pytest
import torch

from pointer_rl.selectors import (
    PointerConfig,
    PointerSelector,
    SelectorPolicy,
    beam_search,
    initial_state,
    log_prob,
    sample,
)
from pointer_rl.types import Pool, QueryBatch

CONFIG = PointerConfig(
    d_model=6, hidden_dim=4, num_layers=1, num_heads=1, history="gated", dropout=0.5
)


@pytest.fixture
def selector():
    return PointerSelector.seeded(CONFIG, 0)


@pytest.fixture
def pool():
    return Pool((), torch.randn(8, 6, generator=torch.Generator().manual_seed(1)))


@pytest.fixture
def queries():
    generator = torch.Generator().manual_seed(2)
    allowed = torch.rand(3, 8, generator=generator).argsort(-1) < 5
    return QueryBatch((), torch.randn(3, 6, generator=generator), allowed, shots=2)


def rngs():
    return [np.random.default_rng(seed) for seed in range(3)]


def test_it_decodes_as_the_selector_does_without_dropout(selector, queries, pool):
    policy = SelectorPolicy(selector)
    selector.eval()
    state = initial_state(selector, queries.embeddings, pool.embeddings, queries.allowed)
    beams = beam_search(selector, state, shots=2, width=3)
    drawn = sample(selector, state, shots=2, num_samples=4, rngs=rngs(), temperature=1.3, top_p=0.9)
    for found, expected in (
        (policy.beam(queries, pool, 3), beams),
        (policy.greedy(queries, pool), beam_search(selector, state, shots=2, width=1)),
        (policy.sample(queries, pool, 4, rngs(), 1.3, 0.9), drawn),
    ):
        assert torch.equal(found.rows, expected.rows)
        assert torch.equal(found.logprobs, expected.logprobs)
    found = policy.log_prob(queries, pool, drawn.rows, 1.3, 0.9)
    expected = log_prob(selector, state, drawn.rows, temperature=1.3, top_p=0.9)
    assert torch.equal(found, expected)
    assert not found.requires_grad


def test_it_is_a_copy_that_training_leaves_alone(selector, queries, pool):
    selector.train()
    policy = SelectorPolicy(selector)
    before, name = policy.beam(queries, pool, 3), policy.hash
    with torch.no_grad():
        selector.query_proj.weight.normal_()
    after = policy.beam(
        dataclasses.replace(queries, embeddings=queries.embeddings.clone()), pool, 3
    )
    assert torch.equal(before.rows, after.rows)
    assert policy.hash == name
    assert selector.training


def test_the_hash_is_of_the_configuration_and_the_weights(selector):
    name = SelectorPolicy(selector).hash
    assert name == SelectorPolicy(PointerSelector.seeded(CONFIG, 0)).hash
    assert name != SelectorPolicy(PointerSelector.seeded(CONFIG, 1)).hash
    hotter = PointerSelector.seeded(dataclasses.replace(CONFIG, temperature=0.2), 0)
    assert name != SelectorPolicy(hotter).hash
    stopping = PointerSelector.seeded(dataclasses.replace(CONFIG, stop=True), 0)
    assert name != SelectorPolicy(stopping).hash


def test_queries_are_encoded_once_and_anew_when_anything_changes(selector, queries, pool):
    encoded, pools = [], []
    selector.query_proj.register_forward_hook(lambda *_: encoded.append(1))
    selector.cand_proj.register_forward_hook(lambda *_: pools.append(1))
    policy = SelectorPolicy(selector)
    policy.beam(queries, pool, 3)
    policy.sample(queries, pool, 2, rngs())
    kept = policy.beam(queries, pool, 3)
    assert len(encoded) == 1
    queries = dataclasses.replace(queries, allowed=~queries.allowed)
    fewer = policy.beam(dataclasses.replace(queries, shots=1), pool, 3)
    assert len(encoded) == 2
    queries = dataclasses.replace(queries, embeddings=-queries.embeddings)
    policy.beam(dataclasses.replace(queries, shots=1), pool, 3)
    assert (len(encoded), len(pools)) == (3, 1)
    policy.beam(dataclasses.replace(queries, shots=1), Pool((), pool.embeddings.flip(0)), 3)
    assert (len(encoded), len(pools)) == (4, 2)
    assert not set(kept.rows[0, 0].tolist()) & set(fewer.rows[0, 0].tolist())


def test_embeddings_of_other_precision_are_taken(selector, queries, pool):
    policy = SelectorPolicy(selector)
    halved = dataclasses.replace(queries, embeddings=queries.embeddings.half())
    exact = dataclasses.replace(queries, embeddings=halved.embeddings.float())
    half_pool, exact_pool = (
        Pool((), pool.embeddings.half()),
        Pool((), pool.embeddings.half().float()),
    )
    assert torch.equal(
        policy.beam(halved, half_pool, 2).logprobs, policy.beam(exact, exact_pool, 2).logprobs
    )
