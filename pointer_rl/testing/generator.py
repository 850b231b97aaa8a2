"""Tests of candidate generators: `pointer_rl.types.Generator` and `SearchGenerator`.

Shapes: B queries, K pool rows, d embedding size.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import chain
from typing import TypeVar

import numpy as np
import torch

from pointer_rl.errors import first_line
from pointer_rl.records.records import to_record
from pointer_rl.testing.fakes import batch, fake_policy, pool, tiny_dataset
from pointer_rl.testing.plugin import PluginTests
from pointer_rl.types import (
    Candidate,
    Example,
    Generator,
    Outcome,
    QueryBatch,
    SearchGenerator,
)
from pointer_rl.validate.schema import SchemaChecker

Made = TypeVar("Made")
Proposals = list[list[Candidate]]
Rngs = Sequence[np.random.Generator]
Judge = Callable[[Example, Candidate], Outcome]

_DIM = 6


class _CandidateTests(PluginTests[Made]):
    """Asks for candidates for four queries and a pool of eight, with an untrained policy."""

    kind = "generator"

    def propose(self, made: Made, queries: QueryBatch, rngs: Rngs) -> Proposals:
        """All candidates of each query."""
        raise NotImplementedError

    def candidates(self, made: Made, queries: QueryBatch, rngs: Rngs | None = None) -> Proposals:
        """All candidates of each query. Fails if it raises, or returns anything else."""
        try:
            proposals = self.propose(made, queries, rngs or _rngs(len(queries.examples)))
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(
                f"it raised {type(error).__name__} ({first_line(error)}) for "
                f"{len(queries.examples)} queries, {queries.shots} shots and "
                f"{queries.allowed.sum(-1).tolist()} allowed rows: propose fewer candidates "
                "instead"
            ) from error
        assert len(proposals) == len(queries.examples) and all(
            isinstance(each, Candidate) for each in chain.from_iterable(proposals)
        ), f"it did not give a list of Candidates for each of {len(queries.examples)} queries"
        return proposals

    def test_leaves_its_inputs_as_they_are(self) -> None:
        """Other generators get the same tensors."""
        queries = _queries(2)
        embeddings, allowed = queries.embeddings.clone(), queries.allowed.clone()
        self.candidates(self.made, queries)
        assert queries.embeddings.equal(embeddings) and queries.allowed.equal(allowed), (
            "it changes the embeddings or the mask that it receives: clone them first, because "
            "other generators get the same"
        )

    def test_proposes_allowed_rows(self) -> None:
        """Pointers have `shots` different rows, or fewer if `any_length` is set, all allowed."""
        for shots in (1, 2, 3):
            queries = _queries(shots)
            proposals = self.candidates(self.made, queries)
            assert any(proposals), "it proposes no candidate at all"
            _check_pointers(proposals, queries)
            lengths = {len(each.pointer) for candidates in proposals for each in candidates}
            assert getattr(self.made, "any_length", False) or lengths == {shots}, (
                f"it proposes pointers of {min(lengths)} rows for {shots} shots: propose whole "
                "pointers, or set any_length = True"
            )

    def test_draws_from_the_given_rngs_only(self) -> None:
        """`rngs[b]` is the only randomness of query b."""
        queries = _queries(2)
        drawn = []
        for seed in range(3):
            with global_randomness(seed):
                drawn.append(self.candidates(self.make(), queries))
        assert drawn[0] == drawn[1] == drawn[2], (
            "with the same rngs it proposes other candidates: draw from rngs[b] alone, never from "
            "random, numpy.random or torch's own state, or a resumed run differs"
        )

    def test_copes_with_few_rows(self) -> None:
        """No more rows are allowed than there are shots."""
        for shots in (1, 3):
            queries = _queries(shots, allowed=shots)
            _check_pointers(self.candidates(self.made, queries), queries)

    def test_proposes_alone_as_in_a_batch(self) -> None:
        """Which queries share a batch does not matter."""
        queries = _queries(2)
        for query, together in enumerate(self.candidates(self.made, queries)):
            place = slice(query, query + 1)
            single = replace(
                queries,
                examples=queries.examples[place],
                embeddings=queries.embeddings[place],
                allowed=queries.allowed[place],
            )
            (alone,) = self.candidates(self.made, single, _rngs(1, first=query))
            assert _nearly_equal(alone, together), (
                f"query {query} gets other candidates alone than in a batch: let them depend on "
                "its own embedding, mask and rngs[b]"
            )

    def test_candidates_fit_the_schema(self) -> None:
        """RL data can hold them."""
        queries = _queries(2)
        checker = SchemaChecker("pointer_candidates", "record")
        for query, candidates in zip(
            queries.examples, self.candidates(self.made, queries), strict=True
        ):
            judged = [(each, _judge(query, each)) for each in candidates]
            for fault in checker.faults(to_record(query, judged)):
                raise AssertionError(
                    f"its candidates do not fit the schema of RL data ({fault.message}): "
                    f"{fault.fix}"
                )


class GeneratorTests(_CandidateTests[Generator]):
    """Tests of a generator that proposes once.

    It proposes for four queries and a pool of eight, with an untrained selector as policy.
    """

    def propose(self, made: Generator, queries: QueryBatch, rngs: Rngs) -> Proposals:
        """What it proposes."""
        return made.propose(fake_policy(_DIM), queries, pool(tiny_dataset().pool, _DIM), rngs)


class SearchTests(_CandidateTests[SearchGenerator]):
    """Tests of a generator that starts a search for each query.

    Searches run to their end, or until the budget is spent, on made-up outcomes.
    """

    def propose(self, made: SearchGenerator, queries: QueryBatch, rngs: Rngs) -> Proposals:
        """What its searches ask for."""
        return self.search(made, queries, rngs, _judge)

    def search(
        self, made: SearchGenerator, queries: QueryBatch, rngs: Rngs, judge: Judge
    ) -> Proposals:
        """What its searches ask for if `judge` decides the outcomes."""
        budget = getattr(made, "budget", None)
        assert type(budget) is int and budget > 0, (
            f"its budget is {budget!r}: make it an int, the most trials per query"
        )
        searches = made.start(fake_policy(_DIM), queries, pool(tiny_dataset().pool, _DIM), rngs)
        assert len(searches) == len(queries.examples), (
            f"start gave {len(searches)} searches for {len(queries.examples)} queries: give one "
            "for each"
        )
        tried: Proposals = [[] for _ in searches]
        running = list(range(len(searches)))
        while running:
            asked = {query: list(searches[query].ask()) for query in running}
            running = [query for query in running if asked[query]]
            for query in running:
                tried[query] += asked[query]
                assert len(tried[query]) <= budget, (
                    f"a search asked for {len(tried[query])} candidates with budget={budget}: "
                    "return an empty list from ask when the budget is spent"
                )
                example = queries.examples[query]
                searches[query].tell([(each, judge(example, each)) for each in asked[query]])
        return tried

    def test_asks_for_each_pointer_once(self) -> None:
        """An outcome that is known is not asked for again."""
        for candidates in self.candidates(self.made, _queries(2)):
            pointers = [each.pointer for each in candidates]
            repeated = [each for each in pointers if pointers.count(each) > 1]
            assert not repeated, (
                f"a search asked for {repeated[0]} again: remember its outcome, because every "
                "trial counts against the budget"
            )

    def test_goes_on_after_failures(self) -> None:
        """A failed trial has no accuracy, only a message."""

        def fail(query: Example, candidate: Candidate) -> Outcome:
            return Outcome(failure="the backend did not answer")

        queries = _queries(2)
        try:
            self.search(self.made, queries, _rngs(len(queries.examples)), fail)
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(
                f"told of failed trials it raised {type(error).__name__} ({first_line(error)}): "
                "check outcome.failure; the other fields are None"
            ) from error


def _judge(query: Example, candidate: Candidate) -> Outcome:
    """A made-up outcome that depends on the query and the pointer."""
    accuracy = (query.row + sum(candidate.pointer)) % 4 / 3
    return Outcome(raw_generation="red", answer="red", correct=accuracy > 0, accuracy=accuracy)


def _queries(shots: int, allowed: int | None = None) -> QueryBatch:
    """Each query may choose all rows but two of its own, or only the first `allowed` of them."""
    tiny = tiny_dataset()
    queries = batch(tiny.queries, len(tiny.pool), shots, _DIM)
    for query in range(len(queries.examples)):
        queries.allowed[query, [query, query + 3]] = False
        if allowed is not None:
            queries.allowed[query, queries.allowed[query].nonzero()[allowed:, 0]] = False
    return queries


def _rngs(number: int, first: int = 0) -> list[np.random.Generator]:
    """Those of the queries from `first` on."""
    return [np.random.Generator(np.random.Philox(key=first + query)) for query in range(number)]


def _check_pointers(proposals: Proposals, queries: QueryBatch) -> None:
    for query, candidates in enumerate(proposals):
        allowed = set(queries.allowed[query].nonzero()[:, 0].tolist())
        for candidate in candidates:
            check_pointer(candidate.pointer, queries.shots, allowed)


def check_pointer(pointer: object, shots: int, allowed: set[int]) -> None:
    """Fail unless it is a tuple of up to `shots` different rows, all allowed."""
    assert isinstance(pointer, tuple) and all(type(row) is int for row in pointer), (
        f"it proposes the pointer {pointer!r}: make it a tuple of Python integers, by tolist()"
    )
    assert len(pointer) <= shots and len(set(pointer)) == len(pointer), (
        f"it proposes {pointer} for {shots} shots: a pointer is at most `shots` rows, all different"
    )
    assert allowed.issuperset(pointer), (
        f"it proposes {pointer} for a query that may choose {sorted(allowed)}: choose among the "
        "allowed rows, or a query sees itself"
    )


@contextmanager
def global_randomness(seed: int) -> Iterator[None]:
    """Seed the random states of this process, and restore them afterwards."""
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


def _nearly_equal(some: Sequence[Candidate], others: Sequence[Candidate]) -> bool:
    """Equal, up to the last digits of floats."""
    if len(some) != len(others):
        return False
    pairs = [
        (mine, yours)
        for one, other in zip(some, others, strict=True)
        for mine, yours in zip(asdict(one).values(), asdict(other).values(), strict=True)
    ]
    return all(
        math.isclose(mine, yours, rel_tol=1e-4, abs_tol=1e-4)
        if isinstance(mine, float) and isinstance(yours, float)
        else mine == yours
        for mine, yours in pairs
    )
