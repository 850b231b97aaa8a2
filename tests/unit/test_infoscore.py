"""InfoScore and its beam search, against naive float64 over a table of probabilities."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointer_rl.beams.infoscore import AnswerScorer, answers_logprob, most_trials, search
from pointer_rl.beams.sub_pools import SubPools
from pointer_rl.datasets.images import ImageBytes
from pointer_rl.datasets.leakage import AllowedRows
from pointer_rl.errors import InputError, PluginError
from pointer_rl.session.judge import Trial
from pointer_rl.session.similarity import Space
from pointer_rl.testing import example
from pointer_rl.types import BackendError, Message, Pool, Prompt, Response

POOL = [example(row) for row in range(6)]
TWELVE = [example(row) for row in range(12)]
ANSWERS = ("a", "b", "a", "c", "a", "b")
QUERIES = [
    example(100, id="q0", answers=ANSWERS),
    example(101, id="q1", answers=("d",)),
    example(102, id="q2", answers=("a", "d")),
]


class Shown:
    """A prompt that says the query's id and the rows shown."""

    def build(self, query, demonstrations):
        if query.id == "unbuildable":
            raise InputError("no prompt for it")
        return Prompt((Message("user", (query.id, *(each.id for each in demonstrations))),))


def probability(seed, query_id, shown, answer):
    """The table: what the fake backend says of an answer, whatever else is asked."""
    return random.Random(f"{seed}/{query_id}/{shown}/{answer}").random() * 0.3


class Table:
    """Scores by `probability`; fails where `fails` says so. Last request first."""

    fingerprint = "table"

    def __init__(self, seed=0, fails=lambda query_id, shown: False):
        self.seed, self.fails = seed, fails
        self.asked = []

    def run(self, requests):
        self.asked += requests
        for index in reversed(range(len(requests))):
            query_id, *shown = requests[index].prompt.messages[0].parts
            if self.fails(query_id, tuple(shown)):
                yield index, BackendError(f"no {query_id} after {shown}")
                continue
            scores = [
                probability(self.seed, query_id, tuple(shown), answer)
                for answer in requests[index].score
            ]
            yield index, Response(None, tuple(map(math.log, scores)))


def naive_logprob(seed, query, pointer):
    """log Σ over annotators of P(what each said) / number of annotators."""
    shown = tuple(POOL[row].id for row in pointer)
    total = sum(probability(seed, query.id, shown, answer) for answer in query.answers)
    return math.log(total / len(query.answers))


def naive_beams(seed, query, rows, shots, width):
    """The same search, written as it is said: (pointer, steps) of the best."""
    beams = [()]
    for _ in range(shots):
        longer = [(*beam, row) for beam in beams for row in rows if row not in beam]
        longer.sort(key=lambda pointer: naive_logprob(seed, query, pointer), reverse=True)
        beams = longer[:width]
    return beams


def found(backend, rows, queries=QUERIES, **options):
    options = {"any_length": False, **options}
    return search(queries, [rows] * len(queries), POOL, AnswerScorer(Shown(), backend), **options)


@pytest.mark.parametrize("shots", [1, 2, 3])
@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_naive_beam_search(seed, shots, width):
    rows = [0, 2, 3, 5]
    results = found(Table(seed), rows, shots=shots, beam_size=width)
    for query, result in zip(QUERIES, results, strict=True):
        expected = naive_beams(seed, query, rows, shots, width)
        assert [beam.pointer for beam in result.beams] == expected
        assert result.logprob == pytest.approx(naive_logprob(seed, query, ()))
        for beam in result.beams:
            before = [naive_logprob(seed, query, beam.pointer[:n]) for n in range(shots + 1)]
            steps = [after - earlier for earlier, after in itertools.pairwise(before)]
            assert beam.step_scores == pytest.approx(steps)
            assert beam.score == pytest.approx(before[-1] - before[0])


