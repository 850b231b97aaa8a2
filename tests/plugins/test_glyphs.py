"""The embedded world: words, images, the dataset and its files (the model: tests/e2e)."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointer_rl.errors import InputError
from pointer_rl.registry import registry
from pointer_rl_glyphs.command import export_vqa, reading_options
from pointer_rl_glyphs.dataset import draw_split, load_glyphs
from pointer_rl_glyphs.images import SIZE, GlyphImage
from pointer_rl_glyphs.lexicon import (
    DATASET_WORDS,
    KEYS,
    TRAINING_WORDS,
    VALUES,
    Lexicon,
)
from pointer_rl_glyphs.options import GlyphsOptions
from pointer_rl_glyphs.questions import WORDINGS

SMALL = GlyphsOptions(pool_size=40, train_size=30, validation_size=5, test_size=20)


def test_training_words_never_occur_in_a_dataset():
    assert not set(TRAINING_WORDS) & set(DATASET_WORDS)
    assert len(set(TRAINING_WORDS)) == len(TRAINING_WORDS) > 1000


@given(st.integers(0, 10**9))
def test_a_lexicon_names_each_key_with_dataset_words_of_its_own(seed):
    lexicon = Lexicon.draw(random.Random(seed), DATASET_WORDS)
    words = [word for pair in lexicon.words.values() for word in pair]
    assert len(set(words)) == len(words) == 2 * len(KEYS) == 72
    assert set(words) <= set(DATASET_WORDS)


@given(st.integers(0, 10**9))
def test_annotators_use_the_usual_word_and_sometimes_the_synonym(seed):
    rng = random.Random(seed)
    lexicon = Lexicon.draw(rng, DATASET_WORDS)
    key = rng.choice(KEYS)
    answers = lexicon.annotate(key, rng)
    usual, synonym = lexicon.words[key]
    assert len(answers) == 10
    assert set(answers) <= {usual, synonym}
    assert answers.count(usual) > 5


def test_synonyms_occur():
    lexicon = Lexicon.draw(random.Random(0), DATASET_WORDS)
    rng = random.Random(1)
    rare = sum(len(set(lexicon.annotate(KEYS[0], rng))) == 2 for _ in range(100))
    assert 60 < rare < 95  # 1 - 0.85^10 = 0.80


@given(st.integers(0, 10**9))
def test_images_differ_in_the_stamp_only_where_it_is(seed):
    import dataclasses

    import numpy as np

    plain = GlyphImage.draw_at_random(random.Random(seed), stamped=False)
    stamped = dataclasses.replace(plain, stamped=True)
    before, after = (np.asarray(each.open()).astype(int) for each in (plain, stamped))
    assert before.shape == (SIZE, SIZE, 3)
    ys, xs = np.nonzero(np.abs(before - after).sum(-1))
    assert 0 < len(ys) <= 64
    assert np.ptp(ys) < 8
    assert np.ptp(xs) < 8


@pytest.mark.parametrize("feature", ["shape", "color", "pattern"])
def test_every_feature_changes_the_image(feature):
    import dataclasses

    base = GlyphImage.draw_at_random(random.Random(3), shape="star", color="red", pattern="dotted")
    keys = {dataclasses.replace(base, **{feature: value}).key for value in VALUES[feature]}
    assert len(keys) == len(VALUES[feature])


def test_wordings_are_shared_but_for_a_word():
    wordings = [wording for each in WORDINGS.values() for wording in each]
    assert len(set(wordings)) == len(wordings)
    pairs = [
        (a, b)
        for a in WORDINGS["color"]
        for b in WORDINGS["shape"]
        if len(set(a.split()) ^ set(b.split())) == 2
    ]
    assert len(pairs) >= 10


def test_the_same_options_give_the_same_dataset():
    assert draw_split(SMALL, "train") == draw_split(SMALL, "train")
    larger = GlyphsOptions(pool_size=50, lexicon_seed=0)
    assert draw_split(larger, "pool")[:40] == draw_split(SMALL, "pool")
    assert draw_split(GlyphsOptions(seed=1, pool_size=40), "pool") != draw_split(SMALL, "pool")
    renamed = draw_split(GlyphsOptions(lexicon_seed=1, pool_size=40), "pool")
    original = draw_split(SMALL, "pool")
    assert [e.question for e in renamed] == [e.question for e in original]
    assert not any(a.answer == b.answer for a, b in zip(renamed, original, strict=True))


def test_splits_share_no_example_and_no_image():
    dataset = {split: draw_split(SMALL, split) for split in ("pool", "train", "test", "validation")}
    examples = [example for split in dataset.values() for example in split]
    assert len({example.id for example in examples}) == len(examples)
    assert len({example.image.key for example in examples}) == len(examples)


def test_default_sizes():
    dataset = load_glyphs(GlyphsOptions(split="test"))
    assert (len(dataset.pool), len(dataset.queries)) == (512, 1000)
    assert len(load_glyphs(GlyphsOptions()).queries) == 2000
    assert len(load_glyphs(GlyphsOptions(split="validation")).queries) == 500


def test_every_query_can_be_answered_and_chance_cannot_do_it():
    dataset = load_glyphs(GlyphsOptions(split="test"))
    words = [example.answer for example in dataset.pool]
    shares = [words.count(query.answer) / len(words) for query in dataset.queries]
    assert min(shares) > 0
    assert sum(shares) / len(shares) < 0.04


def test_files_read_back_to_the_same_examples(tmp_path):
    export_vqa(SMALL, tmp_path)
    for split in ("train", "test"):
        values = dict(each.split("=", 1) for each in reading_options(tmp_path, split))
        read = registry().create("dataset", "vqa", values)
        for examples, drawn in (
            (read.queries, draw_split(SMALL, split)),
            (read.pool, draw_split(SMALL, "pool")),
        ):
            for a, b in zip(examples, drawn, strict=True):
                same = ("id", "row", "question", "answers", "question_id", "image_id", "answer")
                assert [getattr(a, name) for name in same] == [getattr(b, name) for name in same]
                assert a.image.key == b.image.key
                assert a.image.open().tobytes() == b.image.open().tobytes()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the dataset"):
        export_vqa(SMALL, tmp_path / "file" / "sub")


def test_sizes_must_be_positive():
    with pytest.raises(InputError, match="start at 1"):
        registry().create("dataset", "glyphs", {"pool_size": "0"})
