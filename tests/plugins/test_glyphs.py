"""The embedded world: words, images, the dataset and its files (the model: tests/e2e)."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointer_rl.errors import InputError
from pointer_rl.registry import registry
from pointer_rl.types import Dataset
from pointer_rl_glyphs.command import export_vqa, reading_options
from pointer_rl_glyphs.dataset import draw_split, load_glyphs, load_pairs
from pointer_rl_glyphs.images import SIZE, GlyphImage
from pointer_rl_glyphs.lexicon import (
    DATASET_WORDS,
    KEYS,
    TRAINING_WORDS,
    VALUES,
    Lexicon,
)
from pointer_rl_glyphs.options import GlyphsOptions
from pointer_rl_glyphs.questions import IN_ENGLISH, PAIR_WORDINGS, WORDINGS

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
    answers = lexicon.annotate([key], rng)
    usual, synonym = lexicon.words[key]
    assert len(answers) == 10
    assert set(answers) <= {usual, synonym}
    assert answers.count(usual) > 5


def test_synonyms_occur():
    lexicon = Lexicon.draw(random.Random(0), DATASET_WORDS)
    rng = random.Random(1)
    rare = sum(len(set(lexicon.annotate(KEYS[:1], rng))) == 2 for _ in range(100))
    assert 60 < rare < 95  # 1 - 0.85^10 = 0.80


@given(st.integers(0, 10**9))
def test_images_differ_in_the_stamp_only_where_it_is(seed):
    import dataclasses

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


# --- glyphs-pairs ---


def pairs_of(**options) -> tuple[Dataset, list[tuple[str, ...]]]:
    """The dataset, and for each query the attributes that its wording asks for."""
    attributes = {wording: (name,) for name, each in WORDINGS.items() for wording in each}
    attributes |= {wording: names for names, each in PAIR_WORDINGS.items() for wording in each}
    assert len(attributes) == sum(map(len, (*WORDINGS.values(), *PAIR_WORDINGS.values())))
    dataset = load_pairs(GlyphsOptions(**options))
    return dataset, [attributes[each.question.removesuffix(IN_ENGLISH)] for each in dataset.queries]


def test_pairs_have_the_pool_of_glyphs_and_queries_of_their_own():
    options = GlyphsOptions(split="test")
    dataset, single = load_pairs(options), load_glyphs(options)
    assert dataset == load_pairs(options)
    assert dataset.pool == single.pool
    assert dataset.queries != single.queries
    assert load_pairs(GlyphsOptions(split="test", test_size=9)).queries == dataset.queries[:9]


def test_half_of_the_pair_queries_take_two_words_a_fifth_one_and_the_others_english():
    dataset, asked = pairs_of(split="train", train_size=2000)
    english = [each.question.endswith(IN_ENGLISH) for each in dataset.queries]
    single = [len(names) == 1 for names in asked]
    shares = {
        "two": np.mean(np.logical_not(single)),
        "english": np.mean(english),
        "one": np.mean(np.logical_and(single, np.logical_not(english))),
    }
    assert shares == pytest.approx({"two": 0.5, "english": 0.3, "one": 0.2}, abs=0.04)
    assert len(set(asked)) == 9  # three attributes, six ordered pairs


def test_pair_answers_are_the_words_of_the_rows_that_the_dataset_knows():
    dataset, asked = pairs_of(split="test")
    for query, names, sets in zip(dataset.queries, asked, dataset.relevant, strict=True):
        if query.question.endswith(IN_ENGLISH):
            assert query.answers == (getattr(query.image, names[0]),) * 10
            assert sets == []
            continue
        words = query.answer.split("-")
        assert set(words) <= set(DATASET_WORDS)
        assert [{dataset.pool[row].answer for row in rows} for rows in sets] == [{w} for w in words]
        for name, rows in zip(names, sets, strict=True):
            for row in rows:
                shown = dataset.pool[row]
                assert shown.question in WORDINGS[name]
                assert shown.image.stamped == query.image.stamped
                assert getattr(shown.image, name) == getattr(query.image, name)


def test_no_row_of_the_pool_has_both_halves_of_an_answer():
    dataset, _ = pairs_of(split="test")
    answers = {each.answer for each in dataset.pool}
    pairs = [
        (query, sets)
        for query, sets in zip(dataset.queries, dataset.relevant, strict=True)
        if sets[1:]
    ]
    assert len(pairs) > 400
    for query, (first, second) in pairs:
        assert query.answer not in answers
        assert first
        assert second
        assert not set(first) & set(second)


def test_the_metric_tells_both_words_from_one():
    dataset, asked = pairs_of(split="test", test_size=40)
    judge = registry().create("metric", "vqa").judge
    for query in (q for q, names in zip(dataset.queries, asked, strict=True) if len(names) == 2):
        first, second = query.answer.split("-")
        assert judge(query.answer, query.answers).accuracy == 1
        for wrong in (first, second, f"{second}-{first}", f"{first}-{first}"):
            assert judge(wrong, query.answers).accuracy == 0


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
                assert a.image.read() == b.image.png()
                assert a.image.open().tobytes() == b.image.open().tobytes()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the dataset"):
        export_vqa(SMALL, tmp_path / "file" / "sub")


def test_sizes_must_be_positive():
    with pytest.raises(InputError, match="start at 1"):
        registry().create("dataset", "glyphs", {"pool_size": "0"})
