"""engine=plain: padded batches of whole prompts through the model's own `generate` and `forward`.

Nothing is shared between prompts but preprocessed images. The simple way: what the other engine is
measured against, and the way out for a model that it cannot run.

Prompts are taken in the order given, as many as fit the token budget, so that the same requests
always make the same batches, and thereby the same floats.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from pointer_rl.types import BackendError, Decoding
from pointer_rl_qwen2vl import padded
from pointer_rl_qwen2vl.answers import Generation
from pointer_rl_qwen2vl.checkpoint import Checkpoint
from pointer_rl_qwen2vl.inputs import expand
from pointer_rl_qwen2vl.jobs import Job, Result, respond
from pointer_rl_qwen2vl.padded import EncodedPrompt
from pointer_rl_qwen2vl.patches import PatchStore

__all__ = ["PlainEngine"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Ready:
    """A job whose images have been cut into patches."""

    job: Job
    prompt: EncodedPrompt

    @property
    def tokens(self) -> int:
        """Of the prompt with its longest answer and that one's end."""
        return len(self.prompt.token_ids) + max((len(a) + 1 for a in self.job.answers), default=0)


class PlainEngine:
    """Takes jobs through the model in padded batches."""

    def __init__(self, checkpoint: Checkpoint, patches: PatchStore, batch_tokens: int) -> None:
        self._checkpoint = checkpoint
        self._patches = patches
        self._batch_tokens = batch_tokens
        """Padding included, that go through together: less once memory has run out."""

    def run(self, jobs: Sequence[Job], decoding: Decoding | None) -> Iterator[tuple[int, Result]]:
        """Generate (unless `decoding` is None) and score: each job's index and result, once."""
        batch: list[_Ready] = []
        for job in jobs:
            prompt = self._encode(job)
            if isinstance(prompt, BackendError):
                yield job.index, prompt
                continue
            ready = _Ready(job, prompt)
            longest = max(each.tokens for each in (*batch, ready))
            if batch and longest * (len(batch) + 1) > self._batch_tokens:
                yield from self._answer_within_memory(batch, decoding)
                batch = []
            batch.append(ready)
        if batch:
            yield from self._answer_within_memory(batch, decoding)

    def _encode(self, job: Job) -> EncodedPrompt | BackendError:
        images = []
        for patches in self._patches.find(job.images):
            if isinstance(patches, str):
                return BackendError(patches)
            images.append(patches)
        pad = self._checkpoint.image_token_id
        pads = ([pad] * image.tokens for image in images)
        return EncodedPrompt(expand(job.token_ids, pad, pads), tuple(images))

    def _answer_within_memory(
        self, batch: Sequence[_Ready], decoding: Decoding | None
    ) -> Iterator[tuple[int, Result]]:
        """Answer a batch; where memory does not suffice, with half the tokens at a time."""
        try:
            results = self._answer(batch, decoding)
        except torch.OutOfMemoryError as error:
            message = str(error).partition("\n")[0]
        else:
            yield from results
            return
        # Outside the `except`: the traceback holds the tensors of the failed pass.
        torch.cuda.empty_cache()
        longest = max(each.tokens for each in batch)
        widest = max(len(batch), max(len(each.job.answers) for each in batch))
        if widest == 1 or (len(batch) == 1 and self._batch_tokens < 2 * longest):
            yield (
                batch[0].job.index,
                BackendError(
                    f"out of memory on a single prompt ({len(batch[0].prompt.token_ids)} tokens);"
                    f" use a smaller max_pixels, fewer demonstrations or fewer beams ({message})"
                ),
            )
            return
        self._batch_tokens = min(self._batch_tokens, longest * widest) // 2
        logger.warning(
            "out of memory with a batch of %d prompts; continuing with half: batch_tokens=%d"
            " avoids the failed passes",
            *(len(batch), self._batch_tokens),
        )
        middle = (len(batch) + 1) // 2
        yield from self._answer_within_memory(batch[:middle], decoding)
        if batch[middle:]:
            yield from self._answer_within_memory(batch[middle:], decoding)

    def _answer(
        self, batch: Sequence[_Ready], decoding: Decoding | None
    ) -> list[tuple[int, Result]]:
        generations: list[Generation | None] = [None] * len(batch)
        if decoding is not None:
            prompts = [each.prompt for each in batch]
            generations = [*padded.generate(self._checkpoint, prompts, decoding)]
        scores = iter(self._score(batch))
        return [
            respond(
                each.job,
                len(each.prompt.token_ids),
                generation,
                [next(scores) for _ in each.job.answers],
            )
            for each, generation in zip(batch, generations, strict=True)
        ]

    def _score(self, batch: Sequence[_Ready]) -> list[float]:
        """Log-probabilities of all answers of the batch, job by job."""
        pairs = [(each.prompt, answer) for each in batch for answer in each.job.answers]
        longest = max(each.tokens for each in batch)
        rows = max(1, self._batch_tokens // longest)
        return [
            logprob
            for start in range(0, len(pairs), rows)
            for logprob in padded.score(self._checkpoint, pairs[start : start + rows])
        ]
