"""The job behind `generate`: proposals, searches, windows and what is recorded of them."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest
import torch

from pointer_rl.errors import InputError, PluginError
from pointer_rl.generate.run import GenerateRun
from pointer_rl.generate.summary import Summary
from pointer_rl.session.caching import CachedBackend
from pointer_rl.session.candidates import CandidateJob
from pointer_rl.session.judge import Judge
from pointer_rl.session.observer import Observer
from pointer_rl.session.session import PluginRef, SessionOptions
from pointer_rl.session.windows import Budget, InProcess, run_windows
from pointer_rl.testing import EqualMetric, FakeBackend, PlainPrompt, example, pool
from pointer_rl.types import BackendError, Candidate, Window


class Neighbours:
    """Proposes the rows after the query's, in order; one more candidate for each query."""

    def propose(self, policy, queries, pool, rngs):
        size = len(pool.examples)
        return [
            [
                Candidate(((q.row + k) % size, (q.row + k + 1) % size), "near" if k else "first")
                for k in range(1 + q.row % 3)
            ]
            for q in queries.examples
        ]


class Growing:
    """A search that adds a row to its pointer until an answer is correct."""

    budget = 3
    any_length = True

    def __init__(self, ask_again=False):
        self.told = []
        self.ask_again = ask_again

    def start(self, policy, queries, pool, rngs):
        return [_Growing(self) for _ in queries.examples]


class _Growing:
    def __init__(self, owner):
        self.owner = owner
        self.rows = 0
        self.over = False

    def ask(self):
        if self.over and not self.owner.ask_again:
            return []
        self.rows += 1
        return [Candidate(tuple(range(self.rows)), "growing")]

    def tell(self, outcomes):
        self.owner.told += outcomes
        [(_, outcome)] = outcomes
        self.over = bool(outcome.correct) or self.rows == 3


class Job(CandidateJob):
    """With generators that are objects, not plugins."""

    @property
    def _generators(self):
        return self.generators


def make_job(number=7, backend=None, generators=None, **options):
    queries = [example(row, str(row % 2), id=f"q{row}") for row in range(number)]
    examples = [example(50 + row, str(row % 2)) for row in range(5)]
    backend = CachedBackend(backend or FakeBackend(lambda text: text.split()[0]))
    session = SimpleNamespace(
        backend=backend,
        metric=EqualMetric(),
        observer=Observer(),
        executor=InProcess(),
        judge=lambda score_answers: Judge(
            prompt=PlainPrompt(), backend=backend, metric=EqualMetric()
        ),
    )
    return Job(
        session=session,
        queries=queries,
        embeddings=torch.zeros(number, 4),
        pool=pool(examples),
        policy=options.pop("policy", None),
        generators=generators or {"near": Neighbours()},
        shots=options.pop("shots", 2),
        seed=0,
        **options,
    )


def run(job, window=128, budget=None):
    records = {}
    number = len(job.queries)
    for found in run_windows(job, window, job.session, queries=range(number), budget=budget):
        records.update(found)
    return records


def test_every_query_has_its_candidates_in_order_whatever_the_window():
    whole = run(make_job())
    assert [record["query"]["query_id"] for record in whole.values()] == [f"q{n}" for n in range(7)]
    assert [len(record["pointer_candidates"]) for record in whole.values()] == [1, 2, 3, 1, 2, 3, 1]
    for row, record in whole.items():
        for candidate in record["pointer_candidates"]:
            assert candidate["vqa_pred_answer"] == str(candidate["pointer"][0] % 2)
            assert candidate["vqa_correct"] == (candidate["vqa_pred_answer"] == str(row % 2))
    assert run(make_job(), window=2) == whole


def test_a_window_is_one_call_and_only_what_is_wanted_is_asked():
    backend = FakeBackend(lambda text: "x")
    job = make_job(backend=backend)
    assert job.run(Window(range(2, 5), (2, 4))).keys() == {2, 4}
    assert len(backend.asked) == 3 + 2


def test_a_search_sees_outcomes_and_goes_on_until_it_is_over():
    # The model repeats the answer shown first, which is right for every second query.
    search = Growing()
    job = make_job(4, generators={"growing": search}, shots=3)
    records = run(job)
    pointers = [[c["pointer"] for c in record["pointer_candidates"]] for record in records.values()]
    assert pointers[0] == pointers[2] == [[0]]
    assert pointers[1] == pointers[3] == [[0], [0, 1], [0, 1, 2]]
    assert [len(candidate.pointer) for candidate, _ in search.told] == [1, 1, 1, 1, 2, 2, 3, 3]


def test_a_candidate_that_another_generator_had_is_asked_once_and_told_to_both():
    class First:
        def propose(self, policy, queries, pool, rngs):
            return [[Candidate((0,), "first")] for _ in queries.examples]

    backend, search = FakeBackend(lambda text: text.split()[0]), Growing()
    job = make_job(1, backend, {"first": First(), "growing": search}, shots=3)
    [record] = run(job).values()
    assert [c["gen_method"] for c in record["pointer_candidates"]] == ["first"]
    assert len(backend.asked) == 1
    assert [candidate.gen_method for candidate, _ in search.told] == ["growing"]


