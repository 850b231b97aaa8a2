"""The ancestor's training, which `learning.py` compares with ours: it does not learn."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from training_worlds import class_groups, ragged_groups, selector_for, worth

from pointer_rl.train.learner import step_logprobs
from pointer_rl.train.trainer import round_stages

CPU = torch.device("cpu")
PATH = Path(__file__).parents[1] / "benchmarks" / "ancestor.py"


@pytest.fixture(scope="module")
def ancestor():
    spec = importlib.util.spec_from_file_location("ancestor", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_grpo_adds_nothing(ancestor, tmp_path):
    groups, fresh = class_groups(0, 120), class_groups(1, 400)
    config = ancestor.ancestor_config(rce_epochs=0, grpo_epochs=10)
    trainer = ancestor.AncestorTrainer(
        selector_for(groups), config, CPU, tmp_path / "c.safetensors", {}
    )
    before = worth(trainer.policy, fresh)
    trainer.fit(groups, round_stages(config, 0), first=0)
    assert abs(worth(trainer.best, fresh) - before) < 0.1
    assert len(trainer.log) == 1 + config.grpo_epochs


def test_its_checkpoint_is_the_one_with_the_lowest_cross_entropy(ancestor, tmp_path):
    groups = class_groups(0, 48)
    config = ancestor.ancestor_config(rce_epochs=3, grpo_epochs=1, held_out=0.3)
    trainer = ancestor.AncestorTrainer(selector_for(groups), config, CPU, tmp_path / "c", {})
    trainer.fit(groups, round_stages(config, 0), first=0)
    lowest = min(line["held_out_cross_entropy"] for line in trainer.log)
    assert trainer.kept["held_out_cross_entropy"] == lowest


def test_its_dropout_draws_from_the_seed_alone(ancestor, tmp_path):
    groups = class_groups(0, 48)
    config = ancestor.ancestor_config(rce_epochs=2, grpo_epochs=1)
    weights = []
    for name in ("one", "two"):
        torch.manual_seed(len(weights))
        state = torch.get_rng_state()
        trainer = ancestor.AncestorTrainer(selector_for(groups), config, CPU, tmp_path / name, {})
        trainer.fit(groups, round_stages(config, 0), first=0)
        assert torch.equal(torch.get_rng_state(), state), "the caller's random state stays"
        assert not trainer.policy.training
        weights.append(trainer.policy.state_dict())
    assert all(torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())


def test_a_policy_without_history_scores_as_a_static_one(ancestor):
    groups = ragged_groups(sizes=(3, 3))
    gated = selector_for(groups)
    blind = ancestor.without_history(gated)
    (batch,) = groups.batches(np.arange(2), 2, CPU)
    with torch.no_grad():
        first, second = step_logprobs(blind, batch)
        assert torch.equal(first, next(iter(step_logprobs(gated, batch))))
        # The same logits, without the row that was chosen.
        rows = batch.pointers[..., :1]
        expected = first.expand_as(second).scatter(-1, rows, -torch.inf).log_softmax(-1)
    torch.testing.assert_close(second, expected)
    assert gated.config.history == "gated"


def test_z_scores(ancestor):
    rewards = torch.tensor([[1.0, 2.0, 4.0, 9.0], [3.0, 3.0, 0.0, 0.0]])
    valid = torch.tensor([[True, True, True, False], [True, True, False, False]])
    mean, std = 7 / 3, math.sqrt(((1 - 7 / 3) ** 2 + (2 - 7 / 3) ** 2 + (4 - 7 / 3) ** 2) / 2)
    expected = [[(each - mean) / (std + 1e-6) for each in (1, 2, 4)] + [0.0], [0.0] * 4]
    torch.testing.assert_close(ancestor.standardise(rewards, valid), torch.tensor(expected))
