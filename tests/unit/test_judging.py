from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pointer_rl.errors import InputError, PluginError
from pointer_rl.session.judge import Judge, Trial
from pointer_rl.testing import EqualMetric, FakeBackend, PlainPrompt, example
from pointer_rl.types import BackendError, Decoding, Response, Usage

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


class Gives(FakeBackend):
    """Gives what it is told, whatever it is asked."""

    def __init__(self, given):
        super().__init__(str)
        self.given = given

    def run(self, requests):
        return self.given


SCORED = Response("red", (-1.0,))


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (None, "returned a NoneType from run"),
        ([None], "gave a NoneType: yield"),
        ([SCORED], "gave a Response: yield"),
        ([(0, SCORED, 1)], "gave a tuple: yield"),
        ([("0", SCORED)], "gave a tuple: yield"),
        ([(0, "red")], r"gave a str: yield \(index, Response"),
        ([(0, None)], "gave a NoneType: yield"),
        ([(0, BackendError(""))], "without a message"),
        ([(0, BackendError(None))], "without a message"),
        ([(0, replace(SCORED, text=b"red"))], "gave a bytes as the text"),
        ([(0, replace(SCORED, score_logprobs=[-1.0]))], "not a tuple of Python floats"),
        ([(0, replace(SCORED, score_logprobs=("-1",)))], "not a tuple of Python floats"),
        ([(0, replace(SCORED, score_logprobs=(None,)))], "not a tuple of Python floats"),
        ([(0, replace(SCORED, score_logprobs=None))], "not a tuple of Python floats"),
        ([(0, replace(SCORED, score_logprobs=(-1.0, -2.0)))], "2 log-probabilities for 1 answers"),
        ([(0, replace(SCORED, score_logprobs=(0.7,)))], "gave the log-probability 0.7: give nat"),
        ([(0, replace(SCORED, score_logprobs=(math.inf,)))], "gave the log-probability inf"),
        ([(0, replace(SCORED, usage=None))], "a usage that is no Usage"),
        ([(0, replace(SCORED, usage=Usage("7")))], "a usage that is no Usage"),
        ([(0, replace(SCORED, usage=Usage(-1)))], "a usage that is no Usage"),
        ([(0, replace(SCORED, usage=Usage(2**63)))], "a usage that is no Usage"),
    ],
)
def test_a_result_of_the_wrong_form_is_one_line(given, fault):
    with pytest.raises(PluginError, match=f"^the backend fake .*{fault}") as caught:
        judged(Gives(given), [Trial(example(0, "red"), [])], score_answers=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("response", [replace(SCORED, text=None), Response("red", (math.nan,))])
def test_a_response_that_lacks_what_was_asked_for_is_a_failure(response):
    outcome = judged(Gives([(0, response)]), TRIALS[1:], score_answers=True)[0]
    assert outcome.failure in (
        "the backend returned no text",
        "the backend returned NaN as a log-probability",
    )
    assert outcome.correct is None


@pytest.mark.parametrize("logprob", [-math.inf, -1e300, -0.0, 0.0, 1e-6])
def test_a_log_probability_may_be_anything_up_to_0_and_be_rounded(logprob):
    given = [(0, replace(SCORED, score_logprobs=(logprob,)))]
    outcome = judged(Gives(given), TRIALS[1:], score_answers=True)[0]
    assert outcome.gt_prob == pytest.approx(math.exp(logprob), rel=1e-5)
