"""Trials: ask the backend a query with some demonstrations, and judge what it answers."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pointer_rl.errors import InputError
from pointer_rl.trials.stored import ask
from pointer_rl.types import (
    BackendError,
    Decoding,
    Example,
    Metric,
    Outcome,
    PromptBuilder,
    Request,
    Response,
    VQABackend,
)

__all__ = ["Judge", "Trial"]


@dataclass(frozen=True)
class Trial:
    """A query and the demonstrations shown before it, in order."""

    query: Example
    demonstrations: Sequence[Example]


@dataclass(frozen=True, kw_only=True)
class Judge:
    """How trials become outcomes: prompt builder, backend, decoding, metric."""

    prompt: PromptBuilder
    backend: VQABackend
    metric: Metric
    decoding: Decoding = Decoding()
    score_answers: bool = False
    """Also ask for the probability of the annotators' answers (`Outcome.gt_prob`)."""

    def judge(self, trials: Sequence[Trial]) -> Iterator[tuple[int, Outcome]]:
        """Each trial's outcome once, in the order in which they finish, as (its index, it).

        A trial that fails has an outcome that says why; the others go on. Raises PluginError as
        `ask` does.
        """
        requests, indices = [], []
        for index, trial in enumerate(trials):
            try:
                requests.append(self.request(trial))
                indices.append(index)
            except InputError as error:
                yield index, Outcome(failure=str(error))
        for position, result in ask(self.backend, requests):
            index = indices[position]
            yield index, self._outcome(trials[index].query, result)

    def requests(self, trials: Sequence[Trial]) -> list[Request]:
        """What the backend would be asked for these; of a trial that cannot be asked, nothing."""
        requests = []
        for trial in trials:
            with contextlib.suppress(InputError):
                requests.append(self.request(trial))
        return requests

    def request(self, trial: Trial) -> Request:
        """Raises InputError for a query that cannot be judged, or an example that has no prompt."""
        self.metric.judge("", trial.query.answers)  # not asked if it cannot be judged
        prompt = self.prompt.build(trial.query, trial.demonstrations)
        return Request(prompt, self.decoding, self._scored(trial.query))

    def _scored(self, query: Example) -> tuple[str, ...]:
        if not self.score_answers:
            return ()
        return tuple(dict.fromkeys(map(self.metric.normalise, query.answers)))

    def _outcome(self, query: Example, result: Response | BackendError) -> Outcome:
        if isinstance(result, BackendError):
            return Outcome(failure=result.message)
        if result.text is None:
            return Outcome(failure="the backend returned no text")
        answer = self.prompt.parse(result.text)
        judgement = self.metric.judge(answer, query.answers)
        return Outcome(
            raw_generation=result.text,
            answer=answer,
            correct=judgement.correct,
            accuracy=judgement.accuracy,
            gt_prob=self._gt_prob(query, result.score_logprobs) if self.score_answers else None,
        )

    def _gt_prob(self, query: Example, logprobs: Sequence[float]) -> float:
        """Σ over the distinct normalised answers a of min(count(a) / 3, 1) · P(a | prompt).

        The accuracy to expect of an answer drawn from the model (Lever-Plus' vqa_gt_prob).
        """
        counts = Counter(map(self.metric.normalise, query.answers))
        scored = self._scored(query)
        total = sum(
            min(counts[answer] / 3, 1.0) * math.exp(logprob)
            for answer, logprob in zip(scored, logprobs, strict=True)
        )
        return min(total, 1.0)
