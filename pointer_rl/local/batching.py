"""A backend over a model that runs here: from requests to padded batches, within memory.

A plugin gives the model (`LocalModel`); what every such backend does is here. Requests of one
decoding go together. Their prompts are read some batches ahead, sorted by length, and go through
the model as many at a time as a token budget allows. Where memory runs out the budget is halved and
it goes on; a prompt that cannot be shown, or does not fit even alone, fails alone.

The same requests always make the same batches (until memory runs out), and thereby the same floats.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

from pointer_rl.errors import InputError, first_line
from pointer_rl.local.decoding import Generation
from pointer_rl.types import BackendError, Decoding, Prompt, Request, Response, Usage

__all__ = [
    "OVERFLOW",
    "BatchModel",
    "EncodedPrompt",
    "Job",
    "LocalBackend",
    "LocalModel",
    "PaddedBatches",
    "Result",
    "by_decoding",
    "default_batch_tokens",
    "response",
]

logger = logging.getLogger(__name__)

OVERFLOW = "the model's output overflows; use dtype=bfloat16 or float32"

Result = Response | BackendError

_BATCHES_AHEAD = 4
"""How many batches' prompts are sorted together: their pixels are in memory meanwhile."""


class EncodedPrompt(Protocol):
    """A prompt as a model takes it. The rest of it is the model's own business."""

    @property
    def tokens(self) -> int:
        """Places that it takes in a row of a batch."""
        ...


P = TypeVar("P", bound=EncodedPrompt)
P_contra = TypeVar("P_contra", bound=EncodedPrompt, contravariant=True)


class BatchModel(Protocol[P_contra]):
    """A model that takes prompts of different lengths together."""

    def generate(self, prompts: Sequence[P_contra], decoding: Decoding) -> Sequence[Generation]:
        """Decode each prompt, as if it were alone.

        Raises torch.OutOfMemoryError, and InputError for prompts that the model refuses.
        """
        ...

    def score(self, rows: Sequence[tuple[P_contra, Sequence[int]]]) -> Sequence[float]:
        """log p(tokens | prompt) of each row: natural logarithm, summed over the tokens.

        Raises as `generate` does.
        """
        ...


class LocalModel(BatchModel[P], Protocol):
    """What a plugin gives: a model, and how it reads prompts and answers."""

    def encode(self, prompt: Prompt) -> P:
        """Opens the prompt's images. Raises InputError for a prompt that cannot be shown."""
        ...

    def encode_answer(self, answer: str) -> Sequence[int]:
        """The tokens of an answer to be scored, with the one that ends it.

        Raises InputError for a text that cannot be an answer.
        """
        ...


@dataclass(frozen=True)
class Job(Generic[P]):
    """A request as the model takes it."""

    prompt: P
    images: int
    """How many the prompt has."""
    answers: Sequence[Sequence[int]]
    """To be scored: tokens, with the one that ends each."""

    @property
    def tokens(self) -> int:
        """Of the prompt with its longest answer."""
        return self.prompt.tokens + max(map(len, self.answers), default=0)


class LocalBackend(Generic[P]):
    """A `VQABackend` over a local model."""

    def __init__(
        self, model: LocalModel[P], *, fingerprint: str, batch_tokens: int, advice: str
    ) -> None:
        """`batch_tokens`, `advice`: see `PaddedBatches`."""
        self.fingerprint = fingerprint
        self._model = model
        self._batches = PaddedBatches(model, batch_tokens, advice)

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, Result]]:
        """Answer each request once, those of one decoding together, as (its index, its result)."""
        for decoding, indices in by_decoding(requests).items():
            jobs = ((index, self._encode(requests[index])) for index in indices)
            yield from self._batches.run(jobs, decoding)

    def _encode(self, request: Request) -> Job[P] | BackendError:
        try:
            answers = [self._model.encode_answer(answer) for answer in request.score]
            prompt = self._model.encode(request.prompt)
        except InputError as error:
            return BackendError(str(error))
        return Job(prompt, len(request.prompt.images), answers)


