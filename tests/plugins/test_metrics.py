"""Metrics, against reference values of the official VQA evaluation and a naive reading of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointer_rl.errors import InputError
from pointer_rl_standard.metrics import ExactMatch, VQAAccuracy
from pointer_rl_standard.vqa_normalisation import clean_whitespace, normalise

CASES = json.loads((Path(__file__).parents[1] / "data" / "vqa_metric.json").read_text())

vqa = VQAAccuracy()
exact = ExactMatch()

answer = st.sampled_from(["red", "Red.", "the red", "blue", "two", "2", "", "a", "dont", "1,000"])
annotators = st.lists(answer, min_size=2, max_size=12)


def test_every_reference_case() -> None:
    assert len(CASES) == 400
    for case in CASES:
        judgement = vqa.judge(case["prediction"], case["answers"])
        assert judgement.accuracy == pytest.approx(case["accuracy"], abs=1e-12), case
        assert judgement.correct == (case["accuracy"] > 0), case


@given(answer, annotators)
def test_is_the_mean_over_leaving_each_annotator_out(asked: str, answers: list[str]) -> None:
    given_, said = [clean_whitespace(each) for each in answers], clean_whitespace(asked)
    if len(set(given_)) > 1:
        given_, said = [normalise(each) for each in given_], normalise(said)
    accuracies = [
        min(1.0, sum(other == said for j, other in enumerate(given_) if j != i) / 3)
        for i in range(len(given_))
    ]
    judgement = vqa.judge(asked, answers)
    assert judgement.accuracy == pytest.approx(sum(accuracies) / len(accuracies), abs=1e-12)


@given(answer, annotators, st.randoms())
def test_is_in_the_unit_interval_whatever_the_order(
    asked: str,
    answers: list[str],
    random: object,
) -> None:
    judgement = vqa.judge(asked, answers)
    assert 0 <= judgement.accuracy <= 1
    assert judgement.correct == (judgement.accuracy > 0)
    random.shuffle(answers)  # type: ignore[attr-defined]
    assert vqa.judge(asked, answers) == judgement


@given(st.sampled_from(["red", "blue", "2"]), st.lists(st.sampled_from(["red", "blue", "2"])))
def test_an_annotator_more_who_agrees_never_lowers(asked: str, answers: list[str]) -> None:
    answers = ["red", "blue", *answers]
    assert vqa.judge(asked, [*answers, asked]).accuracy >= vqa.judge(asked, answers).accuracy


@pytest.mark.parametrize(
    ("raw", "normalised"),
    [
        ("The Red Dog", "red dog"),
        ("\tyes\n", "yes"),
        ("two", "2"),
        ("none", "0"),
        ("no one", "no 1"),
        ("ten dogs", "10 dogs"),
        ("red/white", "red white"),
        ("red/ white", "red white"),
        ("hello,world", "hello world"),
        ("hello, world", "hello world"),
        ("1,000", "1000"),
        ("t-shirt", "t shirt"),
        ("t-shirt 1,000", "tshirt 1000"),
        ("U.S.", "us"),
        ("3.5", "3.5"),
        ("3.", "3"),
        (".5", ".5"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("yall'd've", "y'all'd've"),
        ("'ow'sat", "'ow's'at"),
        ("somebody'd", "somebodyd"),
        ("50%", "50%"),
        ("it's", "it's"),
        ("a an the", ""),
        (". " * 40, "." + " ." * 7),
    ],
)
def test_normalisation(raw: str, normalised: str) -> None:
    assert vqa.normalise(raw) == normalised


def test_agreeing_annotators_are_taken_to_the_letter() -> None:
    assert vqa.judge("the dog", ["dog"] * 10).accuracy == 0
    assert vqa.judge("the dog", ["dog"] * 9 + ["cat"]).accuracy == 1
    assert vqa.judge(" dog\n", ["dog"] * 10).accuracy == 1


def test_one_annotator_cannot_be_left_out() -> None:
    for answers in ([], ["red"]):
        with pytest.raises(InputError, match=f"two annotators or more, not {len(answers)}"):
            vqa.judge("red", answers)


@pytest.mark.parametrize(
    ("asked", "answers", "right"),
    [
        (" RED ", ["blue", "red"], True),
        ("straße", ["STRASSE"], True),
        ("the red", ["red"], False),
        ("", ["red"], False),
    ],
)
def test_exact(asked: str, answers: list[str], right: bool) -> None:
    judgement = exact.judge(asked, answers)
    assert judgement.correct is right
    assert judgement.accuracy == float(right)


def test_exact_needs_an_annotator() -> None:
    with pytest.raises(InputError, match="at least one"):
        exact.judge("red", [])
