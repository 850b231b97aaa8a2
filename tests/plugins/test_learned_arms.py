"""The arms that learn: `answer-match`, which asks no model, and `fixed`, one pointer for all."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from pointer_rl.errors import InputError, PluginError
from pointer_rl.evaluate.arms import Arm, Setting, Training, choose
from pointer_rl.session.judge import Judge
from pointer_rl.session.similarity import Space
from pointer_rl.testing import EqualMetric, FakeBackend, PlainPrompt, example
from pointer_rl.types import BackendError, Pool
from pointer_rl_standard import answer_match
from pointer_rl_standard.answer_match import AnswerMatchArm, Labels, multi_positive_loss, train
from pointer_rl_standard.fixed_pointer import FixedArm, rank_by_halving
from pointer_rl_standard.options import FixedOptions

CLASSES = 5
POOL = [example(row, f"A{row % CLASSES}", id=f"p{row}") for row in range(15)]
LEARNED = [example(row, f"a{row % CLASSES}", id=f"t{row}") for row in range(40)]
QUERIES = [example(row, f"a{row % CLASSES}", id=f"q{row}") for row in range(10)]


def embed(examples):
    """The class of an example, and noise. Queries point to the row of the class after theirs."""
    generator = torch.Generator().manual_seed(len(examples))
    noise = torch.randn(len(examples), CLASSES + 3, generator=generator) / 50
    turned = [row % CLASSES if examples is POOL else (row + 1) % CLASSES for row in range(40)]
    noise[range(len(examples)), turned[: len(examples)]] += 1
    return noise


def setting(answer=lambda text: "a0", learned=LEARNED, queries=QUERIES, shots=2, seed=0):
    backend = FakeBackend(answer)
    judge = Judge(prompt=PlainPrompt(), backend=backend, metric=EqualMetric())
    training = Training(
        load=lambda: learned, pool=POOL, metric=EqualMetric(), embed=embed, judge=judge.judge
    )
    space = Space(embed(queries), Pool(POOL, embed(POOL)))
    about = {"queries": queries, "shots": shots, "seed": seed, "space": space}
    return Setting(**about, training=training), backend


# --- answer-match -----------------------------------------------------------------------------


def test_the_loss_is_minus_the_log_of_the_positive_rows_share():
    rng = np.random.default_rng(0)
    scores, positive = rng.normal(size=(7, 9)) * 3, rng.random((7, 9)) < 0.4
    positive[:, 0] = True
    allowed = (rng.random((7, 9)) < 0.7) | positive
    expected = -np.mean(
        [
            math.log(sum(math.exp(s) for s, p in zip(row, of, strict=True) if p))
            - math.log(sum(math.exp(s) for s, a in zip(row, may, strict=True) if a))
            for row, of, may in zip(scores, positive, allowed, strict=True)
        ]
    )
    given = torch.tensor(scores).masked_fill(~torch.tensor(allowed), -math.inf).requires_grad_()
    found = multi_positive_loss(given, torch.tensor(positive))
    assert found.item() == pytest.approx(expected, rel=1e-12)
    found.backward()
    assert given.grad.isfinite().all()


def test_labels_are_the_rows_whose_answer_an_annotator_gave():
    several = replace(LEARNED[0], answers=("a1", "a1", "A3", "nothing"))
    labels = Labels(setting()[0].training)
    found = labels.of([LEARNED[2], several])
    assert [row.nonzero()[:, 0].tolist() for row in found] == [
        [2, 7, 12],
        [1, 3, 6, 8, 11, 13],
    ]
    assert labels.has_any(several)
    assert not labels.has_any(replace(several, answers=("nothing",)))
    assert not labels.has_any(replace(several, answers=()))


@pytest.mark.parametrize("ranked", [4_096, 4])
def test_it_learns_which_rows_have_the_answer_and_asks_nothing(monkeypatch, ranked):
    monkeypatch.setattr(answer_match, "ROWS", ranked)
    at, backend = setting()

    def right(chosen):
        return [
            POOL[row].answer.lower() == query.answer
            for query, (pointer,) in zip(QUERIES, chosen, strict=True)
            for row in pointer
        ]

    assert not any(right(at.generate("similar", "retrieval", 1)))
    assert all(right(AnswerMatchArm().choose(at)))
    assert backend.asked == []
    assert at.training.asked == 0


def test_a_step_ranks_some_rows_of_a_large_pool_and_a_label_of_each_query(monkeypatch):
    monkeypatch.setattr(answer_match, "ROWS", 3)
    given = []
    monkeypatch.setattr(
        answer_match,
        "multi_positive_loss",
        lambda *each: given.append(each) or multi_positive_loss(*each),
    )
    AnswerMatchArm().choose(setting()[0])
    assert len(given) == answer_match.STEPS
    assert all(scores.shape[1] <= 3 + 5 for scores, _ in given)  # of 15 rows with 5 answers
    assert all((scores.isfinite() & positive).any(1).all() for scores, positive in given)
    assert len({tuple(positive.sum(0).tolist()) for _, positive in given}) > 1


def test_before_training_it_is_the_retriever(monkeypatch):
    monkeypatch.setattr(answer_match, "STEPS", 0)
    at, _ = setting()
    assert AnswerMatchArm().choose(at) == at.generate("similar", "retrieval", 1)


def test_it_trains_once_for_all_numbers_of_shots_and_again_for_other_queries(monkeypatch):
    trained = []
    monkeypatch.setattr(
        answer_match, "train", lambda *given: trained.append(given) or train(*given)
    )
    monkeypatch.setattr(answer_match, "STEPS", 3)
    arm, at = AnswerMatchArm(), setting()[0]
    arm.choose(at)
    arm.choose(replace(at, shots=1))
    assert len(trained) == 1
    arm.choose(setting()[0])
    assert len(trained) == 2


def test_a_row_with_a_training_querys_own_image_is_no_label_and_no_rival(monkeypatch):
    pool = [replace(POOL[0], answers=("only",)), *POOL[1:]]
    monkeypatch.setitem(globals(), "POOL", pool)
    at, _ = setting(learned=pool[:1])
    assert not Labels(at.training).has_any(pool[0])
    assert Labels(at.training).has_any(replace(LEARNED[0], answers=("only",)))
    with pytest.raises(InputError, match="no training query has an answer of a row"):
        AnswerMatchArm().choose(at)
    given = []
    monkeypatch.setattr(
        answer_match,
        "multi_positive_loss",
        lambda *each: given.append(each) or multi_positive_loss(*each),
    )
    monkeypatch.setattr(answer_match, "STEPS", 1)
    AnswerMatchArm().choose(setting(learned=pool)[0])
    [(scores, _)] = given
    assert len(scores) == 14  # row 0 has no label
    assert scores.isinf().sum(1).tolist() == [1] * 14


# --- fixed ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pointers", "budget"), [(1, 10), (2, 30), (8, 200), (11, 500), (64, 2000)]
)
def test_halving_spends_at_most_its_budget_on_the_same_queries_and_finds_the_best(pointers, budget):
    rng = np.random.default_rng(pointers)
    rewards = (rng.random((pointers, 300)) < np.linspace(0.05, 0.3, pointers)[:, None]) * 1.0
    best = pointers // 2
    rewards[best] = rng.random(300) < 0.9
    asked, rounds = [], []

    def ask(pairs):
        rounds.append(pairs)
        asked.extend(pairs)
        return np.array([rewards[pair] for pair in pairs])

    ranked = rank_by_halving(pointers, 300, budget, ask)
    assert ranked[0] == best
    assert sorted(ranked) == list(range(pointers))
    assert 0.7 * budget < len(asked) == len(set(asked)) <= budget or pointers == 1
    assert len(asked) <= budget
    assert len(rounds) == max(1, math.ceil(math.log2(pointers)))
    left = pointers
    for pairs in rounds:
        numbers, queries = ({pair[at] for pair in pairs} for at in (0, 1))
        assert len(numbers) == left
        assert len(pairs) == len(numbers) * len(queries)
        left = math.ceil(left / 2)


def test_halving_averages_what_was_answered_and_stops_where_queries_end():
    rewards = np.array(
        [[0.0, 1.0, math.nan], [0.6, math.nan, 0.6], [math.nan] * 3, [0.0, 0.0, 1.0]]
    )
    asked = []

    def ask(pairs):
        asked.extend(pairs)
        return np.array([rewards[pair] for pair in pairs])

    assert rank_by_halving(4, 3, 1000, ask) == [1, 0, 3, 2]
    assert len(asked) == 12


def answers_if_shown_7_last(text):
    """Right for every query, if row 7 is shown last; else never. A query's answer is a…"""
    shown, _, question = text.partition(" |")
    number = int(question.rsplit(" ", 1)[1])
    return f"a{number % CLASSES}" if shown.split(" ")[-1] == "seven" else "no"


