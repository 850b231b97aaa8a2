"""The standard searches, told made-up outcomes."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plugins.test_generators import POLICY, batch, rngs

from pointer_rl.types import Outcome, QueryBatch
from pointer_rl_standard.generators import ProbeGenerator
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
    expected, chosen = [], start[0]
    for place in range(shots):
        tries = [
            (*chosen[:place], row, *chosen[place + 1 :])
            for row in [pointer[0] for pointer in start]
            if row not in chosen[:place]
        ]
        if not tries:
            break
        expected.append(tries)
        chosen = max(tries, key=lambda pointer: worth(0, pointer))
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
