"""The standard generators, with a real selector as the policy."""

import math
import re
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointer_rl.errors import InputError
from pointer_rl.selectors import PointerConfig, PointerSelector, SelectorPolicy
from pointer_rl.types import NO_ROW, Candidate, Decoded, Example, Pool, QueryBatch
from pointer_rl_standard.generators import (
    BeamGenerator,
    MMRGenerator,
    ProbeGenerator,
    RandomGenerator,
    RetrievalGenerator,
    SampleGenerator,
    best_rows,
    rows_by_answer,
)
from pointer_rl_standard.options import (
    BeamOptions,
    MMROptions,
    ProbeOptions,
    RandomOptions,
    RetrievalOptions,
    SampleOptions,
)

POLICY = SelectorPolicy(
    PointerSelector.seeded(
        PointerConfig(
            d_model=5, hidden_dim=4, num_layers=1, num_heads=1, history="gated", temperature=0.3
        ),
        0,
    )
)


def example(row):
    return Example(str(row), row, None, "what?", ("this",))


def batch(shots, counts, rows=9, seed=0, any_length=False):
    """One query a count: how many rows it may choose among."""
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.rand(len(counts), rows, generator=generator).argsort(-1)
    allowed = ranks < torch.tensor(counts).unsqueeze(-1)
    embeddings = torch.randn(len(counts), 5, generator=generator)
    queries = QueryBatch(
        [example(n) for n in range(len(counts))], embeddings, allowed, shots, any_length
    )
    pool = Pool([example(n) for n in range(rows)], torch.randn(rows, 5, generator=generator))
    return queries, pool


def rngs(queries, seed=0):
    return [np.random.default_rng([seed, b]) for b in range(len(queries.examples))]


GENERATORS = {
    "beam": BeamGenerator(BeamOptions()),
    "sample": SampleGenerator(SampleOptions()),
    "random": RandomGenerator(RandomOptions(num=3)),
    "retrieval": RetrievalGenerator(RetrievalOptions(num=3)),
    "mmr": MMRGenerator(MMROptions(num=3)),
    "probe": ProbeGenerator(ProbeOptions(num=3)),
}


