"""InfoScore: what a demonstration adds to the probability of the annotators' answers.

    P(answers | shown) = Σ over the distinct answers a of share(a) · P(a | shown, query)
    InfoScore(c | shown) = log P(answers | shown, c) - log P(answers | shown)

share(a) is the share of the annotators who gave a. All in natural logarithms, so that nothing
underflows; a pointer's InfoScores add up to log P with all of it less log P without any, and the
largest are kept. (Lever-LM subtracts probabilities: Yang et al., "Lever LM: Configuring In-Context
Sequence to Lever Large Vision Language Models", NeurIPS 2024.)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pointer_rl.errors import InputError
from pointer_rl.records.beams import Beam
from pointer_rl.session.caching import run_checked
from pointer_rl.session.judge import Trial
from pointer_rl.types import (
    BackendError,
    Example,
    Pointer,
    PromptBuilder,
    Request,
    Response,
    VQABackend,
)

__all__ = ["AnswerScorer", "Found", "answers_logprob", "most_trials", "search"]


def answers_logprob(answers: Sequence[str], logprobs: Sequence[float]) -> float:
    """log P(answers): `answers` one an annotator, `logprobs` of the distinct ones in their order.

    -inf where none of them is possible.
    """
    counts = Counter(answers)
    terms = [
        math.log(count / len(answers)) + logprob
        for count, logprob in zip(counts.values(), logprobs, strict=True)
    ]
    largest = max(terms)
    if largest == -math.inf:
        return largest
    return largest + math.log(math.fsum(math.exp(term - largest) for term in terms))


@dataclass(frozen=True)
class AnswerScorer:
    """Asks a backend how probable the annotators' answers are, in their own spelling."""

    prompt: PromptBuilder
    backend: VQABackend

    def score(self, trials: Sequence[Trial]) -> Iterator[tuple[int, float | BackendError]]:
        """log P(answers) of each trial once, as (its index, it), in the order they finish.

        A trial fails whose prompt cannot be built, whose query has no answers, and in which no
        answer has a probability above 0. Raises PluginError as `run_checked` does.
        """
        requests, indices = [], []
        for index, trial in enumerate(trials):
            try:
                request = self._request(trial)
            except InputError as error:
                yield index, BackendError(str(error))
                continue
            requests.append(request)
            indices.append(index)
        for position, result in run_checked(self.backend, requests):
            index = indices[position]
            yield index, self._logprob(trials[index].query, result)

    def _request(self, trial: Trial) -> Request:
        if not trial.query.answers:
            raise InputError(f"query {trial.query.id} has no annotators' answers")
        prompt = self.prompt.build(trial.query, trial.demonstrations)
        return Request(prompt, None, tuple(dict.fromkeys(trial.query.answers)))

    def _logprob(self, query: Example, result: Response | BackendError) -> float | BackendError:
        if isinstance(result, BackendError):
            return result
        logprob = answers_logprob(query.answers, result.score_logprobs)
        if not math.isfinite(logprob):
            return BackendError(f"the answers of query {query.id} have the probability 0, or NaN")
        return logprob


@dataclass(frozen=True)
class Found:
    """The beams of one query."""

    beams: tuple[Beam, ...]
    """Best first."""
    logprob: float
    """log P(answers) without any demonstration."""


def most_trials(rows: int, shots: int, beam_size: int) -> int:
    """What `search` asks at most for a query that may choose among so many rows."""
    return 1 + sum(
        min(beam_size, math.perm(rows, step)) * (rows - step) if step else rows
        for step in range(shots)
    )


def search(
    queries: Sequence[Example],
    rows: Sequence[Sequence[int]],
    pool: Sequence[Example],
    scorer: AnswerScorer,
    *,
    shots: int,
    beam_size: int,
    on_trial: Callable[[int, float | BackendError], object] = lambda query, result: None,
) -> list[Found | None]:
    """For each query the `beam_size` best pointers that beam search finds; None if it finds none.

    `rows[q]`: what query q may choose. A demonstration is added after those so far, next to the
    query. Of equals the earlier beam's and the earlier row's is kept. A trial that fails takes its
    row from its beam at its step and does no more harm; without demonstrations, it takes the query.
    The trials of one step go to the backend together, those of one query and beam side by side.
    """

    def ask_for(pointers: Sequence[Sequence[Pointer]]) -> list[dict[Pointer, float]]:
        """For each query, log P(answers) after each of its pointers, in their order."""
        asked = [(index, pointer) for index, mine in enumerate(pointers) for pointer in mine]
        trials = [Trial(queries[index], [pool[row] for row in each]) for index, each in asked]
        results: dict[int, float] = {}
        for position, result in scorer.score(trials):
            on_trial(asked[position][0], result)
            if not isinstance(result, BackendError):
                results[position] = result
        scored: list[dict[Pointer, float]] = [{} for _ in queries]
        for position in sorted(results):
            index, pointer = asked[position]
            scored[index][pointer] = results[position]
        return scored

    scored = ask_for([[(), *((row,) for row in mine)] for mine in rows])
    without = [each.pop((), None) for each in scored]
    beams = [[Beam((), 0.0, ())] for _ in queries]
    for step in range(shots):
        if step:
            scored = ask_for(
                [
                    [(*beam.pointer, r) for beam in kept for r in mine if r not in beam.pointer]
                    for kept, mine in zip(beams, rows, strict=True)
                ]
            )
        beams = [
            [] if base is None else _best(kept, each, base, beam_size)
            for kept, each, base in zip(beams, scored, without, strict=True)
        ]
    return [
        None if base is None or not kept else Found(tuple(kept), base)
        for kept, base in zip(beams, without, strict=True)
    ]


def _best(
    beams: Sequence[Beam], scored: dict[Pointer, float], without: float, size: int
) -> list[Beam]:
    """Of the beams, each longer by a row, the best; `without`: log P with no demonstration."""
    shorter = {beam.pointer: beam for beam in beams}
    longer = []
    for pointer, logprob in scored.items():
        parent = shorter[pointer[:-1]]
        score = logprob - without
        steps = (*parent.step_scores, score - parent.score)
        longer.append(Beam(pointer, score, steps))
    return sorted(longer, key=lambda beam: -beam.score)[:size]
