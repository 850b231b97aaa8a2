"""What a candidate generator promises: `pointer_rl.types.Generator`.

Shapes: B queries, K pool rows, d embedding size.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from pointer_rl.errors import first_line
from pointer_rl.testing.examine import Check, examine
from pointer_rl.testing.fakes import batch, fake_policy, pool
from pointer_rl.testing.findings import (
    Broken,
    Result,
    Subject,
    raise_findings,
    require,
)
from pointer_rl.testing.tiny import tiny_dataset
from pointer_rl.types import Candidate, Generator, Outcome, QueryBatch

if TYPE_CHECKING:
    import numpy as np

__all__ = ["check_generator", "examine_generator"]

Generators = Subject[Generator]
Proposals = list[list[Candidate]]

_DIM = 6


def check_generator(factory: Callable[..., Generator], options: Any = None) -> None:
    """Raise ContractError unless the generator that `factory(options)` makes keeps its contract.

    It proposes for four queries and a pool of eight, with an untrained selector as policy.
    """
    __tracebackhide__ = True
    subject = Subject("generator", factory, options)
    raise_findings(subject, examine(subject, _FOUNDATIONS, _FURTHER))


def examine_generator(factory: Callable[..., Generator], options: Any) -> Iterator[Result]:
    """Likewise, a result for each check."""
    return examine(Subject("generator", factory, options), _FOUNDATIONS, _FURTHER)


def _queries(shots: int, allowed: int | None = None) -> QueryBatch:
    """Each query may choose all rows but two, which differ; or only the first `allowed` of them."""
    tiny = tiny_dataset()
    queries = batch(tiny.queries, len(tiny.pool), shots, _DIM)
    for query in range(len(queries.examples)):
        queries.allowed[query, [query, query + 3]] = False
        if allowed is not None:
            queries.allowed[query, queries.allowed[query].nonzero()[allowed:, 0]] = False
    return queries


def _rngs(number: int, first: int = 0) -> list[np.random.Generator]:
    """Those of the queries `first` and following."""
    import numpy as np

    return [np.random.Generator(np.random.Philox(key=first + query)) for query in range(number)]


def _propose(
    generator: Generator, queries: QueryBatch, rngs: Sequence[np.random.Generator]
) -> Proposals:
    """What it proposes. Raises Broken where that is not a list of candidates for each query."""
    try:
        proposals = generator.propose(
            fake_policy(_DIM), queries, pool(tiny_dataset().pool, _DIM), rngs
        )
    except Exception as error:
        raise Broken(
            f"propose raised {type(error).__name__} ({first_line(error)}) for "
            f"{len(queries.examples)} queries, {queries.shots} shots and "
            f"{queries.allowed.sum(-1).tolist()} allowed rows: give what exists and no more"
        ) from error
    require(
        isinstance(proposals, list)
        and len(proposals) == len(queries.examples)
        and all(isinstance(each, Candidate) for some in proposals for each in some),
        f"propose did not give a list of Candidates for each of {len(queries.examples)} queries",
    )
    return proposals


def _proposes(subject: Generators) -> None:
    for shots in (1, 2, 3):
        queries = _queries(shots)
        proposals = _propose(subject.made, queries, _rngs(len(queries.examples)))
        require(any(proposals), "it proposes no candidate at all")
        _check_pointers(proposals, queries)


def _check_pointers(proposals: Proposals, queries: QueryBatch) -> None:
    for query, candidates in enumerate(proposals):
        allowed = set(queries.allowed[query].nonzero()[:, 0].tolist())
        for candidate in candidates:
            pointer = candidate.pointer
            require(
                isinstance(pointer, tuple) and all(type(row) is int for row in pointer),
                f"it proposes the pointer {pointer!r}: make it a tuple of Python integers, by "
                "tolist()",
            )
            require(
                len(pointer) == queries.shots and len(set(pointer)) == len(pointer),
                f"it proposes {pointer} where {queries.shots} shots are asked: a pointer is "
                "queries.shots rows, all different",
            )
            require(
                allowed.issuperset(pointer),
                f"it proposes {pointer} where a query may choose {sorted(allowed)}: choose among "
                "queries.allowed, or a query sees itself",
            )


def _few_rows(subject: Generators) -> None:
    for shots in (1, 3):
        queries = _queries(shots, allowed=shots)
        _check_pointers(_propose(subject.made, queries, _rngs(len(queries.examples))), queries)


@contextmanager
def _global_randomness(seed: int) -> Iterator[None]:
    """Other draws from the random states of this process, and back to what they were."""
    import numpy as np
    import torch

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


def _own_randomness(subject: Generators) -> None:
    queries = _queries(2)
    drawn = []
    for seed in range(3):
        with _global_randomness(seed):
            drawn.append(_propose(subject.make(), queries, _rngs(len(queries.examples))))
    require(
        drawn[0] == drawn[1] == drawn[2],
        "with the same rngs it proposes other candidates: draw from rngs[b] alone, never from "
        "random, numpy.random or torch's own state, or a resumed run is another run",
    )


def _alone_as_in_company(subject: Generators) -> None:
    queries = _queries(2)
    together = _propose(subject.made, queries, _rngs(len(queries.examples)))
    for query, candidates in enumerate(together):
        place = slice(query, query + 1)
        alone = replace(
            queries,
            examples=queries.examples[place],
            embeddings=queries.embeddings[place],
            allowed=queries.allowed[place],
        )
        (found,) = _propose(subject.made, alone, _rngs(1, first=query))
        require(
            _nearly(found, candidates),
            f"query {query} gets other candidates alone than among others: let them depend on its "
            "own embedding, mask and rngs[b]",
        )


def _nearly(some: Sequence[Candidate], others: Sequence[Candidate]) -> bool:
    """Equal, but for the last digits of floats."""
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


def _changes_nothing(subject: Generators) -> None:
    queries = _queries(2)
    before = queries.embeddings.clone(), queries.allowed.clone()
    _propose(subject.made, queries, _rngs(len(queries.examples)))
    require(
        queries.embeddings.equal(before[0]) and queries.allowed.equal(before[1]),
        "it changes the embeddings or the mask that it is handed: clone them first, for other "
        "generators get the same",
    )


def _recordable(subject: Generators) -> None:
    from pointer_rl.records.records import to_record
    from pointer_rl.validate.schema import SchemaChecker

    outcome = Outcome(raw_generation="red", answer="red", correct=True, accuracy=1.0)
    queries = _queries(2)
    checker = SchemaChecker("pointer_candidates", "record")
    for query, candidates in zip(
        queries.examples,
        _propose(subject.made, queries, _rngs(len(queries.examples))),
        strict=True,
    ):
        judged = [(candidate, outcome) for candidate in candidates]
        for fault in checker.faults(to_record(query, judged)):
            raise Broken(
                f"its candidates do not fit the schema of RL data ({fault.message}): {fault.fix}"
            )


_FOUNDATIONS: dict[str, Check[Generators]] = {
    "leaves its inputs as they are": _changes_nothing,
    "proposes rows that a query may choose": _proposes,
    "draws from the rngs alone": _own_randomness,
}
_FURTHER: dict[str, Check[Generators]] = {
    "copes with few rows": _few_rows,
    "proposes alone as in company": _alone_as_in_company,
    "its candidates fit RL data": _recordable,
}