@pytest.mark.parametrize("seed", range(8))
def test_beams_of_any_length_end_where_the_answers_are_likeliest(seed):
    rows = [0, 2, 3, 5]
    cut = found(Table(seed), rows, shots=3, beam_size=4, any_length=True)
    lengths = set()
    for query, result in zip(QUERIES, cut, strict=True):
        expected = {
            max((beam[:n] for n in range(4)), key=lambda each: naive_logprob(seed, query, each))
            for beam in naive_beams(seed, query, rows, 3, 4)
        }
        assert {beam.pointer for beam in result.beams} == expected
        assert len(result.beams) == len(expected)
        scores = [beam.score for beam in result.beams]
        assert scores == sorted(scores, reverse=True)
        for beam in result.beams:
            assert len(beam.step_scores) == len(beam.pointer)
            gain = naive_logprob(seed, query, beam.pointer) - naive_logprob(seed, query, ())
            assert beam.score == pytest.approx(gain, abs=1e-12)
            assert math.fsum(beam.step_scores) == beam.score
        lengths |= {len(beam.pointer) for beam in result.beams}
    assert len(lengths) > 1


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(3, 5))
def test_as_many_beams_as_pointers_is_exhaustive_search(seed, shots, size):
    every = list(itertools.permutations(range(size), shots))
    [result] = found(
        Table(seed), range(size), QUERIES[:1], shots=shots, beam_size=math.perm(size, shots)
    )
    every.sort(key=lambda pointer: naive_logprob(seed, QUERIES[0], pointer), reverse=True)
    assert [beam.pointer for beam in result.beams] == every


@given(
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=12),
    st.lists(st.floats(-80, 0), min_size=4, max_size=4),
)
def test_answers_are_weighted_by_the_annotators_who_gave_them(answers, logprobs):
    distinct = list(dict.fromkeys(answers))
    of = dict(zip(distinct, logprobs, strict=False))
    expected = math.log(sum(math.exp(of[answer]) for answer in answers) / len(answers))
    assert answers_logprob(answers, [of[each] for each in distinct]) == pytest.approx(expected)


def test_probabilities_below_the_smallest_float_are_told_apart():
    assert answers_logprob(("a", "b"), (-2000.0, -3000.0)) == pytest.approx(-2000 - math.log(2))
    assert answers_logprob(("a", "b"), (-math.inf, -3000.0)) == pytest.approx(-3000 - math.log(2))
    assert answers_logprob(("a", "b"), (-math.inf, -math.inf)) == -math.inf


def test_only_scores_are_asked_for_each_prompt_once_within_the_promised_number():
    for shots, width, size in itertools.product((1, 2, 3), (1, 4, 50), (3, 6)):
        backend = Table()
        found(backend, range(size), QUERIES[:1], shots=shots, beam_size=width)
        asked = [request.prompt for request in backend.asked]
        assert len(asked) == len(set(asked)) == most_trials(size, shots, width)
        assert {request.decoding for request in backend.asked} == {None}
        assert {request.score for request in backend.asked} == {("a", "b", "c")}


def test_of_equals_the_earlier_row_is_kept():
    class Flat(Table):
        def run(self, requests):
            for index in reversed(range(len(requests))):
                yield index, Response(None, (-1.0,) * len(requests[index].score))

    [result] = found(Flat(), [1, 3, 4], QUERIES[:1], shots=2, beam_size=3)
    assert [beam.pointer for beam in result.beams] == [(1, 3), (1, 4), (3, 1)]
    assert {beam.score for beam in result.beams} == {0.0}


def test_a_failed_trial_takes_its_row_from_its_beam_at_its_step():
    best = naive_beams(0, QUERIES[0], range(6), 2, 720)
    first = best[0][0]

    def fails(query_id, shown):
        return query_id == "q0" and shown == tuple(POOL[row].id for row in best[0])

    failures = []
    results = found(
        Table(0, fails),
        range(6),
        shots=2,
        beam_size=720,
        on_trial=lambda query, result: isinstance(result, BackendError) and failures.append(result),
    )
    assert [beam.pointer for beam in results[0].beams] == best[1:]
    assert any(first in beam.pointer for beam in results[0].beams)
    assert len(failures) == 1
    assert [beam.pointer for beam in results[1].beams] == naive_beams(
        0, QUERIES[1], range(6), 2, 720
    )


