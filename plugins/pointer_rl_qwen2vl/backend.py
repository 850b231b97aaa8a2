"""The backend: which requests share a batch, and what happens to those that fail.

Requests with the same decoding are taken in the order given, `batch_size` at a time, so that the
same requests always make the same batches, and thereby the same floats. They are not sorted by
length: that takes opening every image first, and prompts that are asked together mostly have the
same number of demonstrations.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from pointer_rl.types import BackendError, Decoding, Request, Response, Usage
from pointer_rl_qwen2vl import engine
from pointer_rl_qwen2vl.checkpoint import Checkpoint
from pointer_rl_qwen2vl.inputs import EncodedPrompt, PromptEncoder

__all__ = ["Qwen2VLBackend"]

logger = logging.getLogger(__name__)

Result = Response | BackendError


@dataclass(frozen=True)
class _Job:
    """A request that can go through the model."""

    index: int
    decoding: Decoding | None
    prompt: EncodedPrompt
    answers: list[list[int]]


class Qwen2VLBackend:
    """A loaded Qwen-VL checkpoint as a `VQABackend`."""

    def __init__(self, checkpoint: Checkpoint, *, batch_size: int) -> None:
        self.fingerprint = checkpoint.fingerprint
        self._checkpoint = checkpoint
        self._encoder = PromptEncoder(checkpoint)
        self._rows = batch_size
        """That go through together: `batch_size`, until memory runs out."""

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, Result]]:
        """Answer each request once, batch by batch, as (its index, its result)."""
        groups: dict[Decoding | None, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(request.decoding, []).append(index)
        for indices in groups.values():
            start = 0
            while start < len(indices):
                batch = indices[start : start + self._rows]
                start += len(batch)
                jobs = []
                for index, job in self._prepare(batch, requests):
                    if isinstance(job, BackendError):
                        yield index, job
                    else:
                        jobs.append(job)
                yield from self._answer_within_memory(jobs, self._rows)

    def _prepare(
        self, batch: Sequence[int], requests: Sequence[Request]
    ) -> Iterator[tuple[int, _Job | BackendError]]:
        prompts = self._encoder.encode([requests[index].prompt for index in batch])
        for index, prompt in zip(batch, prompts, strict=True):
            answers = self._encoder.encode_answers(requests[index].score)
            if isinstance(prompt, BackendError):
                yield index, prompt
            elif isinstance(answers, BackendError):
                yield index, answers
            else:
                yield index, _Job(index, requests[index].decoding, prompt, answers)

    def _answer_within_memory(
        self, jobs: Sequence[_Job], rows: int
    ) -> Iterator[tuple[int, Result]]:
        """Answer with at most `rows` rows a pass; where memory does not suffice, with half."""
        for start in range(0, len(jobs), rows):
            batch = jobs[start : start + rows]
            try:
                results = self._answer(batch, rows)
            except torch.OutOfMemoryError as error:
                message = str(error).partition("\n")[0]
            else:
                yield from results
                continue
            # Outside the `except`: the traceback holds the tensors of the failed pass.
            torch.cuda.empty_cache()
            widest = max(len(batch), min(rows, sum(len(job.answers) for job in batch)))
            if widest == 1:
                yield (
                    batch[0].index,
                    BackendError(
                        "out of memory on a single prompt"
                        f" ({len(batch[0].prompt.token_ids)} tokens); use a smaller max_pixels,"
                        f" fewer demonstrations or fewer beams ({message})"
                    ),
                )
                continue
            if widest // 2 < self._rows:
                self._rows = widest // 2
                logger.warning(
                    "out of memory with %d rows at a time; continuing with %d: batch_size=%d"
                    " avoids the failed passes",
                    *(widest, self._rows, self._rows),
                )
            yield from self._answer_within_memory(batch, widest // 2)

    def _answer(self, batch: Sequence[_Job], rows: int) -> list[tuple[int, Result]]:
        decoding = batch[0].decoding
        generations: list[engine.Generation | None] = [None] * len(batch)
        if decoding is not None:
            prompts = [job.prompt for job in batch]
            generations = [*engine.generate(self._checkpoint, prompts, decoding)]
        logprobs = iter(self._score(batch, rows))
        results: list[tuple[int, Result]] = []
        for job, generation in zip(batch, generations, strict=True):
            scores = tuple(next(logprobs) for _ in job.answers)
            if not all(map(math.isfinite, scores)):
                error = BackendError("the model's output overflows; use dtype=bfloat16 or float32")
                results.append((job.index, error))
                continue
            usage = Usage(
                prompt_tokens=len(job.prompt.token_ids),
                generated_tokens=generation.tokens if generation else 0,
                images=len(job.prompt.images),
            )
            text = generation.text if generation else None
            results.append((job.index, Response(text, scores, usage)))
        return results

    def _score(self, batch: Sequence[_Job], rows: int) -> list[float]:
        """Log-probabilities of all answers of the batch, job by job."""
        pairs = [(job.prompt, answer) for job in batch for answer in job.answers]
        return [
            logprob
            for start in range(0, len(pairs), rows)
            for logprob in engine.score(self._checkpoint, pairs[start : start + rows])
        ]
