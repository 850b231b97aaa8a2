"""Whether a backend says the same of trials asked together as of each asked alone.

Together, prompts share batches and whatever else a backend lets them share. Floats are then summed
in another order, and where two tokens are all but equally likely another may be written. How often
depends on the model, its precision and the data, so it is measured on the user's own.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

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
from pointer_rl.types import BackendError, Example, Metric, Request, Response

__all__ = ["QUERIES", "Pair", "Parity", "ParityRun", "measure_parity"]

QUERIES = 32
"""Asked where no limit is given."""

Result = Response | BackendError


@dataclass(frozen=True, kw_only=True)
class ParityRun:
    """What is asked twice."""

    session: SessionOptions
    """`limit`: a random subset of so many queries. No store is used."""
    shots: int = 2
    """Demonstrations in a trial."""
    score_answers: bool = True
    """Compare the log-probabilities of the annotators' answers too."""
    seed: int = 0
    """Of the queries and their demonstrations."""


@dataclass(frozen=True)
class Pair:
    """One trial, and what came back each time."""

    trial: Trial
    together: Result
    alone: Result
    accuracies: tuple[float, float] | None
    """Of the answers together and alone; None unless there are both."""

    @property
    def failed(self) -> bool:
        """Both times."""
        return isinstance(self.together, BackendError) and isinstance(self.alone, BackendError)

    @property
    def differs(self) -> bool:
        """In its text, or in failing one time only."""
        return _text(self.together) != _text(self.alone)

    @property
    def logprobs(self) -> tuple[tuple[float, float], ...]:
        """Of each answer that was scored, together and alone."""
        if isinstance(self.together, BackendError) or isinstance(self.alone, BackendError):
            return ()
        return tuple(zip(self.together.score_logprobs, self.alone.score_logprobs, strict=True))


@dataclass(frozen=True)
class Parity:
    """All pairs, and what follows from them."""

    pairs: Sequence[Pair]
    engine: str | None
    """Of the backend's choices, that by which trials were asked alone; None: it has none."""

    @cached_property
    def answered(self) -> list[Pair]:
        """Pairs with an answer at least one time."""
        return [pair for pair in self.pairs if not pair.failed]

    @cached_property
    def differing(self) -> list[Pair]:
        """Those of them whose answers differ."""
        return [pair for pair in self.answered if pair.differs]

    @cached_property
    def accuracies(self) -> list[tuple[float, float]]:
        """Together and alone, where both times there is an answer."""
        return [pair.accuracies for pair in self.answered if pair.accuracies is not None]

    @cached_property
    def logprobs(self) -> list[tuple[float, float]]:
        """Of all scored answers, together and alone."""
        return [both for pair in self.answered for both in pair.logprobs]


def measure_parity(run: ParityRun, observer: Observer = Observer()) -> Parity:
    """Ask random trials together, then each alone: on engine=plain, where the backend has it.

    Two trials a query, alike but for the last demonstration, so that prompts share beginnings as
    candidates do. Two backends are never in memory at the same time. `on_start` is told how many
    results there will be, `on_result` is called at each. Raises PointerRLError for what is missing
    or does not fit, and InputError where not one trial is answered.
    """
    options = replace(run.session, limit=None, cache=None)
    session = Session(options)
    pool = session.dataset.pool
    limit = QUERIES if run.session.limit is None else run.session.limit
    queries = draw_queries(session.dataset.queries, limit, run.seed)
    if not queries:
        raise InputError(f"dataset {session.dataset.name} has no queries to ask")
    session.check_answers(queries)
    queries = [query for query in queries if _can_be_judged(query, session.metric)]
    trials = list(_draw_trials(queries, pool, run.shots, run.seed))

    judge = session.judge()
    metric, prompt = judge.metric, judge.prompt
    requests = [_request(trial, judge, score=run.score_answers) for trial in trials]
    observer.start(2 * len(requests))
    together = _ask(judge, requests, observer)
    plain = _on_plain(options.backend)
    if plain is not None:
        # The first leaves the memory, which a model may fill, before the second is loaded.
        del judge, session
        gc.collect()
        judge = Session(replace(options, backend=plain)).judge()
    alone = [_ask(judge, [request], observer)[0] for request in requests]

    def accuracy(trial: Trial, result: Result) -> float:
        answer = prompt.parse(_text(result) or "")
        return metric.judge(answer, trial.query.answers).accuracy

    pairs = []
    for trial, one, other in zip(trials, together, alone, strict=True):
        answered = _text(one) is not None and _text(other) is not None
        accuracies = (accuracy(trial, one), accuracy(trial, other)) if answered else None
        pairs.append(Pair(trial, one, other, accuracies))
    parity = Parity(pairs, None if plain is None else "plain")
    if not parity.answered:
        first = pairs[0].together
        assert isinstance(first, BackendError)
        raise InputError(f"all {len(pairs)} trials failed: {first.message}")
    return parity


def _can_be_judged(query: Example, metric: Metric) -> bool:
    try:
        metric.judge("", query.answers)
    except InputError:
        return False
    return True


def _draw_trials(
    queries: Sequence[Example], pool: Sequence[Example], shots: int, seed: int
) -> Iterator[Trial]:
    """Two a query, or one where it may choose no further row."""
    allowed = AllowedRows(pool)
    allowed.check(queries, shots)
    for query in queries:
        rows = allowed.mask([query])[0].nonzero()[:, 0].numpy()
        drawn = random_source(seed, query.id, "parity").permutation(rows)[: shots + 1].tolist()
        for last in drawn[shots - 1 :]:
            yield Trial(query, [pool[row] for row in (*drawn[: shots - 1], last)])


def _request(trial: Trial, judge: Judge, *, score: bool) -> Request:
    answers = map(judge.metric.normalise, trial.query.answers) if score else ()
    prompt = judge.prompt.build(trial.query, trial.demonstrations)
    return Request(prompt, judge.decoding, tuple(dict.fromkeys(answers)))


def _ask(judge: Judge, requests: Sequence[Request], observer: Observer) -> list[Result]:
    found = {}
    for index, result in run_checked(judge.backend, requests):
        found[index] = result
        observer.finish(1)
    return [found[index] for index in range(len(requests))]


def _on_plain(backend: PluginRef) -> PluginRef | None:
    """The same on engine=plain, where the backend knows that choice."""
    options = registry().find("backend", backend.name).options
    for each in () if options is None else describe_options(options):
        if each.name == "engine" and "plain" in each.type.split("|"):
            return replace(backend, options={**backend.options, "engine": "plain"})
    return None


def _text(result: Result) -> str | None:
    return None if isinstance(result, BackendError) else result.text
