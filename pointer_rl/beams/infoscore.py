"""InfoScore: what a demonstration adds to the probability of the annotators' answers.

    P(answers | shown) = Σ over the distinct answers a of share(a) · P(a | shown, query)
    InfoScore(c | shown) = log P(answers | shown, c) - log P(answers | shown)

share(a) is the share of the annotators who gave a. Everything is in natural logarithms, so that
nothing underflows. The InfoScores of a pointer's rows add up to log P(answers) with all of them
minus log P(answers) without any. (Lever-LM subtracts probabilities instead: Yang et al., "Lever LM:
Configuring In-Context Sequence to Lever Large Vision Language Models", NeurIPS 2024.)
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


def answers_logprob(answers: Sequence[str], logprobs: Sequence[float]) -> float:
    """log P(answers), from one answer per annotator and `logprobs` of the distinct ones in order.

    -inf if all of them have probability 0.
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
        """(index, log P(answers)) of each trial once, in the order in which they finish.

        A trial fails if its prompt cannot be built, its query has no answers, or no answer has a
        probability above 0. Raises PluginError as `run_checked` does.
        """
        for index, result in run_checked(self.backend, map(self._request, trials)):
            yield index, self._logprob(trials[index].query, result)

    def _request(self, trial: Trial) -> Request | InputError:
        """The trial's request, or why there is none."""
        if not trial.query.answers:
            return InputError(f"query {trial.query.id} has no annotators' answers")
        try:
            prompt = self.prompt.build(trial.query, trial.demonstrations)
        except InputError as error:
            return error
        return Request(prompt, None, tuple(dict.fromkeys(trial.query.answers)))

    def _logprob(self, query: Example, result: Response | BackendError) -> float | BackendError:
        if isinstance(result, BackendError):
            return result
        logprob = answers_logprob(query.answers, result.score_logprobs)
        if not math.isfinite(logprob):
            return BackendError(f"the answers of query {query.id} have the probability 0")
        return logprob


@dataclass(frozen=True)
class Found:
    """The beams of one query."""

    beams: tuple[Beam, ...]
    """Best first."""
    logprob: float
    """log P(answers) without any demonstration."""


def most_trials(rows: int, shots: int, beam_size: int) -> int:
    """The most trials that `search` asks for a query that may choose among so many rows."""
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
    any_length: bool,
    on_trial: Callable[[int, float | BackendError], object] = lambda query, result: None,
) -> list[Found | None]:
    """For each query the `beam_size` best pointers that beam search finds; None if it finds none.

    rows[q]: the rows that query q may choose. Each step appends a demonstration, next to the query.
    Ties go to the earlier beam, then to the earlier row. A failed trial removes its row from its
    beam at this step; if the trial without demonstrations fails, the query has no beams. The trials
    of one step go to the backend together, those of one query and beam next to each other.

    With `any_length` each beam is cut where its score is highest, if need be before its first row.
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
        None if base is None or not kept else Found(tuple(_cut(kept) if any_length else kept), base)
        for kept, base in zip(beams, without, strict=True)
    ]


def _best(
    beams: Sequence[Beam], scored: dict[Pointer, float], without: float, size: int
) -> list[Beam]:
    """The best of the beams that are one row longer; without: log P without demonstrations."""
    shorter = {beam.pointer: beam for beam in beams}
    longer = []
    for pointer, logprob in scored.items():
        parent = shorter[pointer[:-1]]
        score = logprob - without
        steps = (*parent.step_scores, score - parent.score)
        longer.append(Beam(pointer, score, steps))
    return sorted(longer, key=lambda beam: -beam.score)[:size]


def _cut(beams: Sequence[Beam]) -> list[Beam]:
    """Each beam up to where its score is highest, at the earliest; best first, without repeats."""
    found: dict[Pointer, Beam] = {}
    for beam in beams:
        scores = [math.fsum(beam.step_scores[:length]) for length in range(len(beam.pointer) + 1)]
        length = scores.index(max(scores))
        cut = Beam(beam.pointer[:length], scores[length], beam.step_scores[:length])
        found.setdefault(cut.pointer, cut)
    return sorted(found.values(), key=lambda beam: -beam.score)