class PaddedBatches(Generic[P]):
    """Takes jobs through a model in padded batches."""

    def __init__(self, model: BatchModel[P], batch_tokens: int, advice: str) -> None:
        self._model = model
        self._ahead = _BATCHES_AHEAD * batch_tokens
        self._batch_tokens = batch_tokens
        """Padding included, that go through together: less once memory has run out."""
        self._advice = advice
        """What a user can do about a prompt that does not fit: "use … or …"."""

    def run(
        self, jobs: Iterable[tuple[int, Job[P] | BackendError]], decoding: Decoding | None
    ) -> Iterator[tuple[int, Result]]:
        """Generate (unless `decoding` is None) and score: a result for each index, as they finish.

        The jobs are asked for as they are needed; one that has failed already is passed on.
        """
        ahead: list[tuple[int, Job[P]]] = []
        tokens = 0
        for index, job in jobs:
            if isinstance(job, BackendError):
                yield index, job
                continue
            ahead.append((index, job))
            tokens += job.tokens
            if tokens >= self._ahead:
                yield from self._run_sorted(ahead, decoding)
                ahead, tokens = [], 0
        yield from self._run_sorted(ahead, decoding)

    def _run_sorted(
        self, jobs: Sequence[tuple[int, Job[P]]], decoding: Decoding | None
    ) -> Iterator[tuple[int, Result]]:
        """Batch by batch, the longest first: what does not fit shows at once."""
        batch: list[tuple[int, Job[P]]] = []
        for index, job in sorted(jobs, key=lambda each: -each[1].tokens):
            if batch and batch[0][1].tokens * (len(batch) + 1) > self._batch_tokens:
                yield from self._answer(batch, decoding, self._batch_tokens)
                batch = []
            batch.append((index, job))
        if batch:
            yield from self._answer(batch, decoding, self._batch_tokens)

    def _answer(
        self, batch: Sequence[tuple[int, Job[P]]], decoding: Decoding | None, before: int
    ) -> Iterator[tuple[int, Result]]:
        """Answer a batch; where that fails, half of it at a time.

        before: the budget as it was when memory first ran out on these jobs.
        """
        jobs = [job for _, job in batch]
        try:
            results = self._attempt(jobs, decoding)
        except torch.OutOfMemoryError as error:
            out_of_memory, message = True, first_line(error)
        except InputError as error:
            out_of_memory, message = False, str(error)
        else:
            yield from zip((index for index, _ in batch), results, strict=True)
            return
        if out_of_memory:
            # Outside the `except`: the traceback holds the tensors of the failed pass.
            torch.cuda.empty_cache()
            if len(batch) > 1:
                self._halve(jobs)
            elif len(jobs[0].answers) > 1 and self._batch_tokens >= 2 * jobs[0].tokens:
                self._halve(jobs)  # fewer answers at a time
                yield from self._answer(batch, decoding, before)
                return
            else:
                self._batch_tokens = before  # it was this prompt: the others need not pay for it
                message = (
                    f"out of memory on a single prompt ({jobs[0].prompt.tokens} tokens);"
                    f" {self._advice} ({message})"
                )
        if len(batch) == 1:
            yield batch[0][0], BackendError(message)
            return
        middle = (len(batch) + 1) // 2
        for half in (batch[:middle], batch[middle:]):
            yield from self._answer(half, decoding, before)

    def _halve(self, jobs: Sequence[Job[P]]) -> None:
        """From now on take half of what did not fit."""
        rows = max(len(jobs), *(len(job.answers) for job in jobs))
        tokens = rows * max(job.tokens for job in jobs)
        self._batch_tokens = min(self._batch_tokens, tokens) // 2
        logger.warning(
            "out of memory with a batch of %d prompts; continuing with half: batch_tokens=%d"
            " avoids the failed passes",
            *(len(jobs), self._batch_tokens),
        )

    def _attempt(self, jobs: Sequence[Job[P]], decoding: Decoding | None) -> list[Result]:
        generations: Sequence[Generation | None] = [None] * len(jobs)
        if decoding is not None:
            generations = self._model.generate([job.prompt for job in jobs], decoding)
        scores = iter(self._score(jobs))
        return [
            response(
                generation,
                [next(scores) for _ in job.answers],
                prompt_tokens=job.prompt.tokens,
                images=job.images,
            )
            for job, generation in zip(jobs, generations, strict=True)
        ]

    def _score(self, jobs: Sequence[Job[P]]) -> list[float]:
        """Log-probabilities of all answers of the batch, job by job."""
        rows = [(job.prompt, answer) for job in jobs for answer in job.answers]
        step = max(1, self._batch_tokens // max(job.tokens for job in jobs))
        return [
            logprob
            for start in range(0, len(rows), step)
            for logprob in self._model.score(rows[start : start + step])
        ]


def by_decoding(requests: Sequence[Request]) -> dict[Decoding | None, list[int]]:
    """The indices of the requests that are decoded alike, in the order given."""
    groups: dict[Decoding | None, list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(request.decoding, []).append(index)
    return groups


def default_batch_tokens(device: torch.device) -> int:
    """Tokens that go through a model together where the user says nothing."""
    return 1024 if device.type == "cpu" else 16384


def response(
    generation: Generation | None, scores: Sequence[float], *, prompt_tokens: int, images: int
) -> Result:
    """What a request gets. Scores that are no numbers make it a failure."""
    if not all(map(math.isfinite, scores)):
        return BackendError(OVERFLOW)
    generated = generation.tokens if generation else 0
    usage = Usage(prompt_tokens=prompt_tokens, generated_tokens=generated, images=images)
    return Response(generation.text if generation else None, tuple(scores), usage)
