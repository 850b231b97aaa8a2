"""Learning: the three policies, what teaches and what does not, and that it learns."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_selectors import ToyConfig, ToySelector, perturbed
from training_worlds import (
    class_groups,
    learner_for,
    naive_credit,
    pair_groups,
    ragged_groups,
    selector_for,
    worth,
)

from pointer_rl.errors import InputError
from pointer_rl.selectors import (
    PointerConfig,
    PointerSelector,
    SelectorPolicy,
    SequentialConfig,
    SequentialSelector,
    create_selector,
    decoding,
    initial_state,
)
from pointer_rl.testing import example
from pointer_rl.train import losses
from pointer_rl.train.config import TrainConfig
from pointer_rl.train.learner import Schedule, frozen, pointer_logprobs, step_logprobs
from pointer_rl.train.trainer import Trainer, round_stages
from pointer_rl.types import NO_ROW, Pool, QueryBatch
from pointer_rl_standard.generators import BeamGenerator, SampleGenerator
from pointer_rl_standard.options import BeamOptions, SampleOptions

CPU = torch.device("cpu")


def adam(learner, lr=1e-2):
    return torch.optim.AdamW(learner.selector.parameters(), lr=lr, weight_decay=0.0)


def rce(learner, lr=1e-2, epochs=1):
    optimizer, schedule = adam(learner), Schedule(lr, 10**6)
    for epoch in range(epochs):
        metrics = learner.rce_epoch(optimizer, schedule, 100, np.random.default_rng(epoch), 0.5)
    return metrics


def grpo(learner, old, reference, lr=1e-2, epochs=1):
    optimizer, schedule = adam(learner), Schedule(lr, 10**6)
    for epoch in range(epochs):
        rng = np.random.default_rng(epoch)
        metrics = learner.grpo_epoch(optimizer, schedule, 100, rng, old, reference)
    return metrics


def changed(selector, before):
    after = selector.state_dict()
    return any(not torch.equal(after[key], value) for key, value in before.items())


# --- three policies --------------------------------------------------------------------------


@pytest.mark.parametrize("history", ["static", "gated"])
@pytest.mark.parametrize("per_query_pool", [False, True])
def test_at_the_first_step_after_rce_the_ratio_is_one_and_kl_is_zero(history, per_query_pool):
    groups = ragged_groups(per_query_pool=per_query_pool, sizes=(3, 4, 5, 2, 6, 3))
    learner = learner_for(groups, selector_for(groups, history), batch_size=64, contrast=0.0)
    start = frozen(learner.selector)
    rce(learner, epochs=3)
    old, reference = frozen(learner.selector), frozen(learner.selector)
    # One batch where pools have one size, two where they have two: none has learned before its own.
    learner._step = lambda *_: None
    metrics = grpo(learner, old, reference)
    assert metrics["ratio"] == 1.0
    assert metrics["kl"] == 0.0
    assert metrics["clipped"] == 0.0
    stale = grpo(learner, start, start)
    assert stale["kl"] > 0
    assert stale["ratio"] != 1.0


def test_the_trainers_old_policy_is_refreshed_and_its_reference_is_grpos_start(tmp_path):
    groups = class_groups(0, 40)
    config = TrainConfig(rce_epochs=2, grpo_epochs=2, batch_size=64, grpo_lr=3e-3)
    lines = []
    trainer = Trainer(
        selector_for(groups),
        config,
        CPU,
        tmp_path / "c.safetensors",
        {},
        lambda line, _epochs: lines.append(line),
    )
    trainer.fit(groups, round_stages(config, 0), first=0)
    first, second = (line for line in lines if line["stage"] == "grpo")
    assert (first["ratio"], first["kl"]) == (1.0, 0.0), "one step an epoch: before any update"
    assert second["ratio"] == 1.0, "old: the policy at this epoch's start"
    assert second["kl"] > 0, "the reference: still the policy at GRPO's start"


def test_the_guides_old_policy_and_reference_are_the_start_of_training(tmp_path):
    groups = class_groups(0, 40)
    config = TrainConfig(rce_epochs=2, grpo_epochs=2, batch_size=64, old_policy="start")
    trainer = Trainer(selector_for(groups), config, CPU, tmp_path / "c.safetensors", {})
    trainer.fit(groups, round_stages(config, 0), first=0)
    for line in trainer.log[3:]:
        assert line["stage"] == "grpo"
        assert line["kl"] > 0
        assert line["ratio"] != 1.0


@pytest.mark.parametrize("method", ["beam", "sample"])
@pytest.mark.parametrize("history", ["static", "gated"])
def test_a_recorded_logprob_is_what_training_computes(method, history):
    """The candidates of the real generators, through masks and own rows, one policy throughout."""
    groups = ragged_groups(3, sizes=(2,) * 8, rows=9, shots=3)
    selector = selector_for(groups, history)
    policy = SelectorPolicy(selector)
    allowed = torch.ones(8, 9, dtype=torch.bool)
    for query, rows in enumerate(groups.excluded):
        if rows is not None:
            allowed[query, torch.from_numpy(rows).long()] = False
    queries = QueryBatch([example(query) for query in range(8)], groups.queries, allowed, 3)
    pool = Pool([example(row) for row in range(9)], groups.pool)
    rngs = [np.random.default_rng(query) for query in range(8)]
    temperatures = (1.0, 0.4, 2.5)
    generator = {
        "beam": BeamGenerator(BeamOptions(width=5)),
        "sample": SampleGenerator(SampleOptions(temperatures=temperatures, num_samples=4)),
    }[method]
    proposals = generator.propose(policy, queries, pool, rngs)
    recorded = dataclasses.replace(
        groups,
        offsets=np.cumsum([0, *map(len, proposals)]).astype(np.int64),
        pointers=np.array([each.pointer for own in proposals for each in own]),
        rewards=np.zeros(sum(map(len, proposals)), dtype=np.float32),
        sampled=np.ones(sum(map(len, proposals)), dtype=bool),
    )
    (batch,) = recorded.batches(np.arange(8), 8, CPU)
    found = pointer_logprobs(batch, step_logprobs(selector, batch))
    state = initial_state(selector, batch.queries, batch.pool, batch.allowed)
    checked = 0
    for b, own in enumerate(proposals):
        for n, each in enumerate(own):
            temperature = each.temperature or 1.0
            expected = found[b, n]
            if temperature != 1.0:
                drawn = decoding.log_prob(selector, state, batch.pointers, temperature=temperature)
                expected = drawn[b, n]
            assert each.logprob_score == pytest.approx(expected.item(), abs=1e-5)
            checked += 1
    assert checked == (40 if method == "beam" else 96)


@given(st.integers(0, 999), st.integers(1, 4))
@settings(max_examples=30)
def test_a_candidate_counts_up_to_its_last_credited_step_and_learns_at_its_credited_ones(
    seed, shots
):
    groups = lengths_groups(seed, shots=shots)
    (batch,) = groups.batches(np.arange(6), 6, CPU)
    random = torch.Generator().manual_seed(seed)
    shape = (*batch.pointers.shape, 10)
    values = torch.randn(shape, generator=random, dtype=torch.float64).log_softmax(-1)
    values.requires_grad_()
    credited = torch.rand(batch.pointers.shape, generator=random) < 0.4
    found = pointer_logprobs(batch, list(values.unbind(2)), credited)
    gradient = torch.autograd.grad(found.sum(), values)[0]
    for b, n in np.ndindex(*batch.valid.shape):
        wanted = torch.zeros(shots, 10, dtype=torch.float64)
        total = 0.0
        steps = credited[b, n].nonzero().flatten().tolist() if batch.valid[b, n] else []
        for step in range(max(steps, default=-1) + 1):
            row = int(batch.pointers[b, n, step])
            total += values[b, n, step, row].item()
            wanted[step, row] = float(step in steps)
        assert found[b, n].item() == pytest.approx(total, abs=1e-12)
        assert torch.equal(gradient[b, n], wanted)


@pytest.mark.parametrize("per_query_pool", [False, True])
def test_what_follows_the_last_credited_step_is_left_out_and_changes_nothing(per_query_pool):
    """The second row is the same in all candidates of a query, as in probes."""
    groups = ragged_groups(sizes=(3, 4, 5, 3), per_query_pool=per_query_pool, excluding=False)
    pointers = groups.pointers.copy()
    for query, (start, end) in enumerate(itertools.pairwise(groups.offsets)):
        rows = np.arange(9) if groups.pools[query] is None else groups.pools[query]
        pointers[start:end, 0] = rows[1 : 1 + end - start]
        pointers[start:end, 1] = rows[0]
    probes = dataclasses.replace(groups, pointers=pointers)
    gradients = []
    for depth in (1, 2):
        selector = selector_for(probes)
        for batch in probes.batches(np.arange(4), 4, CPU):
            assert batch.depth == 1
            steps = step_logprobs(selector, batch, depth)
            assert len(steps) == depth
            losses.rce_loss(
                pointer_logprobs(batch, steps, batch.credited), batch.rewards, batch.valid, 0.5
            ).sum().backward()
        gradients.append([each.grad for each in selector.parameters() if each.grad is not None])
    short, whole = gradients
    # The gate decides nothing before a second step: it has no gradient, or zeros.
    assert len(short) == len(whole) - 2
    for one, other in zip(short, whole, strict=False):
        assert torch.equal(one, other)
    assert not any(each.any() for each in whole[len(short) :])


def test_embeddings_are_looked_at_once_where_they_come_in():
    groups = ragged_groups()
    for name in ("queries", "pool"):
        broken = getattr(groups, name).clone()
        broken[3, 2] = torch.nan
        spoilt = dataclasses.replace(groups, **{name: broken})
        with pytest.raises(InputError, match="row 3: not all values are finite"):
            learner_for(spoilt, selector_for(groups))


@pytest.mark.parametrize("per_query_pool", [False, True])
def test_the_frozen_policies_encode_a_shared_pool_once_an_epoch(per_query_pool):
    groups = ragged_groups(sizes=(3,) * 12, per_query_pool=per_query_pool)
    learner = learner_for(groups, selector_for(groups), batch_size=2, per_query_pool=per_query_pool)
    old, reference = frozen(learner.selector), frozen(learner.selector)
    encoded = []
    for each in (old, reference):
        each.cand_proj.register_forward_hook(lambda *_: encoded.append(1))
    grpo(learner, old, reference)
    assert learner.steps_per_epoch == 4
    assert len(encoded) == (2 * 4 if per_query_pool else 2)


# --- what teaches ----------------------------------------------------------------------------


def without(groups, queries):
    """Only these queries' groups."""
    own = [slice(*groups.offsets[query : query + 2]) for query in queries]
    picked = {
        name: np.concatenate([getattr(groups, name)[each] for each in own])
        for name in ("pointers", "rewards", "sampled")
    }
    named = {
        name: [getattr(groups, name)[query] for query in queries]
        for name in ("ids", "images", "pools", "excluded")
    }
    sizes = [each.stop - each.start for each in own]
    offsets = np.cumsum([0, *sizes]).astype(np.int64)
    rows = torch.from_numpy(np.asarray(queries))
    return dataclasses.replace(
        groups, **picked, **named, offsets=offsets, queries=groups.queries[rows]
    )


