from __future__ import annotations

import math

import pytest

from pointer_rl.errors import InputError, PluginError
from pointer_rl.session.judge import Judge, Trial
from pointer_rl.testing import EqualMetric, FakeBackend, PlainPrompt, example
from pointer_rl.types import BackendError, Decoding, Response

TRIALS = [
    Trial(example(0, "red"), [example(1, "red"), example(2, "blue")]),
    Trial(example(3, "green"), []),
]


def judged(backend, trials=TRIALS, **more):
    judge = Judge(prompt=PlainPrompt(), backend=backend, metric=EqualMetric(), **more)
    return dict(judge.judge(trials))


def test_outcomes_belong_to_their_trials_whatever_the_order():
    outcomes = judged(FakeBackend(lambda text: " " + text.split()[0] + "\n"))
    assert (outcomes[0].raw_generation, outcomes[0].answer) == (" red\n", "red")
    assert (outcomes[0].correct, outcomes[0].accuracy) == (True, 1.0)
    assert (outcomes[1].answer, outcomes[1].correct) == ("|", False)


def test_a_failed_trial_says_why_and_has_no_verdict():
    backend = FakeBackend(lambda text: BackendError("no memory") if "green" in text else "red")
    outcomes = judged(backend, [*TRIALS, Trial(example(4), [example(5, "green")])])
    assert outcomes[2].failure == "no memory"
    assert outcomes[2].correct is None
    assert outcomes[2].accuracy is None
    assert outcomes[0].correct is True


def test_a_prompt_that_cannot_be_built_fails_that_trial_alone():
    class Picky(PlainPrompt):
        def build(self, query, demonstrations):
            if not demonstrations:
                raise InputError("nothing to show")
            return super().build(query, demonstrations)

    backend = FakeBackend(lambda text: "red")
    judge = Judge(prompt=Picky(), backend=backend, metric=EqualMetric())
    outcomes = dict(judge.judge(TRIALS))
    assert outcomes[1].failure == "nothing to show"
    assert outcomes[0].correct is True
    assert len(backend.asked) == 1


def test_a_query_that_cannot_be_judged_is_not_asked():
    class Strict(EqualMetric):
        def judge(self, answer, answers):
            if len(answers) < 3:
                raise InputError("too few annotators")
            return super().judge(answer, answers)

    backend = FakeBackend(lambda text: "red")
    judge = Judge(prompt=PlainPrompt(), backend=backend, metric=Strict())
    outcomes = dict(judge.judge([*TRIALS, Trial(example(7, answers=("a",)), [])]))
    assert outcomes[2].failure == "too few annotators"
    assert outcomes[0].correct is True
    assert len(backend.asked) == 2


def test_decoding_reaches_the_backend():
    backend = FakeBackend(lambda text: "x")
    judged(backend, decoding=Decoding(max_new_tokens=3))
    assert {request.decoding.max_new_tokens for request in backend.asked} == {3}
    assert {request.score for request in backend.asked} == {()}


def test_gt_prob_is_the_expected_accuracy():
    query = example(0, answers=("Yes", "yes", "yes", "no", "perhaps", "perhaps"))
    backend = FakeBackend(lambda text: "yes")
    outcome = judged(backend, [Trial(query, [])], score_answers=True)[0]
    assert backend.asked[0].score == ("Yes", "yes", "no", "perhaps"), "as they are spelt"
    expected = 2 * math.exp(-3) + math.exp(-2) / 3 + 2 * math.exp(-7) / 3
    assert outcome.gt_prob == pytest.approx(expected)


def test_gt_prob_is_absent_when_not_asked_for():
    assert judged(FakeBackend(lambda text: "x"))[0].gt_prob is None


def test_a_backend_that_forgets_or_repeats_is_named():
    class Forgets(FakeBackend):
        def run(self, requests):
            yield 0, Response("x")

    class Repeats(FakeBackend):
        def run(self, requests):
            yield 0, Response("x")
            yield 0, Response("y")

    with pytest.raises(PluginError, match="fake left 1 of 2 requests without a result"):
        judged(Forgets(str))
    with pytest.raises(PluginError, match="fake answered request 0 of 2 twice"):
        judged(Repeats(str))