@pytest.mark.parametrize(
    "fails",
    [
        lambda query_id, shown: query_id == "q1" and not shown,
        lambda query_id, shown: query_id == "q1" and len(shown) == 1,
        lambda query_id, shown: query_id == "q1" and len(shown) == 2,
    ],
    ids=["without demonstrations", "at the first step", "at the last step"],
)
def test_a_query_without_a_score_has_no_beams_and_the_others_have_theirs(fails):
    results = found(Table(0, fails), range(4), shots=2, beam_size=2)
    assert results[1] is None
    for query, result in ((QUERIES[0], results[0]), (QUERIES[2], results[2])):
        assert [beam.pointer for beam in result.beams] == naive_beams(0, query, range(4), 2, 2)


def test_what_cannot_be_scored_fails_and_says_why():
    class Impossible(Table):
        def run(self, requests):
            for index, request in enumerate(requests):
                value = math.nan if request.score == ("d",) else -math.inf
                yield index, Response(None, (value,) * len(request.score))

    silent = example(7, id="silent", answers=())
    unbuildable = example(8, id="unbuildable")
    queries = [*QUERIES[:2], silent, unbuildable]
    scored = dict(
        AnswerScorer(Shown(), Impossible()).score([Trial(query, []) for query in queries])
    )
    assert "answers of query q0 have the probability 0" in scored[0].message
    assert scored[1].message == "the backend returned NaN as a log-probability"
    assert scored[2].message == "query silent has no annotators' answers"
    assert scored[3].message == "no prompt for it"


def test_a_backend_that_returns_no_scores_is_named():
    class Writes(Table):
        def run(self, requests):
            yield from ((index, Response("text")) for index in range(len(requests)))

    with pytest.raises(PluginError, match="table returned 0 log-probabilities for 3 answers"):
        found(Writes(), range(2), shots=1, beam_size=1)


class TestSubPools:
    def test_random_rows_are_of_the_query_and_the_seed_alone(self):
        queries = [example(50 + row, id=f"q{row}") for row in range(4)]
        drawn = [
            SubPools(AllowedRows(TWELVE), 5, seed).draw(index, query).rows
            for seed in (0, 1)
            for index, query in enumerate(queries)
        ]
        again = SubPools(AllowedRows(TWELVE), 5, 0)
        assert [again.draw(0, query).rows for query in reversed(queries)] == drawn[:4][::-1]
        assert len({tuple(rows) for rows in drawn}) > 4
        for rows in drawn:
            assert len(set(rows)) == 5
            assert rows == sorted(rows)

    @pytest.mark.parametrize("size", [3, 11, 20])
    def test_never_the_querys_own_image(self, size):
        examples = [*TWELVE, example(12, image=ImageBytes(b"3", "a copy"))]
        query = examples[3]
        for seed in range(20):
            drawn = SubPools(AllowedRows(examples), size, seed).draw(0, query)
            assert not {3, 12} & set(drawn.rows)
            assert drawn.is_whole == (size >= 11)

    def test_the_most_similar_by_cosine_that_are_allowed(self):
        import torch

        generator = torch.Generator().manual_seed(3)
        vectors = torch.randn(12, 5, generator=generator)
        asked = torch.stack([torch.randn(5, generator=generator), vectors[2]])
        space = Space(asked, Pool(TWELVE, vectors * 7))
        pools = SubPools(AllowedRows(TWELVE), 4, 0, space)
        for index, query in enumerate((example(60), TWELVE[2])):
            cosines = {
                row: float(asked[index] @ vectors[row] / vectors[row].norm())
                for row in range(12)
                if row != query.row
            }
            expected = sorted(sorted(cosines, key=lambda row: -cosines[row])[:4])
            assert pools.draw(index, query).rows == expected