@pytest.mark.parametrize("kind", ["rce", "grpo"])
@pytest.mark.parametrize("per_query_pool", [False, True])
def test_zero_variance_groups_change_nothing_and_are_counted(kind, per_query_pool):
    groups = ragged_groups(2, sizes=(3, 4, 2, 5, 4, 3), per_query_pool=per_query_pool)
    varied = np.flatnonzero(~groups.zero_variance)
    assert len(varied) == 4
    weights = []
    for each, share in ((groups, 2 / 6), (without(groups, varied), 0.0)):
        learner = learner_for(each, selector_for(each), batch_size=2, kl_beta=0.5)
        assert learner.excluded_share == pytest.approx(share)
        start = frozen(selector_for(each, seed=1))
        rce(learner, epochs=2) if kind == "rce" else grpo(learner, start, start, epochs=2)
        weights.append(learner.selector.state_dict())
    for key, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][key]), key


def test_zero_variance_groups_can_be_included():
    groups = ragged_groups(sizes=(3, 4, 2, 5))
    learner = learner_for(groups, selector_for(groups), include_zero_variance=True, batch_size=2)
    assert learner.excluded_share == 0
    assert learner.steps_per_epoch == 2
    assert learner_for(groups, selector_for(groups), batch_size=2).steps_per_epoch == 1


