"""Closeness against formulas that are written another way."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointer_rl.records.closeness import edit_similarity, word_f1

strings = st.text(alphabet="ab é", max_size=6)


def levenshtein(first: str, second: str) -> int:
    """By its recursive definition."""

    @cache
    def edits(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        if first[i - 1] == second[j - 1]:
            return edits(i - 1, j - 1)
        return 1 + min(edits(i - 1, j), edits(i, j - 1), edits(i - 1, j - 1))

    return edits(len(first), len(second))


@given(strings, strings)
def test_edits_are_those_of_the_definition(first, second):
    longest = max(len(first), len(second))
    expected = 1.0 if not longest else 1 - levenshtein(first, second) / longest
    assert edit_similarity(first, second) == pytest.approx(expected, abs=1e-12)


@given(strings, strings)
def test_f1_is_the_harmonic_mean_of_precision_and_recall(first, second):
    words, others = first.split(), second.split()
    left = list(others)
    shared = 0
    for word in words:
        if word in left:
            left.remove(word)
            shared += 1
    if not words or not others:
        expected = float(words == others)
    elif not shared:
        expected = 0.0
    else:
        precision, recall = shared / len(words), shared / len(others)
        expected = 2 * precision * recall / (precision + recall)
    assert word_f1(first, second) == pytest.approx(expected, abs=1e-12)


@given(strings, strings)
def test_equal_answers_are_the_closest(first, second):
    for similarity in (word_f1, edit_similarity):
        assert 0 <= similarity(first, second) <= similarity(first, first) == 1


@pytest.mark.parametrize(
    ("first", "second", "words", "edits"),
    [
        ("red car", "red bus", 0.5, 4 / 7),
        ("red big car", "car red", 0.8, 1 / 11),
        ("kitten", "sitting", 0.0, 4 / 7),
        ("", "yes", 0.0, 0.0),
    ],
)
def test_known_values(first, second, words, edits):
    assert word_f1(first, second) == pytest.approx(words)
    assert edit_similarity(first, second) == pytest.approx(edits)
