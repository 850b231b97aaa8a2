"""The standard searches, told made-up outcomes."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plugins.test_generators import POLICY, batch, rngs

from pointer_rl.train.credit import credited_steps
from pointer_rl.types import NO_ROW, Outcome, QueryBatch
from pointer_rl_standard.generators import ProbeGenerator, best_rows
from pointer_rl_standard.options import FirstSuccessOptions, GreedyOptions, ProbeOptions
from pointer_rl_standard.searches import FirstSuccess, Greedy

FAILED = Outcome(failure="the backend did not answer")


def run(generator, queries, pool, judge, seed=0):
    """What each query's search asks for, round by round. `judge(query, pointer)` is an accuracy,
    an outcome, or None for a trial that failed."""

    def outcome(query, pointer):
        found = judge(query, pointer)
        if isinstance(found, Outcome):
            return found
        return FAILED if found is None else Outcome("x", "x", found > 0, found)

    asked = []
    for query, search in enumerate(generator.start(POLICY, queries, pool, rngs(queries, seed))):
        rounds = []
        while candidates := list(search.ask()):
            rounds.append([each.pointer for each in candidates])
            search.tell([(each, outcome(query, each.pointer)) for each in candidates])
        asked.append(rounds)
    return asked


def flat(rounds):
    return [pointer for each in rounds for pointer in each]


def probes(queries, pool, num, by="similarity"):
    generator = ProbeGenerator(ProbeOptions(num=num, by=by))
    found = generator.propose(POLICY, queries, pool, rngs(queries))
    return [[each.pointer for each in mine] for mine in found]


# --- first-success ----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    shots=st.integers(1, 3),
    budget=st.integers(2, 8),
    by=st.sampled_from(["similarity", "policy"]),
    accuracies=st.lists(st.sampled_from([None, 0.0, 0.3, 0.6, 1.0]), min_size=9, max_size=9),
)
def test_first_success_asks_probes_until_there_is_something_to_compare(
    shots, budget, by, accuracies
):
    """The shortest beginning of the probes, of two at least, with a success and a failure."""
    queries, pool = batch(shots, [9, 6])
    generator = FirstSuccess(FirstSuccessOptions(budget=budget, by=by))
    asked = run(generator, queries, pool, lambda query, pointer: accuracies[pointer[0]])
    for rounds, all_probes in zip(asked, probes(queries, pool, budget, by), strict=True):
        judged = [accuracies[pointer[0]] for pointer in all_probes]
        expected = next(
            (
                all_probes[:n]
                for n in range(2, len(judged) + 1)
                if {each >= 0.5 for each in judged[:n] if each is not None} == {True, False}
            ),
            all_probes,
        )
        assert flat(rounds) == expected
        assert len(flat(rounds)) <= budget
        assert [len(each) for each in rounds[:1]] == [min(2, len(all_probes))]


def test_what_a_success_is_can_be_set():
    queries, pool = batch(1, [9])
    first = probes(queries, pool, 4)[0][0]
    asked = {
        success: run(
            FirstSuccess(FirstSuccessOptions(budget=4, success=success)),
            queries,
            pool,
            lambda query, pointer: 0.3 if pointer == first else 0.0,
        )
        for success in (0.3, 0.31)
    }
    assert [len(flat(asked[success][0])) for success in asked] == [2, 4]


def test_a_query_whose_trials_all_fail_or_all_succeed_takes_its_budget():
    queries, pool = batch(2, [9])
    generator = FirstSuccess(FirstSuccessOptions(budget=5))
    for accuracy in (None, 0.0, 1.0):
        (rounds,) = run(generator, queries, pool, lambda *_, accuracy=accuracy: accuracy)
        assert len(flat(rounds)) == 5


def needs(*parts, power=2):
    """Right if a row of each part is shown; one part makes the answers much likelier."""

    def judge(query, pointer):
        missing = sum(not set(pointer) & set(part) for part in parts)
        return Outcome(
            "x", "x", not missing, float(not missing), gt_prob=math.exp(-15 * missing**power)
        )

    return judge


@settings(max_examples=60, deadline=None)
@given(
    shots=st.integers(2, 4),
    pair=st.permutations(range(5)),
    by=st.sampled_from(["similarity", "policy"]),
    any_length=st.booleans(),
)
def test_first_success_finds_a_pair_in_one_pass_and_leaves_each_row_out(
    shots, pair, by, any_length
):
    queries, pool = batch(shots, [12], rows=12, any_length=any_length)
    ranked = best_rows(POLICY, queries, pool, 12, by)[0]
    one, two = ranks = sorted(pair[:2])
    judge = needs([ranked[one]], [ranked[two]])
    # A trial a row, and: without rows, rows that the policy would choose after it, each row left
    # out.
    budget = 9 - shots + two
    generator = FirstSuccess(FirstSuccessOptions(budget=budget, by=by))
    (asked,) = run(generator, queries, pool, judge)
    pointers = flat(asked)
    assert len(set(pointers)) == len(pointers) <= budget
    success = next(each for each in pointers if judge(0, each).correct)
    assert success[:2] == tuple(ranked[rank] for rank in ranks)
    for row in success[:2]:
        (others,) = {*success[:2]} - {row}
        assert any(others in each and row not in each for each in pointers)
    # So both rows are trained, the first one too, whose worth depends on the second.
    padded = np.array([[*each, *[NO_ROW] * (shots - len(each))] for each in pointers])
    rewards = np.array([judge(0, each).accuracy for each in pointers], dtype=np.float32)
    credited = credited_steps(padded, rewards, np.zeros(len(pointers), dtype=np.int64))
    assert credited[pointers.index(success), :2].all()


def test_first_success_finds_three_rows_each_of_which_brings_a_third():
    queries, pool = batch(4, [9], any_length=True)
    ranked = best_rows(POLICY, queries, pool, 9, "similarity")[0]
    wanted = [ranked[rank] for rank in (1, 3, 4)]
    generator = FirstSuccess(FirstSuccessOptions(budget=20))
    (asked,) = run(generator, queries, pool, needs(*([row] for row in wanted), power=1))
    assert tuple(wanted) in flat(asked)


def test_first_success_without_probabilities_finds_no_set():
    queries, pool = batch(2, [9], any_length=True)
    generator = FirstSuccess(FirstSuccessOptions(budget=8))
    (asked,) = run(generator, queries, pool, lambda *_: 0.0)
    assert [len(each) for each in flat(asked)] == [0, 1, 1, 1, 1, 1, 1, 1]


def test_first_success_with_probabilities_asks_what_the_companions_are_worth():
    """Where every row helps as much, only a pointer without them shows that they do."""
    queries, pool = batch(2, [9])
    ranked = best_rows(POLICY, queries, pool, 5, "similarity")[0]
    generator = FirstSuccess(FirstSuccessOptions(budget=7))
    (asked,) = run(generator, queries, pool, needs(ranked[:2], ranked[2:]))
    pointers = flat(asked)
    assert not set(pointers[2]) & set(ranked)
    assert pointers[3:5] == [(ranked[0], ranked[1]), (ranked[0], ranked[2])]


def test_first_success_of_any_length_begins_with_no_demonstration():
    queries, pool = batch(2, [9], any_length=True)
    generator = FirstSuccess(FirstSuccessOptions(budget=8))
    (rounds,) = run(generator, queries, pool, lambda _, pointer: float(not pointer))
    assert [[len(each) for each in asked] for asked in rounds] == [[0, 1]]
    (rounds,) = run(generator, queries, pool, lambda _, pointer: float(len(pointer) == 1))
    assert [[len(each) for each in asked] for asked in rounds] == [[0, 1]]


def test_beside_a_row_the_rest_of_the_policys_likeliest_pointer_comes_first():
    """It may rank the second row differently once it has chosen the first one."""
    queries, pool = batch(2, [9], seed=16, any_length=True)
    one, two = POLICY.beam(queries, pool, 1).pointers()[0][0]
    ranked = best_rows(POLICY, queries, pool, 9, "policy")[0]
    assert ranked[0] == one
    assert ranked[1] != two
    generator = FirstSuccess(FirstSuccessOptions(budget=9, by="policy"))
    (asked,) = run(generator, queries, pool, needs([one], [two]))
    assert flat(asked) == [(), (one,), (one, two), (two,)]


def test_first_success_tries_rows_with_the_answer_and_others_in_turn():
    queries, pool = batch(2, [9])
    pool = replace(
        pool,
        examples=[
            replace(each, answers=("this" if each.row in (2, 7) else "that",))
            for each in pool.examples
        ],
    )

    def asked(answers, judge):
        generator = FirstSuccess(FirstSuccessOptions(budget=6, answers=answers))
        (rounds,) = run(generator, queries, pool, lambda query, pointer: judge(pointer[0]))
        return [pointer[0] for pointer in flat(rounds)]

    ranked = asked(False, lambda row: 0.0)
    matching, others = (
        [row for row in ranked if (row in (2, 7)) is each] for each in (True, False)
    )
    assert asked(True, lambda row: float(row in (2, 7))) == [matching[0], others[0]]
    found = asked(True, lambda row: 0.0)
    assert found == [matching[0], others[0], matching[1], *others[1:4]]


# --- greedy -----------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    shots=st.integers(1, 3),
    budget=st.integers(2, 12),
    worths=st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3]), min_size=9, max_size=9),
)
def test_greedy_keeps_the_best_row_of_each_place(shots, budget, worths):
    """Against a loop that looks for the best pointer place by place."""
    queries, pool = batch(shots, [9])
    num = max(1, budget // shots)
    (start,) = probes(queries, pool, num)

    def worth(query, pointer):
        return sum((place + 1) * worths[row] for place, row in enumerate(pointer)) / 9

    (rounds,) = run(Greedy(GreedyOptions(budget=budget)), queries, pool, worth)
    expected, tries = [], start
    ranked = best_rows(POLICY, queries, pool, budget, "similarity")[0]
    seen = [pointer[0] for pointer in start]
    for place in range(shots):
        if not tries:
            break
        expected.append(tries)
        chosen, *others = sorted(tries, key=lambda pointer: -worth(0, pointer))
        old = [pointer[place] for pointer in others]
        rows = [*old[:2], *(row for row in ranked if row not in seen), *old[2:]]
        rows = [row for row in rows if row not in chosen][:num]
        seen += rows
        tries = [(*chosen[: place + 1], row, *chosen[place + 2 :]) for row in rows]
    assert len(flat(rounds)) <= budget
    assert rounds == expected
    assert len(set(flat(rounds))) == len(flat(rounds))


def test_greedy_ends_where_nothing_can_be_better():
    queries, pool = batch(2, [9])
    (start,) = probes(queries, pool, 3)
    judge = {start[1]: 1.0}
    (rounds,) = run(
        Greedy(GreedyOptions(budget=6)), queries, pool, lambda _, pointer: judge.get(pointer, 0.0)
    )
    assert rounds == [start]


def test_greedy_of_equal_accuracies_takes_the_likelier_answers():
    queries, pool = batch(2, [9])
    (start,) = probes(queries, pool, 3)

    def judge(query, pointer):
        return Outcome("x", "x", False, 0.0, gt_prob=0.4 if pointer == start[2] else 0.1)

    (rounds,) = run(Greedy(GreedyOptions(budget=6)), queries, pool, judge)
    assert {pointer[0] for pointer in rounds[1]} == {start[2][0]}
    (rounds,) = run(Greedy(GreedyOptions(budget=6)), queries, pool, lambda *_: 0.0)
    assert {pointer[0] for pointer in rounds[1]} == {start[0][0]}, "the first, where none is"


def test_greedy_of_any_length_stops_where_rows_make_it_worse():
    queries, pool = batch(3, [9], any_length=True)
    generator = Greedy(GreedyOptions(budget=9))
    (rounds,) = run(generator, queries, pool, lambda _, pointer: 0.5 - len(pointer) / 10)
    assert [[len(each) for each in asked] for asked in rounds] == [[0, 1, 1]]
    (rounds,) = run(generator, queries, pool, lambda _, pointer: len(pointer) % 2 / 2)
    assert [[len(each) for each in asked] for asked in rounds] == [[0, 1, 1], [2, 2, 2]]
    (rounds,) = run(generator, queries, pool, lambda _, pointer: len(pointer) / 4)
    assert [len(each) for each in flat(rounds)] == [0, 1, 1, 2, 2, 2, 3, 3, 3]


def test_greedy_passes_over_failed_trials_and_ends_if_all_failed():
    queries, pool = batch(2, [9])
    (start,) = probes(queries, pool, 3)
    judge = {start[0]: None}
    generator = Greedy(GreedyOptions(budget=6))
    (rounds,) = run(generator, queries, pool, lambda _, pointer: judge.get(pointer, 0.0))
    assert {pointer[0] for pointer in rounds[1]} == {start[1][0]}
    (rounds,) = run(generator, queries, pool, lambda *_: None)
    assert rounds == [start]


# --- both -------------------------------------------------------------------------------------

SEARCHES = {
    "first-success": FirstSuccess(FirstSuccessOptions(budget=6)),
    "greedy": Greedy(GreedyOptions(budget=6)),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_the_same_randomness_asks_the_same_and_another_draws_other_companions(name):
    queries, pool = batch(2, [9] * 6)
    one, two, other = (
        run(SEARCHES[name], queries, pool, lambda *_: 0.0, seed) for seed in (0, 0, 1)
    )
    assert one == two
    assert one != other


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_knows_nothing_of_other_queries(name):
    """Interleaved, and beside a query with other outcomes, each asks what it asks alone."""
    queries, pool = batch(2, [9, 7, 8])

    def judge(query, pointer):
        return Outcome("x", "x", False, float((pointer[0] * 7 + pointer[1] + query) % 3 == 0))

    searches = SEARCHES[name].start(POLICY, queries, pool, rngs(queries))
    together = [[] for _ in searches]
    running = dict(enumerate(searches))
    while running:
        asked = {query: list(search.ask()) for query, search in running.items()}
        for query, candidates in asked.items():
            assert {each.gen_method for each in candidates} <= {name}
            together[query] += [each.pointer for each in candidates]
            if candidates:
                told = [(each, judge(query, each.pointer)) for each in candidates]
                running[query].tell(told)
            else:
                del running[query]
    for query, pointers in enumerate(together):
        place = slice(query, query + 1)
        single = QueryBatch(
            queries.examples[place], queries.embeddings[place], queries.allowed[place], 2
        )
        (search,) = SEARCHES[name].start(POLICY, single, pool, rngs(queries)[place])
        alone = []
        while candidates := list(search.ask()):
            alone += [each.pointer for each in candidates]
            search.tell([(each, judge(query, each.pointer)) for each in candidates])
        assert alone == pointers


@pytest.mark.parametrize("name", SEARCHES)
def test_with_no_more_rows_than_shots_there_is_a_pointer_and_with_fewer_none(name):
    queries, pool = batch(3, [3, 2])
    most, none = run(SEARCHES[name], queries, pool, lambda *_: 0.0)
    assert len(flat(most)) == 1
    assert none == []


@pytest.mark.parametrize("options", [FirstSuccessOptions, GreedyOptions])
def test_a_budget_of_one_trial_is_refused(options):
    with pytest.raises(ValueError, match="at least 2"):
        replace(options(), budget=1)