def test_grpo_on_sampled_leaves_the_others_to_rce():
    groups = ragged_groups(sizes=(4, 4, 4, 4, 4, 4))
    none = dataclasses.replace(groups, sampled=np.zeros(24, dtype=bool))
    every = dataclasses.replace(groups, sampled=np.ones(24, dtype=bool))
    for of_rce, teaches in ((none, True), (every, False)):
        learner = learner_for(of_rce, selector_for(groups), grpo_on="sampled")
        before = copy.deepcopy(learner.selector.state_dict())
        rce(learner)
        assert changed(learner.selector, before) is teaches
    for of_grpo, teaches in ((none, False), (every, True)):
        learner = learner_for(of_grpo, selector_for(groups), grpo_on="sampled")
        before = copy.deepcopy(learner.selector.state_dict())
        start = frozen(learner.selector)
        grpo(learner, start, start, epochs=2)
        assert changed(learner.selector, before) is teaches


def test_sampled_candidates_with_equal_rewards_add_no_kl():
    """Of each group one candidate is sampled: nothing is compared, nothing is held back."""
    groups = ragged_groups(sizes=(4, 4, 4, 4, 4, 4))
    one = dataclasses.replace(groups, sampled=np.arange(24) % 4 == 0)
    learner = learner_for(one, selector_for(groups), grpo_on="sampled", kl_beta=10.0)
    before = copy.deepcopy(learner.selector.state_dict())
    other = frozen(selector_for(groups, seed=5))
    assert grpo(learner, other, other)["kl"] == 0
    assert not changed(learner.selector, before)


