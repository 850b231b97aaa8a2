"""Trials: ask the backend a query with some demonstrations, and judge its answer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pointer_rl.errors import InputError
from pointer_rl.session.caching import run_checked
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
        """(index, outcome) of each trial once, in the order in which they finish.

        The outcome of a failed trial says why it failed. Raises PluginError as `run_checked` does.
        """
        for index, result in run_checked(self.backend, self._requests(trials)):
            yield index, self._outcome(trials[index].query, result)

    def answer(self, trials: Sequence[Trial]) -> Iterator[tuple[int, Outcome]]:
        """As `judge`, for queries without annotators' answers: outcomes are not judged."""
        for index, result in run_checked(self.backend, map(self._request, trials)):
            yield index, self._answer(result)

    def requests(self, trials: Sequence[Trial]) -> list[Request]:
        """What the backend would be asked; trials that cannot be asked are left out."""
        return [each for each in self._requests(trials) if isinstance(each, Request)]

    def _requests(self, trials: Sequence[Trial]) -> Iterator[Request | InputError]:
        """The request of each trial, or why there is none."""
        query: Example | None = None
        for trial in trials:
            if trial.query is not query:  # a query's trials follow one another
                query, refusal = trial.query, self._refusal(trial.query)
                scored = () if refusal else self._scored(query)
            yield refusal or self._request(trial, scored)

    def _request(self, trial: Trial, scored: tuple[str, ...] = ()) -> Request | InputError:
        try:
            prompt = self.prompt.build(trial.query, trial.demonstrations)
        except InputError as error:
            return error
        return Request(prompt, self.decoding, scored)

    def _refusal(self, query: Example) -> InputError | None:
        """Why the metric could not judge any answer to the query, which is then not asked."""
        try:
            self.metric.judge("", query.answers)
        except InputError as error:
            return error
        return None

    def _scored(self, query: Example) -> tuple[str, ...]:
        if not self.score_answers:
            return ()
        return tuple(dict.fromkeys(query.answers))

    def _answer(self, result: Response | BackendError) -> Outcome:
        """The outcome of a trial before it is judged."""
        if isinstance(result, BackendError):
            return Outcome(failure=result.message)
        assert result.text is not None, "`run_checked` lets no response without text through"
        return Outcome(raw_generation=result.text, answer=self.prompt.parse(result.text))

    def _outcome(self, query: Example, result: Response | BackendError) -> Outcome:
        outcome = self._answer(result)
        if isinstance(result, BackendError):
            return outcome
        assert outcome.answer is not None, "a response has an answer"
        judgement = self.metric.judge(outcome.answer, query.answers)
        return replace(
            outcome,
            correct=judgement.correct,
            accuracy=judgement.accuracy,
            gt_prob=self._gt_prob(query, result.score_logprobs) if self.score_answers else None,
        )

    def _gt_prob(self, query: Example, logprobs: Sequence[float]) -> float:
        """Σ over the distinct answers a of min(count(a) / 3, 1) · P(a | prompt).

        The expected accuracy of an answer sampled from the model (Lever-Plus' vqa_gt_prob). Answers
        are counted as the metric normalises them. Their probability is that of the annotators' own
        spelling: normalised, an answer may be one that the model never gives.
        """
        normalise = self.metric.normalise
        counts = Counter(map(normalise, query.answers))
        total = sum(
            min(counts[normalise(answer)] / 3, 1.0) * math.exp(logprob)
            for answer, logprob in zip(self._scored(query), logprobs, strict=True)
        )
        return min(total, 1.0)
