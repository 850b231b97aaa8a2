"""A backend over a model that runs here: from requests to padded batches that fit into memory.

A plugin provides a `LocalModel`; `LocalBackend` does the rest. Requests with the same decoding run
together. Their prompts are encoded a few batches ahead, sorted by length, and batched up to a token
budget. If memory runs out, the budget is halved and the run continues. A prompt that cannot be
encoded, or that does not fit alone, fails alone.

The same requests always form the same batches, and therefore give bit-identical results, until
memory runs out.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

from pointer_rl.errors import InputError
from pointer_rl.local.decoding import Generation
from pointer_rl.local.memory import run_in_halves
from pointer_rl.local.threads import run_in_threads
from pointer_rl.types import BackendError, Decoding, Prompt, Request, Response, Usage

logger = logging.getLogger(__name__)

OVERFLOW = "the model's output overflows; use dtype=bfloat16 or float32"

Result = Response | BackendError

_BATCHES_AHEAD = 4
"""Batches whose prompts are sorted together. Their pixels are held in memory meanwhile."""


class EncodedPrompt(Protocol):
    """A prompt in the model's own format."""

    @property
    def tokens(self) -> int:
        """Number of positions that the prompt takes in a row of a batch."""
        ...


P = TypeVar("P", bound=EncodedPrompt)


class LocalModel(Protocol[P]):
    """What a plugin provides: a model that processes prompts of different lengths in one batch."""

    def encode(self, prompt: Prompt) -> P:
        """Encode a prompt, which opens its images. Raises InputError if that is not possible."""
        ...

    def encode_answer(self, answer: str) -> Sequence[int]:
        """The tokens of an answer to be scored, including the token that ends it.

        Raises InputError for a text that cannot be an answer.
        """
        ...

    def generate(self, prompts: Sequence[P], decoding: Decoding) -> Sequence[Generation]:
        """Decode each prompt as if it were alone.

        Raises torch.OutOfMemoryError, and InputError for prompts that the model refuses.
        """
        ...

    def score(self, rows: Sequence[tuple[P, Sequence[int]]]) -> Sequence[float]:
        """log p(tokens | prompt) of each row: natural logarithm, summed over the tokens.

        Raises torch.OutOfMemoryError, and InputError for prompts that the model refuses.
        """
        ...


@dataclass(frozen=True)
class _Encoded(Generic[P]):
    """A request in the model's own format."""

    index: int
    prompt: P
    images: int
    """Number of images in the prompt."""
    answers: Sequence[Sequence[int]]
    """Tokens of each answer to be scored, including the token that ends it."""

    @property
    def tokens(self) -> int:
        """Number of tokens of the prompt with its longest answer."""
        return self.prompt.tokens + max(map(len, self.answers), default=0)