def test_a_high_weight_of_kl_keeps_the_policy_near_the_reference():
    groups = class_groups(0, 60)
    distances = {}
    for beta in (0.0, 1e3):
        learner = learner_for(groups, selector_for(groups), kl_beta=beta, batch_size=16)
        reference = frozen(learner.selector)
        grpo(learner, reference, reference, lr=5e-3, epochs=8)
        (batch,) = groups.batches(np.arange(60), 60, CPU)
        with torch.no_grad():
            pairs = zip(
                step_logprobs(learner.selector, batch), step_logprobs(reference, batch), strict=True
            )
            distances[beta] = sum(
                float((p.exp() * (p - q).nan_to_num()).sum(-1).mean()) for p, q in pairs
            )
    assert distances[0.0] > 0.1
    assert distances[1e3] < distances[0.0] / 20


def test_what_held_out_groups_say():
    """Means over the groups that are not zero-variance; the losses are tested by themselves."""
    groups = ragged_groups(sizes=(3, 4, 5, 2, 6, 3))
    learner = learner_for(groups, selector_for(groups), batch_size=2, all_steps=True)
    (batch,) = groups.batches(np.flatnonzero(~groups.zero_variance), 9, CPU)
    with torch.no_grad():
        logprobs = pointer_logprobs(batch, step_logprobs(learner.selector, batch))
    scored = (logprobs, batch.rewards, batch.valid)
    temperature = learner.config.rce_temperatures[1]
    found = learner.held_out()
    assert found["reward"] == pytest.approx(float(losses.expected_reward(*scored).mean()), abs=1e-6)
    assert found["cross_entropy"] == pytest.approx(
        float(losses.rce_loss(*scored, temperature).mean()), abs=1e-5
    )
    assert found["best"] == 2.0
    # A random choice among a group's pointers, and among all pointers of distinct rows.
    own = [r[v].mean() for r, v in zip(batch.rewards, batch.valid, strict=True)]
    assert found["random_reward"] == pytest.approx(float(torch.stack(own).mean()), abs=1e-6)
    shots = batch.pointers.shape[-1]
    every = torch.ones(len(batch.queries), len(batch.pool))
    sizes = (every if batch.allowed is None else batch.allowed).sum(-1).int().tolist()
    nats = [math.log(math.perm(size, shots)) for size in sizes]
    assert found["random_cross_entropy"] == pytest.approx(sum(nats) / len(nats), abs=1e-5)
    assert learner.held_out_queries == len(batch.queries)