@pytest.fixture
def seven(monkeypatch):
    monkeypatch.setitem(
        globals(), "POOL", [*POOL[:7], replace(POOL[7], answers=("seven",)), *POOL[8:]]
    )


def fixed(budget=400, pointers=15):
    return FixedArm(FixedOptions(budget=budget, pointers=pointers))


def test_the_best_pointer_is_shown_to_all_and_what_it_took_is_counted(seven):
    at, backend = setting(answers_if_shown_7_last, shots=1)
    arms = {"fixed": fixed(), "none": Arm()}
    arms["none"].choose, arms["none"].training_calls = (lambda _: [((),)] * 10), None
    choose(at, arms)
    assert at.chosen["fixed"] == [((7,),)] * 10
    assert at.training_calls == {"fixed": len(backend.asked), "none": None}
    assert 200 < len(backend.asked) <= 400
    assert fixed().choose(setting(answers_if_shown_7_last, shots=1)[0]) == at.chosen["fixed"]
    assert fixed().choose(setting(shots=2)[0]) != fixed().choose(setting(shots=2, seed=1)[0])


def test_a_query_that_may_not_be_shown_it_gets_the_next_best(seven):
    queries = [*QUERIES[:3], replace(QUERIES[3], image=POOL[7].image), *QUERIES[4:]]
    at, _ = setting(answers_if_shown_7_last, queries=queries, shots=1)
    found = choose(at, {"fixed": fixed()}).chosen["fixed"]
    assert found[:3] + found[4:] == [((7,),)] * 9
    assert found[3] != ((7,),)
    assert len(found[3][0]) == 1
    own = [replace(query, image=POOL[query.row].image) for query in QUERIES]
    with pytest.raises(InputError, match=r"query q\d may be shown none of the 1 pointers"):
        fixed(pointers=1).choose(setting(queries=own)[0])


def test_training_queries_are_not_asked_with_their_own_image(seven):
    at, backend = setting(lambda t: answers_if_shown_7_last(t).upper(), learned=POOL, shots=1)
    assert fixed(budget=900).choose(at) == [((7,),)] * 10
    assert backend.asked
    shown = [request.prompt.images for request in backend.asked]
    assert all(demonstration.key != query.key for demonstration, query in shown)


def test_if_every_trial_fails_it_says_so():
    with pytest.raises(InputError, match=r"arm fixed: all .* failed, the first with: off"):
        choose(setting(lambda text: BackendError("off"))[0], {"fixed": fixed()})


def test_an_arm_that_shows_a_training_query_its_own_image_is_found():
    at, backend = setting(learned=POOL)
    with pytest.raises(PluginError, match="training query p3 may not be shown row 3"):
        at.training.ask([(POOL[2], (3,)), (POOL[3], (4, 3))])
    assert backend.asked == []


@pytest.mark.parametrize("given", [{"pointers": 0}, {"budget": 383}, {"budget": 0, "pointers": 1}])
def test_a_budget_has_to_suffice_for_every_round(given):
    with pytest.raises(ValueError, match="must be at least"):
        FixedOptions(**given)
    FixedOptions(budget=384)
