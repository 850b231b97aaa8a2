"""The loop: resumption to the bit, refusals, and what is kept when the loss breaks."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_selectors import ToyConfig, ToySelector, installed
from training_worlds import class_groups, selector_for

from pointer_rl.errors import InputError
from pointer_rl.train.config import TrainConfig
from pointer_rl.train.run import TrainResult
from pointer_rl.train.state import load_state
from pointer_rl.train.trainer import Trainer, round_stages

CPU = torch.device("cpu")
CONFIG = TrainConfig(rce_epochs=3, grpo_epochs=3, batch_size=16, held_out=0.3)
GROUPS = class_groups(0, 40)


class StoppedError(Exception):
    """A kill, after a line was written and before its checkpoint was."""


def run(path, config=CONFIG, about=None, stop_at=math.inf, groups=GROUPS, rounds=(0,)):
    def line_written(line, of):
        if len(trainer.log) == stop_at:
            raise StoppedError

    about = {"seed": 0} if about is None else about
    trainer = Trainer(selector_for(GROUPS), config, CPU, path, about, line_written)
    done = 0
    for number in rounds:
        stages = round_stages(config, number)
        trainer.fit(groups, stages, first=done)
        done += len(stages)
    return trainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "c.safetensors"
    trainer = run(path, rounds=(1, 2))
    return path.read_bytes(), trainer.log


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4, 5, 7, 8, 9, 12, 14])
def test_a_run_that_was_stopped_ends_in_the_same_bytes(tmp_path, whole, stop_at):
    """Two rounds of RCE and GRPO are 14 lines: stopped at the start, in each stage, at the end."""
    path = tmp_path / "c.safetensors"
    with pytest.raises(StoppedError):
        run(path, stop_at=stop_at, rounds=(1, 2))
    resumed = run(path, rounds=(1, 2))
    assert path.read_bytes() == whole[0]
    assert resumed.log == whole[1]


def test_stopped_again_and_again(tmp_path, whole):
    path = tmp_path / "c.safetensors"
    for stop_at in (2, 4, 5, 6, 9, 10, 13):
        with pytest.raises(StoppedError):
            run(path, stop_at=stop_at, rounds=(1, 2))
    run(path, rounds=(1, 2))
    assert path.read_bytes() == whole[0]


def test_a_finished_run_does_nothing_more(tmp_path, whole):
    path = tmp_path / "c.safetensors"
    run(path, rounds=(1, 2))
    assert run(path, stop_at=14, rounds=(1, 2)).log == whole[1]
    assert path.read_bytes() == whole[0]


def test_the_best_is_of_the_epoch_whose_line_is_kept(tmp_path):
    trainer = run(tmp_path / "c.safetensors")
    worths = [line["held_out_reward"] for line in trainer.log]
    assert trainer.kept is trainer.log[int(np.argmax(worths))]
    assert [line["stage"] for line in trainer.log] == ["start", *["rce"] * 3, *["grpo"] * 3]
    assert [line["epoch"] for line in trainer.log] == [0, 1, 2, 3, 1, 2, 3]


# --- what is said of it ---------------------------------------------------------------------------


def test_of_too_few_held_out_queries_the_last_epoch_is_kept_and_nothing_claimed(tmp_path):
    """As a new user met it: one held-out query, "expected reward 0.749 → 1.893"."""
    few = run(tmp_path / "c.safetensors", dataclasses.replace(CONFIG, held_out=1e-9))
    assert few.log[0]["held_out_queries"] == 1
    assert few.kept is few.log[-1]
    for mine, last in zip(few.best.parameters(), few.policy.parameters(), strict=True):
        assert torch.equal(mine, last)
    (said,) = TrainResult(tmp_path, few.log, few.kept).sentences()
    assert said.startswith("WARNING: 1 query held out, too few to say whether it learned")
    assert "→" not in said


def result(before, after, random, keep_by="reward"):
    key = f"held_out_{keep_by}"
    line = {
        **{"round": 0, "stage": "rce", "epoch": 2, "keep_by": keep_by, "held_out_best": 2.0},
        **{"held_out_queries": 30, f"held_out_random_{keep_by}": random},
        "zero_variance_groups": 0.25,
    }
    log = [{**line, "stage": "start", "epoch": 0, key: before}, {**line, key: after}]
    return TrainResult(Path("out"), log, log[1]).sentences()


def test_what_is_said_names_the_number_of_queries_and_a_random_choice():
    about = "(rce epoch 2; 30 queries, where a random choice has 0.500)"
    best = "; the best pointers judged have 2.000"
    better, _ = result(0.4, 1.2, 0.5)
    assert better == f"held-out expected reward 0.400 → 1.200 {about}{best}"
    below, _ = result(0.3, 0.45, 0.5)
    assert below == (
        f"no better than a random choice: held-out expected reward 0.300 → 0.450 {about}{best}"
    )
    assert result(0.8, 0.7, 0.5)[0].startswith("it learned nothing: ")
    # Two of 200 at random: ln(200 · 199) = 10.59 nats.
    (said,) = result(14.03, 11.19, math.log(200 * 199), "cross_entropy")
    assert said.startswith("no better than a random choice: held-out cross-entropy 14.030 → 11.190")
    assert "a random choice has 10.59" in said


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    run(path, about={"data": "one", "seed": 0})
    for about in ({"data": "other", "seed": 0}, {"data": "one", "seed": 0, "more": 1}, {"seed": 0}):
        with pytest.raises(InputError, match=r"holds a run with (data|more) ") as caught:
            run(path, about=about)
        assert "\n" not in str(caught.value)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    run(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="no state of a training run"):
        load_state(path, CPU)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="no state of a training run"):
        run(path)


@pytest.mark.parametrize("broken", ["rce", "grpo"])
def test_a_loss_that_is_no_number_stops_and_the_last_good_epoch_stays(tmp_path, broken):
    """Rewards turn into NaN after two good epochs of the stage."""
    path = tmp_path / "c.safetensors"
    groups = dataclasses.replace(GROUPS, rewards=GROUPS.rewards.copy())
    good = 2 if broken == "rce" else 5

    def spoil(line, of):
        if len(trainer.log) == good + 1:
            for parameter in trainer.policy.parameters():
                parameter.data *= torch.inf

    trainer = Trainer(selector_for(GROUPS), CONFIG, CPU, path, {}, spoil)
    with pytest.raises(
        InputError, match=rf"^{broken} epoch 3: \w+ is (nan|inf); stopped"
    ) as caught:
        trainer.fit(groups, round_stages(CONFIG, 0), first=0)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("epochs", [1, 3])
def test_too_high_a_learning_rate_stops_even_when_the_last_step_broke_it(tmp_path, epochs):
    path = tmp_path / "c.safetensors"
    config = TrainConfig(rce_epochs=epochs, grpo_epochs=0, rce_lr=1e30, batch_size=64)
    with pytest.raises(InputError, match=r"^rce epoch 1: held_out_reward is nan; stopped, and the"):
        run(path, config)
    assert not path.exists()


def test_any_registered_selector_is_resumed(tmp_path):
    def fit(path, stop_at=math.inf):
        def line_written(line, of):
            if len(trainer.log) == stop_at:
                raise StoppedError

        selector = ToySelector.seeded(ToyConfig(d_model=12), 0)
        trainer = Trainer(selector, CONFIG, CPU, path, {}, line_written)
        trainer.fit(GROUPS, round_stages(CONFIG, 0), first=0)
        return path.read_bytes()

    with installed():
        whole = fit(tmp_path / "whole.safetensors")
        with pytest.raises(StoppedError):
            fit(tmp_path / "c.safetensors", stop_at=6)
        assert fit(tmp_path / "c.safetensors") == whole


def test_a_selector_without_parameters_is_refused(tmp_path):
    class Fixed(ToySelector):
        def parameters(self, recurse=True):
            return iter(())

    trainer = Trainer(Fixed(ToyConfig(d_model=12)), CONFIG, CPU, tmp_path / "c", {})
    with pytest.raises(InputError, match="the selector toy has no parameters"):
        trainer.fit(GROUPS, round_stages(CONFIG, 0), first=0)