# --- pointers of any length ------------------------------------------------------------------


def lengths_groups(seed=0, *, per_query_pool=False, shots=3):
    """Ragged groups whose pointers were cut to 0 to 3 rows."""
    groups = ragged_groups(
        seed, sizes=(4, 5, 3, 6, 4, 5), shots=shots, per_query_pool=per_query_pool
    )
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, shots + 1, len(groups.pointers))
    groups.pointers[np.arange(shots) >= lengths[:, None]] = NO_ROW
    return groups


def selector_that_may_stop(kind, dim=6):
    if kind == "toy":
        return ToySelector.seeded(ToyConfig(d_model=dim), 0).eval()
    if kind == "pointer":  # which never stops
        return PointerSelector.seeded(PointerConfig(d_model=dim, num_heads=2, history="gated"), 0)
    if kind == "sequential":
        config = SequentialConfig(d_model=dim, num_heads=2, stop=True)
        return perturbed(SequentialSelector.seeded(config, 0))
    config = PointerConfig(d_model=dim, num_heads=2, history=kind, stop=True)
    return perturbed(PointerSelector.seeded(config, 0))


@pytest.mark.parametrize("kind", ["toy", "static", "gated", "sequential", "pointer"])
@pytest.mark.parametrize("per_query_pool", [False, True])
def test_training_computes_the_log_probability_that_decoding_does(kind, per_query_pool):
    groups = lengths_groups(per_query_pool=per_query_pool)
    selector = selector_that_may_stop(kind).eval()
    for batch in groups.batches(np.arange(6), 4, CPU):
        found = pointer_logprobs(batch, step_logprobs(selector, batch))
        pool = batch.pool if batch.own is None else batch.pool[batch.own]
        state = initial_state(selector, batch.queries, pool, batch.allowed)
        expected = decoding.log_prob(selector, state, batch.pointers)
        torch.testing.assert_close(
            found[batch.valid], expected[batch.valid].float(), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("kind", ["toy", "gated", "sequential", "pointer"])
@pytest.mark.parametrize("per_query_pool", [False, True])
def test_padding_changes_nothing(kind, per_query_pool):
    """A wider batch has the log-probabilities, steps and divergences of a narrow one."""
    groups = lengths_groups(per_query_pool=per_query_pool, shots=2)
    stops = kind != "pointer"
    wide = np.full((len(groups.pointers), 4), NO_ROW)
    wide[:, :2] = groups.pointers
    if stops:  # a pointer of two rows ends with a stop only where a third was possible
        groups = dataclasses.replace(groups, pointers=wide[:, :3])
    wider = dataclasses.replace(groups, pointers=wide)
    selector = selector_that_may_stop(kind)
    other = type(selector).seeded(selector.config, 1).eval()
    for batch, padded in zip(
        groups.batches(np.arange(6), 4, CPU), wider.batches(np.arange(6), 4, CPU), strict=True
    ):
        one, two = step_logprobs(selector, batch), step_logprobs(selector, padded)
        torch.testing.assert_close(pointer_logprobs(padded, two), pointer_logprobs(batch, one))
        masked = pointer_logprobs(batch, one, batch.credited)
        torch.testing.assert_close(pointer_logprobs(padded, two, padded.credited), masked)
        kls = [
            sum(losses.exact_kl(p, q).expand(batch.valid.shape) for p, q in zip(*pair, strict=True))
            for pair in ((one, step_logprobs(other, batch)), (two, step_logprobs(other, padded)))
        ]
        torch.testing.assert_close(kls[0][batch.valid], kls[1][batch.valid])
        total = pointer_logprobs(padded, two).sum()
        gradients = torch.autograd.grad(total, list(selector.parameters()), allow_unused=True)
        assert all(each.isfinite().all() for each in gradients if each is not None)


def choices_along(selector, groups, query, pointer):
    """[(log-probabilities by choice, choice)] of each step that a pointer takes, one by one."""
    pool, excluded = groups.pool, groups.excluded[query]
    allowed = torch.ones(1, len(pool), dtype=torch.bool)
    allowed[0, [] if excluded is None else excluded.tolist()] = False
    state = initial_state(selector, groups.queries[query : query + 1], pool, allowed)
    taken = []
    for row in pointer:
        rows, stop = selector.step_logits(state).flatten(), selector.stop_logit(state)
        taken.append((torch.cat([rows, stop.flatten()]).log_softmax(0).tolist(), row))
        if row == NO_ROW:
            break
        state = selector.advance(state, torch.tensor([[row]]))
    return taken


@pytest.mark.parametrize("kind", ["toy", "static", "gated", "sequential"])
@pytest.mark.parametrize("seed", [0, 1])
@torch.no_grad()
def test_every_loss_of_pointers_of_any_length_is_that_of_the_definitions(kind, seed):
    """A loop over queries, candidates and steps in float64; credit is `naive_credit`."""
    groups = lengths_groups(seed)
    groups = dataclasses.replace(groups, queries=groups.queries.double(), pool=groups.pool.double())
    selector = selector_that_may_stop(kind).double()
    other = perturbed(copy.deepcopy(selector), seed=5)
    learner = learner_for(groups, selector, batch_size=64, clip=0.1, advantage="mean")
    learner._step = lambda *_: None

    expected = dict.fromkeys(("rce", "contrast", "ppo", "kl", "reward"), 0.0)
    taught = np.flatnonzero(~groups.zero_variance)
    for query in taught:
        own = slice(*groups.offsets[query : query + 2])
        pointers, rewards = groups.pointers[own].tolist(), groups.rewards[own].tolist()
        logp, old, kl = [], [], []
        for pointer, credited in zip(pointers, naive_credit(pointers, rewards), strict=True):
            pairs = [choices_along(each, groups, query, pointer) for each in (selector, other)]
            begun = 1 + max(np.flatnonzero(credited))
            for found, steps in zip((logp, old), pairs, strict=True):
                found.append(sum(each[choice] for each, choice in steps[:begun]))
            kl.append(
                sum(
                    math.exp(p) * (p - q)
                    for (ours, _), (theirs, _) in zip(*pairs, strict=True)
                    for p, q in zip(ours, theirs, strict=True)
                    if p > -math.inf
                )
            )
        number, best, worst = len(rewards), max(rewards), min(rewards)
        weights = [math.exp((r - best) / 0.5) for r in rewards]
        chances = [math.exp(p) for p in logp]
        earned = sum(p * (r - worst) for p, r in zip(chances, rewards, strict=True))
        expected["rce"] -= sum(w * p for w, p in zip(weights, logp, strict=True)) / sum(weights)
        expected["contrast"] -= math.log(earned / (best - worst) / sum(chances))
        expected["reward"] += earned / sum(chances) + worst
        expected["kl"] += sum(kl) / number
        for p, q, r in zip(logp, old, rewards, strict=True):
            ratio, advantage = math.exp(p - q), r - sum(rewards) / number
            clipped = min(max(ratio, 0.9), 1.1)
            expected["ppo"] -= min(ratio * advantage, clipped * advantage) / number

    of_rce, of_grpo = rce(learner), grpo(learner, other, other)
    found = {**of_rce, **of_grpo, "reward": learner.held_out()["reward"]}
    for name, total in expected.items():
        assert found[name] == pytest.approx(total / len(taught), rel=1e-6, abs=1e-9), name


def test_kl_has_the_stop_among_its_choices():
    groups = lengths_groups()
    selector = selector_that_may_stop("toy")
    other = copy.deepcopy(selector)
    with torch.no_grad():
        other.stop += 1.0
    (batch,) = groups.batches(np.array([1]), 1, CPU)
    steps = [step_logprobs(each, batch) for each in (selector, other)]
    for step, (log_p, log_q) in enumerate(zip(*steps, strict=True)):
        kl = losses.exact_kl(log_p, log_q).expand(batch.valid.shape)
        over = batch.pointers[..., step - 1] == NO_ROW if step else torch.zeros(1, 5).bool()
        assert (kl[over] == 0).all()
        assert (kl[~over] > 0).all()


@pytest.mark.parametrize("name", ["pointer", "sequential"])
def test_a_policy_learns_how_many_rows_to_choose(name, tmp_path):
    """A query's first value says whether demonstrations help; only their number matters."""
    rng = np.random.default_rng(0)
    groups = class_groups(0, 240, size=6)
    lengths = np.tile([0, 0, 1, 1, 2, 2], 240)
    pointers = groups.pointers.copy()
    pointers[np.arange(2) >= lengths[:, None]] = NO_ROW
    helps = rng.random(240) < 0.5
    wanted = np.where(helps, 2, 0).repeat(6)
    queries = groups.queries.clone()
    queries[:, 0] = torch.from_numpy(np.where(helps, 3.0, -3.0))
    groups = dataclasses.replace(
        groups,
        pointers=pointers,
        queries=queries,
        rewards=(2 - np.abs(lengths - wanted)).astype(np.float32),
    )
    sizes = {"d_model": 12, "num_layers": 1, "num_heads": 2, "stop": True}
    selector = create_selector(name, sizes)
    config = TrainConfig(rce_epochs=15, grpo_epochs=3, rce_lr=3e-3)
    trainer = Trainer(selector, config, CPU, tmp_path / "c.safetensors", {})
    trainer.fit(groups, round_stages(config, 0), first=0)
    queries = QueryBatch((), groups.queries, torch.ones(240, 24, dtype=torch.bool), 2)
    found = SelectorPolicy(trainer.best).greedy(queries, Pool((), groups.pool)).pointers()
    chosen = np.array([len(pointer) for (pointer,) in found])
    assert (chosen[helps] == 2).mean() > 0.9
    assert (chosen[~helps] == 0).mean() > 0.9


# --- it learns -------------------------------------------------------------------------------


def trained(tmp_path, **options):
    """What the starting policy and the kept one are worth on fresh queries."""
    groups, fresh = class_groups(0, 240), class_groups(1, 400)
    config = TrainConfig(batch_size=32, **options)
    trainer = Trainer(selector_for(groups), config, CPU, tmp_path / "c.safetensors", {})
    before = worth(trainer.policy, fresh)
    trainer.fit(groups, round_stages(config, 0), first=0)
    return before, worth(trainer.best, fresh)


def test_the_default_recipe_learns(tmp_path):
    before, after = trained(tmp_path)
    assert before < 0.45
    assert after > 0.8


@pytest.mark.parametrize(("name", "low", "high"), [("pointer", 0, 0.6), ("sequential", 0.85, 1)])
def test_the_sequential_selector_learns_to_show_one_row_of_each_kind(name, low, high, tmp_path):
    groups, _ = pair_groups(0, 160)
    fresh, classes = pair_groups(1, 200)
    sizes = {"d_model": 12, "num_layers": 1, "num_heads": 2}
    config = TrainConfig(rce_epochs=15, grpo_epochs=0, rce_lr=5e-3)
    trainer = Trainer(create_selector(name, sizes), config, CPU, tmp_path / "c.safetensors", {})
    trainer.fit(groups, round_stages(config, 0), first=0)
    queries = QueryBatch((), fresh.queries, torch.ones(200, 24, dtype=torch.bool), 2)
    rows = SelectorPolicy(trainer.best).greedy(queries, Pool((), fresh.pool)).rows[:, 0].numpy()
    shown = (classes[:24][rows] == classes[24:, None]).any(1)
    assert low <= shown.all(1).mean() <= high


def test_grpo_alone_learns(tmp_path):
    before, after = trained(tmp_path, rce_epochs=0, grpo_epochs=20, grpo_lr=3e-3)
    assert after > before + 0.25


def test_the_learning_rate_warms_up_and_falls():
    schedule = Schedule(1.0, 1000)
    rates = [schedule(step) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 50)
    assert max(rates) == rates[49]
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert rates[-1] == pytest.approx(0.05, abs=1e-3)
    assert Schedule(1.0, 1)(0) == 1.0
