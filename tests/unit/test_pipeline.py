from __future__ import annotations

import pytest
import torch

from pointer_rl.datasets.leakage import AllowedRows
from pointer_rl.errors import InputError
from pointer_rl.generate.pipeline import GenerateConfig, Generation, generate
from pointer_rl.generate.summary import Summary
from pointer_rl.session.judge import Judge
from pointer_rl.testing import EqualMetric, FakeBackend, PlainPrompt, example, pool
from pointer_rl.types import BackendError, Candidate


class Neighbours:
    """The rows after the query's, in order; one more candidate for each query."""

    def propose(self, policy, queries, pool, rngs):
        size = len(pool.examples)
        return [
            [
                Candidate(((q.row + k) % size, (q.row + k + 1) % size), "near" if k else "first")
                for k in range(1 + q.row % 3)
            ]
            for q in queries.examples
        ]


def run(number=7, backend=None, dim=4, **config):
    queries = [example(row, str(row % 2), id=f"q{row}") for row in range(number)]
    examples = [example(50 + row, str(row % 2)) for row in range(5)]
    judge = Judge(
        prompt=PlainPrompt(),
        backend=backend or FakeBackend(lambda text: text.split()[0]),
        metric=EqualMetric(),
    )
    generation = Generation(
        queries,
        torch.zeros(number, dim),
        pool(examples),
        AllowedRows(examples),
        None,
        {"near": Neighbours()},
        judge,
        GenerateConfig(**config),
    )
    return generate(generation)


def test_every_query_has_its_candidates_in_order():
    whole = list(run())
    assert [judged.query.id for judged in whole] == [f"q{row}" for row in range(7)]
    assert [len(judged.candidates) for judged in whole] == [1, 2, 3, 1, 2, 3, 1]
    for judged in whole:
        for candidate, outcome in judged.candidates:
            assert outcome.answer == str(candidate.pointer[0] % 2)
            assert outcome.correct == (outcome.answer == judged.query.answer)
    assert list(run(window=2)) == whole


def test_windows_bound_what_is_asked_ahead():
    backend = FakeBackend(lambda text: "x")
    results = run(backend=backend, window=2)
    next(results)
    assert len(backend.asked) == 3


def test_what_does_not_fit_is_found_before_the_first_trial():
    backend = FakeBackend(lambda text: "x")
    with pytest.raises(InputError, match=r"6 shots need a pool .* this one has 5"):
        list(run(backend=backend, shots=6))
    with pytest.raises(InputError, match="3 dimensions"):
        list(run(backend=backend, dim=3))
    assert backend.asked == []
    with pytest.raises(InputError, match="shots is 0"):
        GenerateConfig(shots=0)


def test_the_summary_counts_by_method_and_leaves_failures_out():
    backend = FakeBackend(lambda t: BackendError("x") if "question 2" in t else t.split()[0])
    summary = Summary()
    for judged in run(backend=backend):
        summary.add(judged.candidates)
    assert summary.queries == 7
    assert summary.all.candidates == 13
    assert summary.all.failed == 3
    assert summary.by_method["first"].candidates == 7
    right = [row % 2 == row % 5 % 2 for row in (0, 1, 3, 4, 5, 6)]
    assert summary.by_method["first"].correct == sum(right)
    assert summary.best.candidates == 7
    assert summary.best.failed == 1
    header, *lines = summary.rows()
    assert all(len(line) == len(header) for line in lines)
    assert lines[-2][0] == "all"


def test_nothing_judged_shows_no_share():
    backend = FakeBackend(lambda text: BackendError("x"))
    summary = Summary()
    for judged in run(backend=backend):
        summary.add(judged.candidates)
    assert summary.all.share_correct is None
    assert summary.rows()[-1][-2:] == ("-", "-")
