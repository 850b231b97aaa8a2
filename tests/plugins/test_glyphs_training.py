"""Training of the glyph model: its tensors, its optimiser, resuming to the same weights."""

from __future__ import annotations

import random

import pytest
import torch

from pointer_rl.errors import InputError
from pointer_rl.registry import registry
from pointer_rl_glyphs.images import GlyphImage
from pointer_rl_glyphs.lexicon import DATASET_WORDS, KEYS, TRAINING_WORDS, Lexicon
from pointer_rl_glyphs.training.checkpoint import (
    INSTRUCTIONS,
    build_image_processor,
    build_tokenizer,
)
from pointer_rl_glyphs.training.episodes import CASES, training_episode
from pointer_rl_glyphs.training.muon import Muon, orthogonalise
from pointer_rl_glyphs.training.tensors import patches, pixel_values, tokenise
from pointer_rl_glyphs.training.train import Trainer, train


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def builder(style, instructions=""):
    return registry().create("prompt", style, {"instructions": instructions})


def test_every_made_up_word_is_two_tokens_wherever_it_stands(tokenizer):
    for word in (*TRAINING_WORDS, *DATASET_WORDS):
        ids = tokenizer.encode(word)
        assert len(ids) == 2
        assert tokenizer.encode(f"answer:{word}<|im_end|>")[-3:-1] == ids
        assert tokenizer.encode(f"assistant\n{word}<|im_end|>")[-3:-1] == ids


def test_the_tokenizer_loses_nothing(tokenizer):
    for text in ("What color is it? Yes, 42 °C — naïve.\n", *INSTRUCTIONS):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_default_instructions_are_the_prompt_builders_own():
    for style, text in zip(("short-answer", "chat"), INSTRUCTIONS, strict=False):
        options = registry().configure("prompt", style).options
        assert options.instructions == text


def test_pixels_are_the_image_processors():
    images = [GlyphImage.draw_at_random(random.Random(seed)) for seed in range(6)]
    expected = build_image_processor()(
        images=[image.open() for image in images], return_tensors="pt"
    )
    assert torch.equal(pixel_values(patches(images)), expected["pixel_values"])


@pytest.mark.parametrize("style", ["short-answer", "chat"])
@pytest.mark.parametrize("instructions", ["", INSTRUCTIONS[2]])
def test_what_is_supervised_is_the_answers_that_can_be_known(tokenizer, style, instructions):
    rng = random.Random(5)
    episodes = [training_episode(rng, 5, TRAINING_WORDS) for _ in range(12)]
    batch = tokenise(episodes, builder(style, instructions), tokenizer, 2.0)
    blocks = [block for episode in episodes for block in episode]
    assert [KEYS[key] for key in batch.keys] == [block.key for block in blocks]
    seen = 0
    for index, block in enumerate(blocks):
        mine = batch.target_blocks == index
        text = tokenizer.decode(batch.targets[mine])
        end = "<|im_end|>" if index % 5 == 4 else ""
        assert text == (block.answer + end if block.answerable else "")
        seen += block.answerable
        row, asked = batch.asked_at[index].tolist()
        following = tokenizer.decode(batch.input_ids[row, asked + 1 : asked + 3])
        assert block.answer.startswith(following) or following.startswith(block.answer)
    assert 10 < seen < len(blocks)
    for (row, position), target in zip(batch.positions.tolist(), batch.targets, strict=True):
        assert batch.input_ids[row, position + 1] == target


def test_cases_are_what_they_say():
    rng = random.Random(0)
    for case in CASES:
        for _ in range(20):
            *shown, query = case.episode(rng, Lexicon.draw(rng, DATASET_WORDS))
            assert len(shown) == case.shots
            relevant = [i for i, block in enumerate(shown) if block.key == query.key]
            assert relevant == ([] if case.relevant is None else [case.relevant])
            if case.rival:
                rivals = [b.key._replace(stamped=not b.key.stamped) for b in shown]
                assert query.key in rivals
            assert (query.answer in DATASET_WORDS) != case.english


def test_orthogonalise_flattens_the_singular_values():
    torch.manual_seed(0)
    for shape in ((3, 16, 16), (2, 8, 24), (2, 24, 8)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert values.min() > 0.3
        assert values.max() < 1.3


def test_muon_is_momentum_orthogonalised_for_each_matrix():
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(6, 4)), torch.nn.Parameter(torch.randn(6, 4))]
    naive = [parameter.detach().clone() for parameter in ours]
    momentum = [torch.zeros(6, 4) for _ in ours]
    optimizer = Muon(ours, lr=0.1, momentum=0.9, weight_decay=0.2)
    for _ in range(3):
        for index, parameter in enumerate(ours):
            parameter.grad = torch.randn(6, 4)
            momentum[index] = 0.9 * momentum[index] + 0.1 * parameter.grad
            nesterov = 0.1 * parameter.grad + 0.9 * momentum[index]
            step = orthogonalise(nesterov[None])[0] * 1.5**0.5
            naive[index] = naive[index] * (1 - 0.1 * 0.2) - 0.1 * step
        optimizer.step()
    for parameter, expected in zip(ours, naive, strict=True):
        torch.testing.assert_close(parameter.detach(), expected)


def small(monkeypatch, steps=5):
    monkeypatch.setattr("pointer_rl_glyphs.training.train.BLOCKS_PER_STEP", 12)
    monkeypatch.setattr("pointer_rl_glyphs.training.train.CHECKPOINT_EVERY", 2)
    monkeypatch.setattr("pointer_rl_glyphs.training.train.CASES", CASES[:1])
    return Trainer(seed=1, vision_steps=2, reading_steps=1, joint_steps=steps - 3, images=1)


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path, monkeypatch, capsys):
    whole = small(monkeypatch)
    train(tmp_path / "whole", whole)

    class Killed(BaseException):
        pass

    cut = small(monkeypatch)
    steps = cut.joint_step
    monkeypatch.setattr(cut, "joint_step", lambda step: steps(step) if step < 1 else kill())

    def kill():
        raise Killed

    with pytest.raises(Killed):
        train(tmp_path / "cut", cut)
    with pytest.raises(InputError, match="begun with"):
        train(tmp_path / "cut", small(monkeypatch, steps=6))
    train(tmp_path / "cut", small(monkeypatch))
    for name, tensor in whole.model.state_dict().items():
        assert torch.isfinite(tensor).all(), name
    first, second = (
        (tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("whole", "cut")
    )
    assert first == second
