"""Training of the glyph model: its tensors, its optimiser, resuming to the same weights."""

from __future__ import annotations

import random

import pytest
import torch

from pointer_rl.errors import InputError
from pointer_rl.registry import registry
from pointer_rl_glyphs.images import GlyphImage
from pointer_rl_glyphs.lexicon import DATASET_WORDS, JOINER, KEYS, TRAINING_WORDS, Lexicon
from pointer_rl_glyphs.training.checkpoint import (
    INSTRUCTIONS,
    build_image_processor,
    build_tokenizer,
    save_checkpoint,
)
from pointer_rl_glyphs.training.episodes import CASES, pair_episode, training_episode
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
        joined = f"answer:{word}{JOINER}{word}<|im_end|>"
        assert tokenizer.encode(joined)[-6:-1] == [*ids, *tokenizer.encode(JOINER), *ids]


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
@pytest.mark.parametrize("make", [training_episode, pair_episode])
def test_what_is_supervised_is_the_answers_that_can_be_known(tokenizer, style, instructions, make):
    rng = random.Random(5)
    episodes = [make(rng, 5, TRAINING_WORDS) for _ in range(12)]
    batch = tokenise(episodes, builder(style, instructions), tokenizer, 2.0)
    blocks = [block for episode in episodes for block in episode]
    assert [KEYS[key] for key in batch.keys] == [key for block in blocks for key in block.keys]
    words = iter(batch.asked_at.tolist())
    seen = 0
    for index, block in enumerate(blocks):
        mine = batch.target_blocks == index
        text = tokenizer.decode(batch.targets[mine])
        end = "<|im_end|>" if index % 5 == 4 else ""
        assert text == (block.answer + end if block.answerable else "")
        seen += block.answerable
        for word in block.answer.split(JOINER):
            row, asked = next(words)
            assert row == index // 5
            following = tokenizer.decode(batch.input_ids[row, asked + 1 : asked + 3])
            assert word.startswith(following) or following.startswith(word)
    assert 10 < seen < len(blocks)
    for (row, position), target in zip(batch.positions.tolist(), batch.targets, strict=True):
        assert batch.input_ids[row, position + 1] == target


def test_cases_are_what_they_say():
    rng = random.Random(0)
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        rivals = others = 0
        for _ in range(40):
            *shown, query = case.episode(rng, Lexicon.draw(rng, DATASET_WORDS))
            assert len(shown) == case.shots
            assert len(query.keys) == len(case.positions)
            assert len({key.attribute for key in query.keys}) == len(query.keys)
            assert len({key.stamped for key in query.keys}) == 1
            for key, position in zip(query.keys, case.positions, strict=True):
                relevant = [i for i, block in enumerate(shown) if block.keys == (key,)]
                assert relevant == ([] if position is None else [position])
            values = {key[:2] for key in query.keys}
            unasked = [block.keys[0] for block in shown if block.keys[0] not in query.keys]
            rivals += sum(key[:2] in values for key in unasked)
            others += len(unasked)
            assert all(block.answer in DATASET_WORDS for block in shown)
            words = set(query.answer.split(JOINER))
            assert words.isdisjoint(DATASET_WORDS) if case.english else words <= set(DATASET_WORDS)
        if others:
            assert rivals / others == pytest.approx(case.rivals, abs=0.25)


def test_pair_episodes_show_both_words_before_they_ask_for_them():
    rng = random.Random(0)
    rivals = 0
    for length in (3, 4, 7):
        for _ in range(40):
            *shown, query = pair_episode(rng, length, TRAINING_WORDS)
            words = {block.keys[0]: block.answer for block in shown}
            assert len(shown) == length - 1
            assert query.answer == JOINER.join(words[key] for key in query.keys)
            assert query.answerable
            assert all(getattr(query.image, key.attribute) == key.value for key in query.keys)
            keys = [block.keys[0] for block in shown]
            repeated = [key in keys[:place] for place, key in enumerate(keys)]
            assert [block.answerable for block in shown] == repeated
            rivals += any(key._replace(stamped=not key.stamped) in words for key in query.keys)
    assert rivals > 40


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


def small(monkeypatch, steps=5, start=None):
    monkeypatch.setattr("pointer_rl_glyphs.training.train.BLOCKS_PER_STEP", 12)
    monkeypatch.setattr("pointer_rl_glyphs.training.train.CHECKPOINT_EVERY", 2)
    monkeypatch.setattr("pointer_rl_glyphs.training.train.CASES", CASES[:1])
    phases = {"vision_steps": 2, "reading_steps": 1, "joint_steps": 1, "pair_steps": steps - 4}
    return Trainer(1, **phases, images=1, start=start)


def test_pairs_may_be_learned_by_a_model_that_was_trained_before(monkeypatch, tmp_path):
    trainer = small(monkeypatch)
    save_checkpoint(trainer.model, tmp_path)
    torch.manual_seed(7)
    begun = small(monkeypatch, start=tmp_path)
    before = {name: tensor.clone() for name, tensor in begun.model.state_dict().items()}
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(before[name], tensor.half().float()), name
    assert begun.pair_step(0)["loss"] > 1
    changed = {
        name
        for name, each in begun.model.state_dict().items()
        if not torch.equal(each, before[name])
    }
    assert changed == {name for name in before if not name.startswith("model.visual.")}


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path, monkeypatch, capsys):
    whole = small(monkeypatch)
    train(tmp_path / "whole", whole)

    class Killed(BaseException):
        pass

    cut = small(monkeypatch)
    monkeypatch.setattr(cut, "pair_step", lambda step: kill())

    def kill():
        raise Killed

    with pytest.raises(Killed):
        train(tmp_path / "cut", cut)
    with pytest.raises(InputError, match="begun with"):
        train(tmp_path / "cut", small(monkeypatch, steps=6))
    train(tmp_path / "cut", small(monkeypatch))
    with pytest.raises(InputError, match="begun with"):  # other weights to begin with
        train(tmp_path / "cut", small(monkeypatch, start=tmp_path / "whole" / "model"))
    for name, tensor in whole.model.state_dict().items():
        assert torch.isfinite(tensor).all(), name
    first, second = (
        (tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("whole", "cut")
    )
    assert first == second