class LocalBackend(Generic[P]):
    """A `VQABackend` over a local model."""

    def __init__(
        self,
        model: LocalModel[P],
        *,
        fingerprint: str,
        batch_tokens: int,
        advice: str,
        threads: int | None = None,
    ) -> None:
        """`batch_tokens`, the most tokens in a batch with padding, is lowered if memory runs out.

        `advice` tells a user what to do about a prompt that does not fit: "use … or …". `threads`
        is the number of torch's CPU threads while the model runs; None leaves it as it is.
        """
        self.fingerprint = fingerprint
        self._model = model
        self._ahead = _BATCHES_AHEAD * batch_tokens
        self._batch_tokens = batch_tokens
        self._advice = advice
        self._threads = threads

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, Result]]:
        """Answer each request once as (its index, its result), one decoding after the other."""
        return run_in_threads(self._run(requests), self._threads)

    def _run(self, requests: Sequence[Request]) -> Iterator[tuple[int, Result]]:
        for decoding, indices in by_decoding(requests).items():
            ahead: list[_Encoded[P]] = []
            tokens = 0
            for index in indices:
                try:
                    ahead.append(self._encode(index, requests[index]))
                except InputError as error:
                    yield index, BackendError(str(error))
                    continue
                tokens += ahead[-1].tokens
                if tokens >= self._ahead:
                    yield from self._run_sorted(ahead, decoding)
                    ahead, tokens = [], 0
            yield from self._run_sorted(ahead, decoding)

    def _encode(self, index: int, request: Request) -> _Encoded[P]:
        answers = [self._model.encode_answer(answer) for answer in request.score]
        prompt = self._model.encode(request.prompt)
        return _Encoded(index, prompt, len(request.prompt.images), answers)

    def _run_sorted(
        self, requests: Sequence[_Encoded[P]], decoding: Decoding | None
    ) -> Iterator[tuple[int, Result]]:
        """Run the longest requests first, so that one that does not fit fails early."""
        batch: list[_Encoded[P]] = []
        for request in sorted(requests, key=lambda each: -each.tokens):
            if batch and batch[0].tokens * (len(batch) + 1) > self._batch_tokens:
                yield from self._answer(batch, decoding)
                batch = []
            batch.append(request)
        if batch:
            yield from self._answer(batch, decoding)

    def _answer(
        self, batch: Sequence[_Encoded[P]], decoding: Decoding | None
    ) -> Iterator[tuple[int, Result]]:
        """Answer a batch; if that fails, half of it at a time."""
        before = self._batch_tokens

        def run(part: Sequence[_Encoded[P]]) -> list[tuple[int, Result]]:
            return self._run_batch(part, decoding)

        def answer_alone(request: _Encoded[P], message: str) -> tuple[int, Result]:
            """Score fewer answers at a time, as long as that is possible; else give up."""
            if len(request.answers) > 1 and self._batch_tokens >= 2 * request.tokens:
                self._halve_budget([request])
                [result] = run_in_halves(
                    [request], run, on_split=self._halve_budget, on_failure=answer_alone
                )
                return result
            self._batch_tokens = before  # Only this prompt is too large; keep batches of others.
            return request.index, BackendError(
                f"out of memory on a single prompt ({request.prompt.tokens} tokens);"
                f" {self._advice} ({message})"
            )

        yield from run_in_halves(batch, run, on_split=self._halve_budget, on_failure=answer_alone)

    def _halve_budget(self, batch: Sequence[_Encoded[P]]) -> None:
        """Set the budget to half of what a batch took that did not fit."""
        rows = max(len(batch), *(len(request.answers) for request in batch))
        tokens = rows * max(request.tokens for request in batch)
        self._batch_tokens = min(self._batch_tokens, tokens) // 2
        logger.warning(
            "out of memory with a batch of %d prompts; continuing with half: set batch_tokens=%d"
            " to avoid the failed passes",
            len(batch),
            self._batch_tokens,
        )

    def _run_batch(
        self, batch: Sequence[_Encoded[P]], decoding: Decoding | None
    ) -> list[tuple[int, Result]]:
        """The results of a batch. If the model refuses it, each half is tried on its own."""
        logger.debug("batch of %d prompts, the longest of %d tokens", len(batch), batch[0].tokens)
        try:
            generations: Sequence[Generation | None] = [None] * len(batch)
            if decoding is not None:
                generations = self._model.generate([each.prompt for each in batch], decoding)
            scores = iter(self._score(batch))
        except InputError as error:
            if len(batch) == 1:
                return [(batch[0].index, BackendError(str(error)))]
        else:
            return [
                (
                    request.index,
                    make_response(
                        generation,
                        [next(scores) for _ in request.answers],
                        prompt_tokens=request.prompt.tokens,
                        images=request.images,
                    ),
                )
                for request, generation in zip(batch, generations, strict=True)
            ]
        middle = (len(batch) + 1) // 2
        halves = (batch[:middle], batch[middle:])
        return [result for half in halves for result in self._run_batch(half, decoding)]

    def _score(self, requests: Sequence[_Encoded[P]]) -> list[float]:
        """Log-probabilities of all answers of the batch, request by request."""
        rows = [(request.prompt, answer) for request in requests for answer in request.answers]
        step = max(1, self._batch_tokens // max(request.tokens for request in requests))
        return [
            logprob
            for start in range(0, len(rows), step)
            for logprob in self._model.score(rows[start : start + step])
        ]


def by_decoding(requests: Sequence[Request]) -> dict[Decoding | None, list[int]]:
    """The indices of the requests for each decoding, in the order given."""
    groups: dict[Decoding | None, list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(request.decoding, []).append(index)
    return groups


def default_batch_tokens(device: torch.device) -> int:
    """Tokens in a batch if the user does not set `batch_tokens`."""
    return 1024 if device.type == "cpu" else 16384


def make_response(
    generation: Generation | None, scores: Sequence[float], *, prompt_tokens: int, images: int
) -> Result:
    """The result of a request: a BackendError if a score is not a finite number."""
    if not all(map(math.isfinite, scores)):
        return BackendError(OVERFLOW)
    generated = generation.tokens if generation else 0
    usage = Usage(prompt_tokens=prompt_tokens, generated_tokens=generated, images=images)
    return Response(generation.text if generation else None, tuple(scores), usage)
