"""Tests of candidate generators: `pointer_rl.types.Generator` and `SearchGenerator`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, replace
from typing import Any
from unittest import SkipTest

import numpy as np
import torch

from pointer_rl.records.records import to_record
from pointer_rl.session.proposing import check_candidates, check_length
from pointer_rl.session.resolve import NoPolicy
from pointer_rl.testing.fakes import batch, fake_policy, pool, tiny_dataset
from pointer_rl.testing.plugin import BatchTests, check_pointer, explain
from pointer_rl.types import Candidate, Example, Outcome, Pool, QueryBatch, SearchGenerator
from pointer_rl.validate.schema import SchemaChecker

Proposals = list[list[Candidate]]
Judge = Callable[[Example, Candidate], Outcome]

_DIM = 6
"""Size of the embeddings."""


class GeneratorTests(BatchTests[Any]):
    """Asks for candidates for four queries and a pool of eight, with an untrained policy.

    Searches run to their end, or until the budget is spent, on made-up outcomes.
    """

    kind = "generator"
    item = "query"
    how_to_repeat = (
        "draw from rngs[b] alone, never from random, numpy.random or torch's own state, or a "
        "resumed run differs"
    )
    how_to_separate = "let them depend on its own embedding, mask and rngs[b]"

    @property
    def inputs(self) -> Sequence[int]:
        return range(len(tiny_dataset().queries))

    def ask(
        self,
        made: Any,
        inputs: Sequence[int],
        shots: int = 2,
        allowed: int | None = None,
        judge: Judge | None = None,
        any_length: bool = False,
    ) -> Proposals:
        """All candidates of the queries in these rows. Fails unless they are sound.

        `allowed` limits how many rows of the pool each query may choose, and `judge` decides the
        outcomes that searches are told. With `any_length` shorter pointers are sound, too.
        """
        queries = replace(_queries(inputs, shots, allowed), any_length=any_length)
        embeddings, mask = queries.embeddings.clone(), queries.allowed.clone()
        rngs = [np.random.Generator(np.random.Philox(key=row)) for row in inputs]
        rows = mask.sum(-1).tolist()
        what = f"for {len(inputs)} queries, {shots} shots and {rows} allowed rows it"
        with explain(what, "propose fewer candidates instead"):
            if hasattr(made, "start"):
                proposals = _search(made, queries, rngs, judge or _judge)
            else:
                examples = pool(tiny_dataset().pool, _DIM)
                proposals = made.propose(fake_policy(_DIM), queries, examples, rngs)
        assert queries.embeddings.equal(embeddings) and queries.allowed.equal(mask), (
            "it changes the embeddings or the mask that it receives: clone them first, because "
            "other generators get the same"
        )
        shorter = any_length or getattr(made, "any_length", False)
        lengths = replace(queries, any_length=shorter).lengths
        who = f"generator {self.name}"
        fix = (
            "give a list of Candidates for each query, whose pointers are different rows among the "
            "allowed ones, or a query sees itself; propose whole pointers, or set any_length = True"
        )
        with explain("its proposals", fix):
            check_length(who, queries.examples, proposals)
            proposals = [list(each) for each in proposals]
            for query, mine, candidates in zip(
                queries.examples, mask.numpy(), proposals, strict=True
            ):
                for each in candidates:
                    check_pointer(each.pointer)
                check_candidates(who, query, mine, lengths, candidates)
        return proposals

    def close(self, one: Any, other: Any) -> bool:
        """Equal, up to the last digits of floats."""
        return len(one) == len(other) and all(
            math.isclose(mine, yours, rel_tol=1e-4, abs_tol=1e-4)
            if isinstance(mine, float) and isinstance(yours, float)
            else mine == yours
            for pair in zip(one, other, strict=True)
            for mine, yours in zip(*map(astuple, pair), strict=True)
        )

    def test_copes_with_any_number_of_shots_and_rows(self) -> None:
        """Even if no more rows are allowed than there are shots."""
        for shots in (1, 2, 3):
            assert any(self.ask(self.made, self.inputs, shots)), (
                f"it proposes no candidate at all with {shots} shots"
            )
            self.ask(self.made, self.inputs, shots, allowed=shots)

    def test_copes_with_pointers_of_any_length(self) -> None:
        """Where pointers may have 0 to `shots` rows (`queries.any_length`)."""
        for shots in (1, 3):
            self.ask(self.made, self.inputs, shots, any_length=True)
            self.ask(self.made, self.inputs, shots, allowed=shots, any_length=True)

    def test_needs_no_embeddings_if_it_says_so(self) -> None:
        """With `needs_embeddings = False` it may get NaN in place of embeddings, and no policy."""
        if getattr(self.made, "needs_embeddings", True):
            raise SkipTest("it needs embeddings")
        queries = _queries(self.inputs, 2, None)
        nothing = replace(queries, embeddings=torch.full_like(queries.embeddings, math.nan))
        examples = Pool(tiny_dataset().pool, torch.full((len(tiny_dataset().pool), 1), math.nan))
        rngs = [np.random.Generator(np.random.Philox(key=row)) for row in self.inputs]
        fix = "do without them, or leave out needs_embeddings = False"
        with explain("without embeddings and policy it", fix):
            if hasattr(self.made, "start"):
                self.made.start(NoPolicy(), nothing, examples, rngs)
                return
            found = self.made.propose(NoPolicy(), nothing, examples, rngs)
        assert [list(each) for each in found] == list(self.results.values()), (
            f"without embeddings it proposes other candidates: {fix}"
        )

    def test_candidates_fit_the_schema(self) -> None:
        """RL data can hold them."""
        checker = SchemaChecker("pointer_candidates", "record")
        for query, candidates in zip(tiny_dataset().queries, self.results.values(), strict=True):
            judged = [(each, _judge(query, each)) for each in candidates]
            for fault in checker.faults(to_record(query, judged)):
                raise AssertionError(
                    f"its candidates do not fit the schema of RL data ({fault.message}): "
                    f"{fault.fix}"
                )

    def test_asks_for_each_pointer_once(self) -> None:
        """A search does not ask again for an outcome that it knows."""
        _skip_unless_search(self.made)
        for candidates in self.results.values():
            pointers = [each.pointer for each in candidates]
            repeated = [each for each in pointers if pointers.count(each) > 1]
            assert not repeated, (
                f"a search asked for {repeated[0]} again: remember its outcome, because every "
                "trial counts against the budget"
            )

    def test_goes_on_after_failures(self) -> None:
        """A failed trial has no accuracy, only a message."""
        _skip_unless_search(self.made)

        def fail(query: Example, candidate: Candidate) -> Outcome:
            return Outcome(failure="the backend did not answer")

        self.ask(self.made, self.inputs, judge=fail)


def _skip_unless_search(made: object) -> None:
    if not hasattr(made, "start"):
        raise SkipTest("it starts no searches")


def _search(
    made: SearchGenerator, queries: QueryBatch, rngs: Sequence[np.random.Generator], judge: Judge
) -> Proposals:
    """What its searches ask for if `judge` decides the outcomes."""
    budget = getattr(made, "budget", None)
    assert type(budget) is int and budget > 0, (
        f"its budget is {budget!r}: make it an int, the most trials per query"
    )
    searches = made.start(fake_policy(_DIM), queries, pool(tiny_dataset().pool, _DIM), rngs)
    assert len(searches) == len(queries.examples), (
        f"start gave {len(searches)} searches for {len(queries.examples)} queries: give one for "
        "each"
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
            outcomes = [(each, judge(queries.examples[query], each)) for each in asked[query]]
            fix = "check outcome.failure; the other fields of a failed one are None"
            with explain("told of outcomes, a search", fix):
                searches[query].tell(outcomes)
    return tried


def _judge(query: Example, candidate: Candidate) -> Outcome:
    """A made-up outcome that depends on the query and the pointer."""
    accuracy = (query.row + sum(candidate.pointer)) % 4 / 3
    return Outcome(raw_generation="red", answer="red", correct=accuracy > 0, accuracy=accuracy)


def _queries(rows: Sequence[int], shots: int, allowed: int | None) -> QueryBatch:
    """Each query may choose all rows but two of its own, or only the first `allowed` of them."""
    tiny = tiny_dataset()
    all_queries = batch(tiny.queries, len(tiny.pool), shots, _DIM)
    for query, mask in enumerate(all_queries.allowed):
        mask[[query, query + 3]] = False
        if allowed is not None:
            mask[mask.nonzero()[allowed:, 0]] = False
    return QueryBatch(
        [tiny.queries[row] for row in rows],
        all_queries.embeddings[rows],
        all_queries.allowed[rows],
        shots,
    )