@pytest.mark.parametrize("name", GENERATORS)
@settings(max_examples=20, deadline=None)
@given(
    shots=st.integers(1, 4),
    extra=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_pointers_are_of_allowed_rows_in_native_numbers(name, shots, extra, seed):
    queries, pool = batch(shots, [shots + each for each in extra], seed=seed)
    proposals = GENERATORS[name].propose(POLICY, queries, pool, rngs(queries))
    assert len(proposals) == len(queries.examples)
    for b, candidates in enumerate(proposals):
        rows = set(queries.allowed[b].nonzero().flatten().tolist())
        assert candidates
        for each in candidates:
            assert each.gen_method == name
            assert len(each.pointer) == len(set(each.pointer)) == shots
            assert set(each.pointer) <= rows
            assert {type(row) for row in each.pointer} == {int}
            for number in (each.beam_score, each.logprob_score, each.similarity_score):
                assert number is None or (type(number) is float and math.isfinite(number))


@pytest.mark.parametrize("name", GENERATORS)
def test_a_query_is_proposed_the_same_alone_and_in_a_batch(name):
    queries, pool = batch(2, [9, 5, 7])
    together = GENERATORS[name].propose(POLICY, queries, pool, rngs(queries))
    for b in range(3):
        one = QueryBatch(
            queries.examples[b : b + 1],
            queries.embeddings[b : b + 1],
            queries.allowed[b : b + 1],
            2,
        )
        alone = GENERATORS[name].propose(POLICY, one, pool, rngs(queries)[b : b + 1])[0]
        assert [each.pointer for each in alone] == [each.pointer for each in together[b]]


def test_beams_come_best_first_with_the_policys_log_prob():
    queries, pool = batch(2, [9, 2])
    many, few = BeamGenerator(BeamOptions(width=4)).propose(POLICY, queries, pool, rngs(queries))
    assert [each.beam_rank for each in many] == [0, 1, 2, 3]
    assert [each.beam_rank for each in few] == [0, 1], "two rows make two pointers"
    for b, candidates in enumerate((many, few)):
        rows = torch.tensor([each.pointer for each in candidates]).expand(2, -1, -1)
        expected = POLICY.log_prob(queries, pool, rows)[b].tolist()
        scores = [each.beam_score for each in candidates]
        assert scores == pytest.approx(expected, abs=1e-5)
        assert scores == sorted(scores, reverse=True)
        assert scores == [each.logprob_score for each in candidates]
        assert {(each.temperature, each.top_p, each.similarity_score) for each in candidates} == {
            (None, None, None)
        }


def test_samples_record_the_distribution_that_drew_them():
    queries, pool = batch(2, [9, 6])
    options = SampleOptions(temperatures=(0.5, 2.0), num_samples=3, top_p=0.9)
    proposals = SampleGenerator(options).propose(POLICY, queries, pool, rngs(queries))
    for b, candidates in enumerate(proposals):
        assert [each.temperature for each in candidates] == [0.5] * 3 + [2.0] * 3
        for each in candidates:
            rows = torch.tensor([[each.pointer]]).expand(2, 1, 2)
            expected = POLICY.log_prob(queries, pool, rows, each.temperature, 0.9)[b, 0]
            assert each.logprob_score == pytest.approx(float(expected), abs=1e-5)
            assert each.top_p == 0.9
            assert (each.beam_rank, each.beam_score, each.similarity_score) == (None, None, None)


def test_repeated_samples_are_left_in():
    queries, pool = batch(1, [1])
    candidates = SampleGenerator(SampleOptions()).propose(POLICY, queries, pool, rngs(queries))[0]
    assert len(candidates) == 4
    assert len({each.pointer for each in candidates}) == 1


def test_random_pointers_differ_until_there_are_no_more():
    queries, pool = batch(2, [4, 3, 2, 1])
    proposals = RandomGenerator(RandomOptions(num=7)).propose(POLICY, queries, pool, rngs(queries))
    pointers = [[each.pointer for each in candidates] for candidates in proposals]
    assert [len(each) for each in pointers] == [7, 6, 2, 0]
    assert all(len(set(each)) == len(each) for each in pointers)
    rows = queries.allowed[1].nonzero().flatten().tolist()
    assert set(pointers[1]) == set(permutations(rows, 2))
    first = proposals[0][0]
    assert (first.beam_rank, first.beam_score, first.logprob_score) == (None, None, None)
    assert (first.temperature, first.top_p, first.similarity_score) == (None, None, None)


def test_random_pointers_are_uniform():
    queries, pool = batch(2, [4] * 6000)
    queries.allowed[:] = queries.allowed[0].clone()
    proposals = RandomGenerator(RandomOptions(num=1)).propose(POLICY, queries, pool, rngs(queries))
    counts: dict[tuple[int, ...], int] = {}
    for candidates in proposals:
        counts[candidates[0].pointer] = counts.get(candidates[0].pointer, 0) + 1
    assert len(counts) == 12
    assert max(abs(each - 500) for each in counts.values()) < 4.5 * math.sqrt(500 * 11 / 12)


def test_random_draws_follow_the_generator_alone():
    queries, pool = batch(3, [9, 9])
    generator = RandomGenerator(RandomOptions(num=4))
    one, two, other = (
        generator.propose(POLICY, queries, pool, rngs(queries, seed)) for seed in (0, 0, 1)
    )
    assert one == two
    assert one != other


def test_retrieval_ranks_by_cosine_and_shows_the_most_similar_last():
    angles = torch.tensor([50.0, 10.0, 40.0, 0.0, 20.0, 30.0]).deg2rad()
    lengths = torch.tensor([9.0, 1.0, 5.0, 2.0, 3.0, 0.5])
    embeddings = torch.stack([angles.cos() * lengths, angles.sin() * lengths], dim=-1)
    pool = Pool([example(n) for n in range(6)], embeddings)
    allowed = torch.tensor([[True, True, True, False, True, True]])
    queries = QueryBatch([example(0)], torch.tensor([[7.0, 0.0]]), allowed, 2)
    generator = RetrievalGenerator(RetrievalOptions(num=3))
    candidates = generator.propose(POLICY, queries, pool, rngs(queries))[0]
    assert [each.pointer for each in candidates] == [(4, 1), (2, 5)], "five rows fill two pointers"
    cosines = [math.cos(math.radians(angle)) for angle in (10, 20, 30, 40)]
    expected = [sum(cosines[:2]) / 2, sum(cosines[2:]) / 2]
    assert [each.similarity_score for each in candidates] == pytest.approx(expected, abs=1e-6)
    assert {(each.beam_score, each.logprob_score, each.temperature) for each in candidates} == {
        (None, None, None)
    }


def test_retrieval_takes_the_lowest_of_equal_rows():
    pool = Pool([example(n) for n in range(4)], torch.ones(4, 2))
    queries = QueryBatch([example(0)], torch.ones(1, 2), torch.ones(1, 4, dtype=torch.bool), 2)
    candidates = RetrievalGenerator(RetrievalOptions(num=2)).propose(
        POLICY, queries, pool, rngs(queries)
    )[0]
    assert [each.pointer for each in candidates] == [(1, 0), (3, 2)]


def test_retrieval_with_fewer_rows_than_shots_gives_nothing():
    queries, pool = batch(3, [2, 3])
    proposals = RetrievalGenerator(RetrievalOptions()).propose(POLICY, queries, pool, rngs(queries))
    assert [len(each) for each in proposals] == [0, 1]


def test_retrieval_refuses_embeddings_that_are_not_finite():
    queries, pool = batch(2, [9])
    pool.embeddings[3, 1] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        RetrievalGenerator(RetrievalOptions()).propose(POLICY, queries, pool, rngs(queries))


@settings(max_examples=30, deadline=None)
@given(
    shots=st.integers(1, 3),
    num=st.integers(1, 3),
    relevance=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    seed=st.integers(0, 99),
)
def test_mmr_is_its_formula(shots, num, relevance, seed):
    """Row by row in float64, as Carbonell & Goldstein write it; ties do not occur."""
    queries, pool = batch(shots, [9, 5, 3], seed=seed)
    proposals = MMRGenerator(MMROptions(num=num, relevance=relevance)).propose(
        POLICY, queries, pool, rngs(queries)
    )
    rows = pool.embeddings.double().numpy()
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    for b, candidates in enumerate(proposals):
        query = queries.embeddings[b].double().numpy()
        cosines = rows @ query / np.linalg.norm(query)
        left, chosen = queries.allowed[b].nonzero().flatten().tolist(), []
        while left and len(chosen) < num * shots:

            def worth(row, chosen=chosen, cosines=cosines):
                redundancy = max((rows[row] @ rows[other] for other in chosen), default=0.0)
                return relevance * cosines[row] - (1 - relevance) * redundancy

            # Without relevance the first row is any; the implementation takes the lowest.
            chosen.append(max(left, key=worth))
            left.remove(chosen[-1])
        count = len(chosen) // shots
        pointers = [tuple(chosen[n * shots : (n + 1) * shots][::-1]) for n in range(count)]
        assert [each.pointer for each in candidates] == pointers
        expected = [float(np.mean(cosines[list(pointer)])) for pointer in pointers]
        scores = [each.similarity_score for each in candidates]
        assert scores == pytest.approx(expected, abs=1e-5)


def test_mmr_by_relevance_alone_is_retrieval():
    queries, pool = batch(2, [9, 6, 5])
    proposals = [
        generator.propose(POLICY, queries, pool, rngs(queries))
        for generator in (
            MMRGenerator(MMROptions(num=3, relevance=1)),
            RetrievalGenerator(RetrievalOptions(num=3)),
        )
    ]
    mmr, retrieval = (
        [[(each.pointer, each.similarity_score) for each in mine] for mine in found]
        for found in proposals
    )
    assert mmr == retrieval


def test_mmr_does_not_show_a_row_twice_that_says_the_same():
    """Two copies of the most similar row: the second of them is redundant."""
    pool = Pool([example(n) for n in range(3)], torch.tensor([[1.0, 0.1], [1.0, 0.1], [0.6, -0.8]]))
    queries = QueryBatch([example(0)], torch.tensor([[1.0, 0.0]]), torch.ones(1, 3).bool(), 2)
    found = [
        MMRGenerator(MMROptions(relevance=relevance)).propose(POLICY, queries, pool, rngs(queries))
        for relevance in (0.5, 1.0)
    ]
    assert [each[0][0].pointer for each in found] == [(2, 0), (1, 0)]


@pytest.mark.parametrize("by", ["similarity", "policy"])
@pytest.mark.parametrize("shots", [1, 2, 4])
def test_probes_differ_in_their_first_row_alone(by, shots):
    queries, pool = batch(shots, [9, 8, 6])
    generator = ProbeGenerator(ProbeOptions(num=3, by=by))
    for candidates in generator.propose(POLICY, queries, pool, rngs(queries)):
        first = [each.pointer[0] for each in candidates]
        beside = {each.pointer[1:] for each in candidates}
        assert len(set(first)) == 3
        assert len(beside) == 1
        assert not set(first) & set(*beside), "what stands beside is not probed itself"
        scores = {(each.beam_rank, each.beam_score, each.logprob_score) for each in candidates}
        assert scores == {(None, None, None)}


def test_probes_of_the_policy_are_its_top_rows_and_of_similarity_the_most_similar():
    queries, pool = batch(2, [9, 5])
    first = {
        by: [
            [each.pointer[0] for each in candidates]
            for candidates in ProbeGenerator(ProbeOptions(num=3, by=by)).propose(
                POLICY, queries, pool, rngs(queries)
            )
        ]
        for by in ("policy", "similarity")
    }
    alone = QueryBatch(queries.examples, queries.embeddings, queries.allowed, 1)
    assert first["policy"] == POLICY.beam(alone, pool, 3).rows.squeeze(-1).tolist()
    cosine = torch.cosine_similarity(queries.embeddings.unsqueeze(1), pool.embeddings, dim=-1)
    cosine[~queries.allowed] = -2
    assert first["similarity"] == cosine.topk(3).indices.tolist()
    assert first["policy"] != first["similarity"]


@pytest.mark.parametrize("by", ["similarity", "policy"])
def test_with_too_few_rows_fewer_are_probed(by):
    """Of five, four and three allowed rows, two stand beside the probed ones."""
    queries, pool = batch(3, [9, 5, 4, 3, 2])
    proposals = ProbeGenerator(ProbeOptions(num=4, by=by)).propose(
        POLICY, queries, pool, rngs(queries)
    )
    assert [len(each) for each in proposals] == [4, 3, 2, 1, 0]


def test_what_stands_beside_the_probes_is_drawn_anew_with_each_seed():
    queries, pool = batch(2, [9] * 6)
    generator = ProbeGenerator(ProbeOptions(num=2))
    one, two, other = (
        generator.propose(POLICY, queries, pool, rngs(queries, seed)) for seed in (0, 0, 1)
    )
    assert one == two
    assert one != other
    assert [each[0].pointer[0] for each in one] == [each[0].pointer[0] for each in other]


class StoppingPolicy:
    """Proposes fixed pointers, shorter ones padded with NO_ROW."""

    def __init__(self, *pointers):
        self.pointers = pointers

    def decoded(self, queries, count, shots):
        rows = [[*pointer, *[NO_ROW] * (shots - len(pointer))] for pointer in self.pointers]
        found = torch.tensor([rows[:count]] * len(queries.examples))
        return Decoded(found, -torch.arange(found.shape[1]).expand(found.shape[:2]).float())

    def beam(self, queries, pool, width):
        return self.decoded(queries, width, queries.shots)

    def sample(self, queries, pool, num_samples, rngs, temperature=1.0, top_p=1.0):
        return self.decoded(queries, num_samples, queries.shots)


@pytest.mark.parametrize("name", ["beam", "sample"])
def test_pointers_end_where_the_policy_stopped(name):
    queries, pool = batch(3, [9, 9])
    pointers = [(4, 1), (), (2, 0, 3), (5,)]
    options = {
        "beam": BeamOptions(width=4),
        "sample": SampleOptions(temperatures=(1.0,), num_samples=4),
    }
    generator = {"beam": BeamGenerator, "sample": SampleGenerator}[name](options[name])
    for candidates in generator.propose(StoppingPolicy(*pointers), queries, pool, rngs(queries)):
        assert [each.pointer for each in candidates] == pointers


def test_a_policy_that_stops_at_once_leaves_a_probe_less():
    queries, pool = batch(2, [9])
    generator = ProbeGenerator(ProbeOptions(num=3, by="policy"))
    policy = StoppingPolicy((4,), (), (2,))
    (candidates,) = generator.propose(policy, queries, pool, rngs(queries))
    assert [each.pointer[0] for each in candidates] == [4, 2]


# --- any length -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GENERATORS)
@settings(max_examples=20, deadline=None)
@given(shots=st.integers(1, 4), count=st.integers(0, 9), seed=st.integers(0, 99))
def test_pointers_of_any_length_are_of_different_allowed_rows(name, shots, count, seed):
    if name in ("beam", "sample"):
        return  # the policy decides
    queries, pool = batch(shots, [count], seed=seed, any_length=True)
    (candidates,) = GENERATORS[name].propose(POLICY, queries, pool, rngs(queries))
    rows = set(queries.allowed[0].nonzero().flatten().tolist())
    pointers = [each.pointer for each in candidates]
    assert len(set(pointers)) == len(pointers)
    for each in pointers:
        assert len(set(each)) == len(each) <= shots
        assert set(each) <= rows
        assert {type(row) for row in each} <= {int}


def test_random_pointers_of_any_length_are_of_every_length():
    queries, pool = batch(3, [9, 2, 0], any_length=True)
    generator = RandomGenerator(RandomOptions(num=400))
    many, few, none = generator.propose(POLICY, queries, pool, rngs(queries))
    counts = [sum(len(each.pointer) == length for each in many) for length in range(4)]
    assert counts[:2] == [1, 9], "all that there are"
    assert min(counts[2:]) > 60
    rows = queries.allowed[1].nonzero().flatten().tolist()
    every = {(), *((row,) for row in rows), *permutations(rows, 2)}
    assert {each.pointer for each in few} == every
    assert [each.pointer for each in none] == [()]


@pytest.mark.parametrize("name", ["retrieval", "mmr"])
def test_the_most_similar_rows_of_each_length(name):
    """Those of each length are what is proposed for as many shots."""
    queries, pool = batch(3, [9, 5], any_length=True)
    proposals = GENERATORS[name].propose(POLICY, queries, pool, rngs(queries))
    for b, candidates in enumerate(proposals):
        expected = [Candidate((), name)]
        for shots in (1, 2, 3):
            fixed = replace(queries, shots=shots, any_length=False)
            expected += GENERATORS[name].propose(POLICY, fixed, pool, rngs(queries))[b]
        assert candidates == expected
    assert len(proposals[1]) == 1 + 3 + 2 + 1


def test_probes_of_any_length_are_no_row_and_single_rows():
    queries, pool = batch(3, [9, 1], any_length=True)
    for by in ("similarity", "policy"):
        generator = ProbeGenerator(ProbeOptions(num=4, by=by))
        many, few = generator.propose(POLICY, queries, pool, rngs(queries))
        (ranked, _) = best_rows(POLICY, queries, pool, 3, by)
        assert [each.pointer for each in many] == [(), *((row,) for row in ranked)]
        assert [len(each.pointer) for each in few] == [0, 1]


# --- rows by their answers --------------------------------------------------------------------


def words_of(answer):
    return " ".join(re.findall(r"\w+", answer.lower()))


def occurs(part, answer):
    return f" {part} " in f" {words_of(answer)} "


@settings(max_examples=60, deadline=None)
@given(
    num=st.integers(1, 9),
    by=st.sampled_from(["similarity", "policy"]),
    answers=st.lists(st.sampled_from(["red", "Red", "blue", "red  cat", "cats", ""]), min_size=9),
    of_queries=st.lists(
        st.sampled_from(["red", "RED cat", "blue-cat-red", ""]), min_size=2, max_size=2
    ),
)
def test_rows_with_the_answer_of_the_query_and_others_in_turn(num, by, answers, of_queries):
    queries, pool = batch(1, [9, 6])
    queries = replace(
        queries,
        examples=[
            replace(each, answers=("blue", own, own))
            for each, own in zip(queries.examples, of_queries, strict=True)
        ],
    )
    pool = replace(
        pool,
        examples=[
            replace(each, answers=(own,)) for each, own in zip(pool.examples, answers, strict=False)
        ],
    )
    found = rows_by_answer(POLICY, queries, pool, num, by)
    everything = best_rows(POLICY, queries, pool, 9, by)
    for own, ranked, rows in zip(of_queries, everything, found, strict=True):
        words = [words_of(each) for each in answers]
        matching = [row for row in ranked if words[row] and occurs(words[row], own)]
        others = [row for row in ranked if row not in matching]
        matching = matching[:num]
        first = [
            row for row in matching if row == next(r for r in matching if words[r] == words[row])
        ]
        turns = [[*first, *(row for row in matching if row not in first)], others]
        expected = []
        while any(turns):
            expected += turns[0][:1]
            turns = [turns[1], turns[0][1:]]
        assert rows == expected[:num]
