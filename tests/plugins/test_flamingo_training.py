"""A tiny OpenFlamingo, trained, answers from demonstrations: gradients and masks are right.

The words are drawn anew for each question, so nothing but the demonstrations can tell the answer,
and nothing but the pictures can tell which demonstration is the one.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from flamingo_training import QUESTION, WORDS, Episodes, make_model, make_tokenizer, train
from flamingo_training import train_tiny_flamingo as train_and_save

from pointer_rl.registry import registry
from pointer_rl.types import Decoding, Example, Request
from pointer_rl_glyphs.images import GlyphImage
from pointer_rl_glyphs.lexicon import COLORS

CASES = 200


def accuracy(folder: Path, shown: int, relevant: bool) -> float:
    """Of answers to pictures that were not trained on, after demonstrations in random order."""
    backend = registry().create("backend", "flamingo", {"model": str(folder), "device": "cpu"})
    builder = registry().create("prompt", "short-answer", {"instructions": ""})
    rng = random.Random(99)

    def example(color: str, word: str) -> Example:
        picture = GlyphImage.draw_at_random(rng, color=color)
        return Example(word, 0, picture, QUESTION, (word,))

    requests, expected = [], []
    for _ in range(CASES):
        asked, *others = rng.sample(COLORS, shown + 1)
        word, *other_words = rng.sample(WORDS, shown + 1)
        demonstrations = [example(*pair) for pair in zip(others, other_words, strict=True)]
        if relevant:
            demonstrations[0] = example(asked, word)
        rng.shuffle(demonstrations)
        prompt = builder.build(example(asked, word), demonstrations)
        requests.append(Request(prompt, Decoding(max_new_tokens=3)))
        expected.append(word)
    results = dict(backend.run(requests))
    return sum(results[i].text == word for i, word in enumerate(expected)) / CASES


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mpt", "gpt_neox"])
def test_a_trained_model_answers_by_the_relevant_demonstration(tmp_path, kind):
    train_and_save(tmp_path, kind)
    one, two, three = (accuracy(tmp_path, shown, relevant=True) for shown in (1, 2, 3))
    none = accuracy(tmp_path, 2, relevant=False)
    print(f"{kind}: one {one:.2f}, among two {two:.2f}, among three {three:.2f}, none {none:.2f}")
    assert one > 0.9
    assert two > 0.85  # a copy of either word is right in half of the cases
    assert three > 0.75  # in a third
    assert none < 0.1


def test_a_few_steps_move_every_tensor():
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, "mpt")
    before = {name: each.clone() for name, each in model.named_parameters()}
    train(model, Episodes(tokenizer, seed=0, pictures=2), steps=3)
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
        if "post_layernorm" not in name:  # of the class token, which is not used
            assert not torch.equal(parameter, before[name]), name
