"""Every loss against a loop of plain numbers, and against the ancestor's recorded values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from pointer_rl.selectors import PointerConfig, PointerSelector
from pointer_rl.train import losses
from pointer_rl.train.groups import Batch
from pointer_rl.train.learner import pointer_logprobs, step_logprobs

DATA = Path(__file__).parents[1] / "data"
REWARDS = st.sampled_from([-5.0, 0.0, 0.3, 1.0, 1.6, 5.0])
LOGPROBS = st.floats(-12, 0)


@dataclass
class Ragged:
    """Groups of candidates: rewards, log-probabilities of three policies, and how they are padded.

    Padding is filled with rubbish: nothing may look at it.
    """

    groups: list[list[tuple[float, float, float]]]
    """A (reward, logprob, other logprob) for each candidate."""

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        widest = max(map(len, self.groups)) + 1
        shape = (len(self.groups), widest)
        columns = [torch.full(shape, rubbish, dtype=torch.float64) for rubbish in (77.0, -3.0, 9.0)]
        valid = torch.zeros(shape, dtype=torch.bool)
        for b, group in enumerate(self.groups):
            # Each group's padding stands elsewhere: `valid` says where, not the position.
            first = b % (widest - len(group) + 1)
            for n, values in enumerate(group, first):
                valid[b, n] = True
                for column, value in zip(columns, values, strict=True):
                    column[b, n] = value
        rewards, logprobs, others = columns
        return rewards, logprobs.requires_grad_(), others, valid


ragged = st.lists(
    st.lists(st.tuples(REWARDS, LOGPROBS, LOGPROBS), max_size=6), min_size=1, max_size=4
).map(Ragged)


def per_group(found, expected):
    assert found.tolist() == pytest.approx(expected, abs=1e-9, rel=1e-9)


def per_candidate(found, valid, expected):
    """[B, N] against one list a group; padding is 0."""
    assert (found[~valid] == 0).all()
    assert found[valid].tolist() == pytest.approx(
        [*chain.from_iterable(expected)], abs=1e-9, rel=1e-9
    )


def gradient_is_finite(total, logprobs, valid):
    logprobs.grad = None
    total.sum().backward()
    assert logprobs.grad.isfinite().all()
    assert (logprobs.grad[~valid] == 0).all()


def naive_weights(group, temperature):
    highest = max((reward for reward, *_ in group), default=0)
    raised = [math.exp((reward - highest) / temperature) for reward, *_ in group]
    return [each / sum(raised) for each in raised]


@given(ragged, st.sampled_from([0.1, 1.0, 1.3, 2.0]))
def test_rce_is_the_weighted_cross_entropy(data, temperature):
    rewards, logprobs, _, valid = data.tensors()
    weights = [naive_weights(group, temperature) for group in data.groups]
    per_candidate(losses.rce_weights(rewards, valid, temperature), valid, weights)
    expected = [
        -sum(w * logprob for w, (_, logprob, _) in zip(own, group, strict=True))
        for own, group in zip(weights, data.groups, strict=True)
    ]
    found = losses.rce_loss(logprobs, rewards, valid, temperature)
    per_group(found, expected)
    gradient_is_finite(found, logprobs, valid)


def naive_contrast(group):
    rewards = [reward for reward, *_ in group]
    if len(set(rewards)) < 2:
        return 0.0
    low, high = min(rewards), max(rewards)
    chances = [math.exp(logprob) for _, logprob, _ in group]
    earned = sum(p * (r - low) / (high - low) for p, r in zip(chances, rewards, strict=True))
    return -math.log(earned / sum(chances))


@given(ragged)
def test_contrast_is_the_log_of_what_is_earned_between_worst_and_best(data):
    rewards, logprobs, _, valid = data.tensors()
    found = losses.contrast_loss(logprobs, rewards, valid)
    per_group(found, [naive_contrast(group) for group in data.groups])
    gradient_is_finite(found, logprobs, valid)
    assert (logprobs.grad[losses.zero_variance(rewards, valid)] == 0).all()


@given(ragged)
def test_zero_variance_is_fewer_than_two_different_rewards(data):
    rewards, _, _, valid = data.tensors()
    expected = [len({reward for reward, *_ in group}) < 2 for group in data.groups]
    assert losses.zero_variance(rewards, valid).tolist() == expected


def naive_moments(group):
    rewards = [reward for reward, *_ in group]
    mean = sum(rewards) / max(1, len(rewards))
    squares = sum((each - mean) ** 2 for each in rewards)
    return mean, math.sqrt(squares / max(1, len(rewards) - 1))


@given(ragged, st.booleans())
def test_advantages_are_centred_once_and_bounded(data, divide):
    rewards, _, _, valid = data.tensors()
    expected = []
    for group in data.groups:
        mean, std = naive_moments(group)
        scale = max(std, 0.1) if divide else 1.0
        expected.append([min(5.0, max(-5.0, (each[0] - mean) / scale)) for each in group])
    per_candidate(losses.advantages(rewards, valid, divide_by_std=divide), valid, expected)


@given(ragged, st.sampled_from([0.1, 0.2]))
def test_the_ratio_is_clipped_where_that_is_worse(data, clip):
    rewards, logprobs, olds, valid = data.tensors()
    advantage = losses.advantages(rewards, valid, divide_by_std=True)
    expected, clipped = [], []
    for b, group in enumerate(data.groups):
        terms = []
        for value, (_, logprob, old) in zip(advantage[b][valid[b]].tolist(), group, strict=True):
            ratio = math.exp(logprob - old)
            within = min(1 + clip, max(1 - clip, ratio))
            terms.append(-min(ratio * value, within * value))
            clipped.append(within * value < ratio * value)
        expected.append(sum(terms) / max(1, len(terms)))
    found, which = losses.clipped_ratio_loss(logprobs, olds, advantage, valid, clip)
    per_group(found, expected)
    assert not which[~valid].any()
    assert which[valid].tolist() == clipped
    gradient_is_finite(found, logprobs, valid)
    assert (logprobs.grad[which] == 0).all(), "what is clipped is pushed no further"


@given(st.lists(st.lists(st.floats(-5, 5), min_size=5, max_size=5), min_size=2, max_size=6))
def test_exact_kl_is_summed_over_the_rows_that_may_be_chosen(logits):
    half = len(logits) // 2
    values = torch.tensor(logits[: 2 * half], dtype=torch.float64).view(2, half, 5)
    blocked = torch.zeros(half, 5, dtype=torch.bool)
    blocked[:, 1] = True
    blocked[0, 3] = True
    values = values.clone().requires_grad_()
    log_p, log_q = values.masked_fill(blocked, -torch.inf).log_softmax(-1)
    expected = [
        sum(math.exp(p) * (p - q) for p, q in zip(own_p, own_q, strict=True) if p > -math.inf)
        for own_p, own_q in zip(log_p.tolist(), log_q.tolist(), strict=True)
    ]
    found = losses.exact_kl(log_p, log_q)
    per_group(found, expected)
    found.sum().backward()
    assert values.grad.isfinite().all()
    assert (losses.exact_kl(log_p, log_p) == 0).all()


@given(ragged)
def test_expected_reward_is_that_of_choosing_among_the_judged(data):
    rewards, logprobs, _, valid = data.tensors()
    expected = []
    for group in data.groups:
        chances = [math.exp(logprob) for _, logprob, _ in group]
        earned = sum(p * reward for p, (reward, *_) in zip(chances, group, strict=True))
        expected.append(earned / sum(chances) if chances else 0.0)
    per_group(losses.expected_reward(logprobs, rewards, valid), expected)


def test_what_is_broken_shows():
    """A NaN among the log-probabilities is a NaN in what is reported, never a 0."""
    rewards, valid = torch.tensor([[1.0, 0.0]]), torch.ones(1, 2, dtype=torch.bool)
    broken = torch.tensor([[torch.nan, -1.0]])
    assert losses.expected_reward(broken, rewards, valid).isnan()
    assert losses.rce_loss(broken, rewards, valid, 1.0).isnan()
    assert losses.rce_weights(rewards * torch.nan, valid, 1.0).isnan().any()


def test_padding_of_minus_infinity_reaches_no_gradient():
    """As a padded pointer has it, whose row 0 was chosen before."""
    rewards = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    valid = torch.tensor([[True, True, False], [False, False, False]])
    given_logprobs = torch.tensor([[-1.0, -2.0, -torch.inf], [-torch.inf] * 3])
    for loss in (
        lambda x: losses.rce_loss(x, rewards, valid, 0.1),
        lambda x: losses.contrast_loss(x, rewards, valid),
        lambda x: losses.clipped_ratio_loss(x, x.detach(), rewards, valid, 0.2)[0],
        lambda x: losses.expected_reward(x, rewards, valid),
    ):
        logprobs = given_logprobs.clone().requires_grad_()
        # The learner masks what it computes; the losses take care all the same where they can.
        total = loss(logprobs.masked_fill(~valid, 0.0))
        assert total.isfinite().all()
        total.sum().backward()
        assert logprobs.grad.isfinite().all()


# --- the ancestor's --------------------------------------------------------------------------


class Recorded:
    """A file of the ancestor's selector: weights, a group a query, and what it made of them."""

    def __init__(self, name: str) -> None:
        with safe_open(DATA / f"selector_{name}.safetensors", "pt") as file:
            about = file.metadata()
            self.values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        sizes = {
            key: int(about[key]) for key in ("d_model", "hidden_dim", "num_layers", "num_heads")
        }
        config = PointerConfig(**sizes, history="gated", temperature=float(about["temperature"]))
        self.selector = PointerSelector(config).eval()
        weights = {
            key.removeprefix("weights."): each
            for key, each in self.values.items()
            if key.startswith("weights.")
        }
        self.selector.load_state_dict(weights)
        self.kl_beta, self.clip = float(about["kl_beta"]), float(about["clip_epsilon"])

    def recomputed(self) -> torch.Tensor:
        """[B, N] as training computes them."""
        rewards = self.values["group_rewards"]
        every = torch.ones_like(rewards, dtype=torch.bool)
        batch = Batch(
            queries=self.values["query"],
            pool=self.values["candidates"],
            allowed=None,
            pointers=self.values["group_pointers"],
            rewards=rewards,
            valid=every,
            sampled=every,
            credited=torch.ones_like(self.values["group_pointers"], dtype=torch.bool),
            depth=self.values["group_pointers"].shape[-1],
            padded=False,
            own=None,
        )
        return pointer_logprobs(batch, step_logprobs(self.selector, batch))


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("source", ["recorded", "recomputed"])
def test_the_ancestors_losses(name, source):
    file = Recorded(name)
    values = file.values
    with torch.no_grad():
        recomputed = file.recomputed()
    logprobs = values["group_log_probs"] if source == "recorded" else recomputed
    torch.testing.assert_close(recomputed, values["group_log_probs"], rtol=0, atol=1e-5)
    rewards, olds = values["group_rewards"], values["old_log_probs"]
    valid = torch.ones_like(rewards, dtype=torch.bool)
    rce = losses.rce_loss(logprobs, rewards, valid, 1.3).mean()
    torch.testing.assert_close(rce, values["rce_loss_temperature_1_3"][0], rtol=1e-5, atol=1e-5)
    advantage = losses.advantages(rewards, valid, divide_by_std=True)
    ppo = losses.clipped_ratio_loss(logprobs, olds, advantage, valid, file.clip)[0].mean()
    log_ratio = logprobs - olds
    kl = (log_ratio.exp() - 1 - log_ratio).mean()
    torch.testing.assert_close(ppo, values["grpo_ppo_loss"][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(kl, values["grpo_kl"][0], rtol=1e-4, atol=1e-5)
    total = ppo + file.kl_beta * kl
    torch.testing.assert_close(total, values["grpo_loss"][0], rtol=1e-4, atol=1e-5)
