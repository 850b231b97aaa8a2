"""Parity: does a backend answer trials asked in one call as it answers each asked alone?

Or as another backend answers them.

In one call, prompts share batches and whatever else the backend lets them share. Floats are then
summed in another order, and where two tokens are almost equally likely, the other one may be
generated. How often depends on the model, its precision and the data, so it is measured on the
user's own.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from pointer_rl.datasets.leakage import AllowedRows
from pointer_rl.errors import InputError
from pointer_rl.evaluate.run import draw_queries
from pointer_rl.options import describe_options
from pointer_rl.registry import registry
from pointer_rl.session.caching import run_checked
from pointer_rl.session.judge import Judge, Trial
from pointer_rl.session.observer import Observer
from pointer_rl.session.proposing import random_source
from pointer_rl.session.session import PluginRef, Session, SessionOptions
from pointer_rl.types import BackendError, Example, Request, Response

QUERIES = 32
"""Number of queries if no limit is given."""

Result = Response | BackendError


@dataclass(frozen=True)
class Pair:
    """A trial's result when it was asked with all the others, and the one to compare it with."""

    trial: Trial
    together: Result
    other: Result
    """The result of asking it alone, or that of another backend."""
    accuracies: tuple[float, float] | None
    """Accuracies of both answers; None unless there are both."""

    @property
    def failed(self) -> bool:
        """Whether both results are failures."""
        return isinstance(self.together, BackendError) and isinstance(self.other, BackendError)

    @property
    def differs(self) -> bool:
        """Whether the texts differ, or only one result is a failure."""
        return _text(self.together) != _text(self.other)

    @property
    def logprobs(self) -> tuple[tuple[float, float], ...]:
        """Both log-probabilities of each scored answer."""
        if isinstance(self.together, BackendError) or isinstance(self.other, BackendError):
            return ()
        return tuple(zip(self.together.score_logprobs, self.other.score_logprobs, strict=True))


@dataclass(frozen=True)
class Parity:
    """All pairs, and what follows from them."""

    pairs: Sequence[Pair]
    engine: str | None = None
    """The backend's `engine` option when trials were asked alone; None if it has no such option."""
    backends: tuple[str, str] | None = None
    """The two backends that were compared; None if trials were asked together and alone."""

    @cached_property
    def answered(self) -> list[Pair]:
        """Pairs with at least one answer."""
        return [pair for pair in self.pairs if not pair.failed]

    @cached_property
    def differing(self) -> list[Pair]:
        """Answered pairs whose answers differ."""
        return [pair for pair in self.answered if pair.differs]

    @cached_property
    def accuracies(self) -> list[tuple[float, float]]:
        """Both accuracies of pairs with two answers."""
        return [pair.accuracies for pair in self.answered if pair.accuracies is not None]

    @cached_property
    def logprobs(self) -> list[tuple[float, float]]:
        """Both log-probabilities of all scored answers."""
        return [both for pair in self.answered for both in pair.logprobs]


def measure_parity(
    options: SessionOptions,
    *,
    against: PluginRef | None = None,
    shots: int = 2,
    score_answers: bool = True,
    seed: int = 0,
    observer: Observer = Observer(),
) -> Parity:
    """Ask random trials in one call, then one per call: with engine=plain if the backend has it.

    With `against`, the second call asks that backend, in one call, too.

    There are two trials per query, which differ in the last of their `shots` demonstrations, so
    that prompts share prefixes as candidates do. `options.limit` is the size of the random subset
    of queries. The response cache is not used. The first backend is freed before the second is
    loaded, if it lets go of its memory (vLLM, in this process, does not).

    `observer` hears of every result. Raises PointerRLError if something is missing or does not fit,
    and InputError if every trial fails.
    """
    limit = QUERIES if options.limit is None else options.limit
    options = replace(options, limit=None, cache=None)
    session = Session(options)
    queries = draw_queries(session.dataset.queries, limit, seed)
    if not queries:
        raise InputError(f"dataset {session.dataset.name} has no queries to ask")
    session.check_answers(queries)

    judge = session.judge(score_answers=score_answers)
    drawn = list(_draw_trials(queries, session.dataset.pool, shots, seed))
    # Trials that cannot be asked have no request: their queries or demonstrations lack answers.
    asked = [(trial, request) for trial in drawn for request in judge.requests([trial])]
    if not asked:
        _, outcome = next(judge.judge(drawn))
        raise InputError(f"no trial can be asked: {outcome.failure}")
    trials = [trial for trial, _ in asked]
    requests = [request for _, request in asked]
    observer.start(2 * len(requests))
    together = _ask(judge, requests, observer)
    plain = _with_plain_engine(options.backend)
    second = against or plain
    if second is not None:
        # Free the first model, which may fill the memory, before loading the second.
        del judge, session
        gc.collect()
        torch.cuda.empty_cache()
        judge = Session(replace(options, backend=second)).judge()
    calls = [requests] if against else [[request] for request in requests]
    others = [result for call in calls for result in _ask(judge, call, observer)]

    def accuracy(trial: Trial, text: str) -> float:
        return judge.metric.judge(judge.prompt.parse(text), trial.query.answers).accuracy

    pairs = []
    for trial, one, other in zip(trials, together, others, strict=True):
        texts = _text(one), _text(other)
        accuracies = None
        if texts[0] is not None and texts[1] is not None:
            accuracies = accuracy(trial, texts[0]), accuracy(trial, texts[1])
        pairs.append(Pair(trial, one, other, accuracies))
    if against is None:
        parity = Parity(pairs, engine=None if plain is None else "plain")
    else:
        parity = Parity(pairs, backends=(options.backend.name, against.name))
    if not parity.answered:
        first = pairs[0].together
        assert isinstance(first, BackendError)
        raise InputError(f"all {len(pairs)} trials failed: {first.message}")
    return parity


def _draw_trials(
    queries: Sequence[Example], pool: Sequence[Example], shots: int, seed: int
) -> Iterator[Trial]:
    """Two trials per query, or one if the pool has only `shots` rows for it."""
    allowed = AllowedRows(pool)
    allowed.check(queries, shots)
    for query in queries:
        rows = allowed.mask([query])[0].nonzero()[:, 0].numpy()
        drawn = random_source(seed, query.id, "parity").permutation(rows)[: shots + 1].tolist()
        for last in drawn[shots - 1 :]:
            yield Trial(query, [pool[row] for row in (*drawn[: shots - 1], last)])


def _ask(judge: Judge, requests: Sequence[Request], observer: Observer) -> list[Result]:
    found = {}
    for index, result in run_checked(judge.backend, requests):
        found[index] = result
        observer.finish(1)
    return [found[index] for index in range(len(requests))]


def _with_plain_engine(backend: PluginRef) -> PluginRef | None:
    """The same backend with engine=plain; None if it has no such option."""
    options = registry().find("backend", backend.name).options
    for each in () if options is None else describe_options(options):
        if each.name == "engine" and "plain" in each.type.split("|"):
            return replace(backend, options={**backend.options, "engine": "plain"})
    return None


def _text(result: Result) -> str | None:
    return None if isinstance(result, BackendError) else result.text