def test_a_search_is_held_to_its_budget():
    job = make_job(2, generators={"growing": Growing(ask_again=True)}, shots=5)
    with pytest.raises(PluginError, match="growing asked for more than its budget"):
        run(job)


def test_the_responses_of_a_search_enter_the_cache_after_its_last_call():
    class Cache(dict):
        puts = 0

        def get(self, keys):
            return {key: self[key] for key in keys if key in self}

        def put(self, fingerprint, responses):
            self.puts += 1
            self.update(responses)

    job = make_job(4, generators={"growing": Growing()}, shots=3)
    cache = job.session.backend._cache = Cache()
    once = run(job)
    assert (cache.puts, len(cache)) == (1, 2 + 6)
    again = make_job(4, FakeBackend(lambda text: 1 / 0), {"growing": Growing()}, shots=3)
    again.session.backend._cache = cache
    assert run(again) == once


def test_calls_are_bounded_before_a_window_begins():
    backend = FakeBackend(lambda text: "x")
    job = make_job(backend=backend)
    calls = lambda: len(backend.asked)  # noqa: E731
    budget = Budget(max_calls=9, calls=calls, most_calls=job.most_calls)
    assert list(run(job, 3, budget)) == [0, 1, 2]
    assert (len(backend.asked), budget.stopped_by) == (6, "--max-calls")
    fresh = make_job()
    with pytest.raises(InputError, match="a window of 3 queries may take 6 trials"):
        run(fresh, 3, Budget(max_calls=5, most_calls=fresh.most_calls))
    searching = make_job(2, generators={"growing": Growing()}, shots=3)
    assert searching.most_calls(Window(range(2), (0, 1))) == 2 * Growing.budget


@pytest.mark.parametrize(
    ("options", "any_length"),
    [
        ({}, False),
        ({"any_length": True}, True),
        ({"policy": SimpleNamespace(can_stop=True)}, True),
        ({"policy": SimpleNamespace(can_stop=False)}, False),
    ],
)
def test_pointers_of_any_length_are_proposed_if_wanted_or_if_the_policy_can_stop(
    options, any_length
):
    class Shown:
        def propose(self, policy, queries, pool, rngs):
            assert queries.any_length == any_length
            return [[Candidate((0, 1)[: 0 if any_length else 2], "s")] for _ in queries.examples]

    job = make_job(1, generators={"shown": Shown()}, **options)
    assert job.described_shots == {"max_shots" if any_length else "shots": 2}
    [record] = run(job).values()
    assert [each["pointer"] for each in record["pointer_candidates"]] == [
        [] if any_length else [0, 1]
    ]


def test_a_generator_may_propose_any_length_by_itself():
    job = make_job(1, generators={"growing": Growing()})
    assert job.described_shots == {"max_shots": 2}


def test_the_order_of_shots_and_windows_is_checked():
    plugin = PluginRef("x")
    options = SessionOptions(dataset=plugin, backend=plugin, prompt=plugin, metric=plugin)
    for wrong, says in (({"shots": 0}, "shots is 0"), ({"window": 0}, "window is 0")):
        with pytest.raises(InputError, match=says):
            GenerateRun(output_path="rl.json", session=options, generators=[], **wrong)


def test_the_summary_counts_by_method_and_leaves_failures_out():
    backend = FakeBackend(lambda t: BackendError("x") if "question 2" in t else t.split()[0])
    summary = Summary()
    for record in run(make_job(backend=backend)).values():
        summary.add(record)
    assert summary.queries == 7
    assert summary.all.candidates == 13
    assert summary.all.failed == 3
    assert summary.first_failure == "x"
    assert summary.by_method["first"].candidates == 7
    right = [row % 2 == row % 5 % 2 for row in (0, 1, 3, 4, 5, 6)]
    assert summary.by_method["first"].correct == sum(right)
    assert summary.best.candidates == 7
    assert summary.best.failed == 1
    header, *lines = summary.rows()
    assert all(len(line) == len(header) for line in lines)
    assert lines[-2][0] == "all"


def test_nothing_judged_shows_no_share():
    summary = Summary()
    for record in run(make_job(backend=FakeBackend(lambda text: BackendError("x")))).values():
        summary.add(record)
    assert summary.all.share_correct is None
    assert summary.rows()[-1][-2:] == ("-", "-")


def test_a_job_is_pickled_without_what_it_has_loaded():
    job = make_job(2)
    run(job)
    assert not set(job.__getstate__()) & {"_judge", "_allowed", "_first_rounds"}
    assert pickle.loads(pickle.dumps(job.__getstate__()["queries"])) == job.queries
