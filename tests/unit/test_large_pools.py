"""What a large pool has computed in parts equals what is computed whole."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_worlds import learner_for, ragged_groups, selector_for

from pointer_rl.selectors import PointerConfig, PointerSelector, SelectorPolicy, highest, policy
from pointer_rl.selectors import pointer as pointer_selector
from pointer_rl.testing import example
from pointer_rl.train import groups as grouping
from pointer_rl.train import learner as learning
from pointer_rl.train.learner import Schedule, frozen
from pointer_rl.types import Pool, QueryBatch
from pointer_rl_standard import generators
from pointer_rl_standard.generators import MMRGenerator, RetrievalGenerator
from pointer_rl_standard.options import MMROptions, RetrievalOptions


@pytest.mark.parametrize("per_query_pool", [False, True])
@pytest.mark.parametrize("logits", [1, 100])
def test_a_step_in_parts_is_the_step_of_the_whole_batch(monkeypatch, per_query_pool, logits):
    groups = ragged_groups(sizes=(3, 5, 2, 4, 6, 6), per_query_pool=per_query_pool)
    groups = replace(groups, queries=groups.queries.double(), pool=groups.pool.double())
    trained = []
    for limit in (2**25, logits):
        monkeypatch.setattr(learning, "_LOGITS", limit)
        selector = selector_for(groups, "gated").double()
        learner = learner_for(groups, selector, batch_size=6)
        optimizer = torch.optim.SGD(selector.parameters(), lr=1.0)
        place = (Schedule(0.1, 10), 9, np.random.default_rng(0))
        old = frozen(selector)
        epochs = [learner.rce_epoch(optimizer, *place, 0.5)]
        epochs.append(learner.grpo_epoch(optimizer, *place, old, frozen(selector)))
        epochs.append(learner.held_out())
        trained.append((selector.state_dict(), epochs))
    (whole, expected), (parts, found) = trained
    for name, values in whole.items():
        torch.testing.assert_close(parts[name], values, msg=name)
    for each, other in zip(found, expected, strict=True):
        assert each == pytest.approx(other)


@pytest.mark.parametrize("stop", [False, True])
def test_a_pool_encoded_in_parts_has_the_same_vectors_and_gradients(monkeypatch, stop):
    config = PointerConfig(d_model=6, hidden_dim=4, num_heads=2, history="gated", stop=stop)
    pool, found = torch.randn(11, 6).double(), []
    for together in (2**16, 3):
        monkeypatch.setattr(pointer_selector, "_TOGETHER", together)
        selector = PointerSelector.seeded(config, 0).double()
        encoded = selector.encode_pool(pool)
        (encoded.candidates * torch.arange(44.0).view(11, 4)).sum().backward()
        found.append((encoded.candidates, selector.cand_proj.weight.grad))
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole)


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(
        st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0]), min_size=7, max_size=7),
        min_size=1,
        max_size=4,
    ),
    number=st.integers(1, 9),
)
def test_the_highest_are_those_of_a_stable_sort(scores, number):
    scores = torch.tensor(scores)
    ordered = scores.sort(dim=-1, descending=True, stable=True)
    values, index = highest(scores, number)
    assert torch.equal(values, ordered.values[:, :number])
    assert torch.equal(index, ordered.indices[:, :number])


def batch_of(queries=7, rows=30, dim=6):
    generator = torch.Generator().manual_seed(0)
    pool = Pool([example(row) for row in range(rows)], torch.randn(rows, dim, generator=generator))
    allowed = torch.rand(queries, rows, generator=generator) > 0.3
    vectors = torch.randn(queries, dim, generator=generator)
    return QueryBatch([example(each) for each in range(queries)], vectors, allowed, 2), pool


def test_a_policy_finds_the_same_for_few_queries_at_a_time(monkeypatch):
    batch, pool = batch_of()
    config = PointerConfig(d_model=6, hidden_dim=4, num_heads=2, history="gated")
    whole, parts = (SelectorPolicy(PointerSelector.seeded(config, 0)) for _ in range(2))

    def decode(each):
        rngs = [np.random.default_rng(query) for query in range(7)]
        found = [each.beam(batch, pool, 4), each.sample(batch, pool, 3, rngs, 1.3, 0.9)]
        return [*found, each.log_prob(batch, pool, found[0].rows)]

    expected = decode(whole)
    monkeypatch.setattr(policy, "_TOGETHER", 3 * 30)  # three queries, three, and one
    found = decode(parts)
    for one, other in zip(found[:2], expected[:2], strict=True):
        assert torch.equal(one.rows, other.rows)
        torch.testing.assert_close(one.logprobs, other.logprobs)
    torch.testing.assert_close(found[2], expected[2])


@pytest.mark.parametrize(
    "generator", [RetrievalGenerator(RetrievalOptions(num=3)), MMRGenerator(MMROptions(num=3))]
)
def test_rows_compared_in_parts_rank_alike(monkeypatch, generator):
    batch, pool = batch_of()
    expected = generator.propose(None, batch, pool, [])
    monkeypatch.setattr(generators, "_TOGETHER", 8)
    monkeypatch.setattr(generators, "_PAIRS", 3 * 30)  # three queries, three, and one
    found = generator.propose(None, batch, pool, [])
    assert [[each.pointer for each in mine] for mine in found] == [
        [each.pointer for each in mine] for mine in expected
    ]


def test_credit_of_a_few_queries_at_a_time_is_that_of_all(monkeypatch):
    sizes = (3, 5, 2, 4, 6, 6, 1)
    whole = ragged_groups(4, sizes=sizes, shots=3).credited
    monkeypatch.setattr(grouping, "_CREDITED_TOGETHER", 3)
    assert np.array_equal(ragged_groups(4, sizes=sizes, shots=3).credited, whole)
