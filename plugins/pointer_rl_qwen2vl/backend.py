"""The backend: requests become jobs for an engine; those that cannot fail alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from pointer_rl.errors import InputError
from pointer_rl.local.batching import by_decoding, default_batch_tokens
from pointer_rl.types import BackendError, Count, ImageRef, Request
from pointer_rl_qwen2vl.checkpoint import Checkpoint
from pointer_rl_qwen2vl.counting import count_tokens
from pointer_rl_qwen2vl.inputs import PromptEncoder
from pointer_rl_qwen2vl.jobs import Engine, Job, Result
from pointer_rl_qwen2vl.patches import PatchStore
from pointer_rl_qwen2vl.plain import PlainEngine
from pointer_rl_qwen2vl.shared import SharedEngine

__all__ = ["Qwen2VLBackend"]


class Qwen2VLBackend:
    """A loaded Qwen-VL checkpoint as a `VQABackend`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        engine: Literal["shared", "plain"] = "shared",
        batch_tokens: int | None = None,
    ) -> None:
        self.fingerprint = checkpoint.fingerprint
        self._encoder = PromptEncoder(checkpoint)
        if batch_tokens is None:
            batch_tokens = default_batch_tokens(checkpoint.model.device)
        make = SharedEngine if engine == "shared" else PlainEngine
        self._patches = PatchStore(checkpoint)
        self._engine: Engine = make(checkpoint, self._patches, batch_tokens)
        self._image_token_id = checkpoint.image_token_id

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, Result]]:
        """Answer each request once, those of one decoding together, as (its index, its result)."""
        for decoding, indices in by_decoding(requests).items():
            jobs, failed = self._jobs(requests, indices)
            yield from failed
            yield from self._engine.run(jobs, decoding)

    def count(self, requests: Sequence[Request]) -> Count:
        """Their tokens, each prompt taken whole, and those that engine=shared computes of them."""
        jobs, _ = self._jobs(requests, range(len(requests)))
        count = count_tokens(jobs, self._patches, self._image_token_id)
        if isinstance(self._engine, PlainEngine):
            return Count(count.prompt_tokens, count.prompt_tokens)
        return count

    def _jobs(
        self, requests: Sequence[Request], indices: Sequence[int]
    ) -> tuple[list[Job], list[tuple[int, BackendError]]]:
        """Those of these requests that have one, and why the others have none."""
        keys: dict[int, str | BackendError] = {}
        prompts = self._encoder.encode([requests[index].prompt for index in indices])
        answers = self._encoder.encode_answers([requests[index].score for index in indices])
        jobs: list[Job] = []
        failed: list[tuple[int, BackendError]] = []
        for index, prompt, scored in zip(indices, prompts, answers, strict=True):
            images = _keyed(requests[index].prompt.images, keys)
            if isinstance(prompt, BackendError):
                failed.append((index, prompt))
            elif isinstance(scored, BackendError):
                failed.append((index, scored))
            elif isinstance(images, BackendError):
                failed.append((index, images))
            else:
                jobs.append(Job(index, prompt, images, scored))
        return jobs, failed


def _keyed(
    images: Sequence[ImageRef], keys: dict[int, str | BackendError]
) -> tuple[tuple[str, ImageRef], ...] | BackendError:
    """The images with their keys, or why one has none. Of each object the key is read once."""
    keyed = []
    for image in images:
        if id(image) not in keys:
            keys[id(image)] = _key(image)
        key = keys[id(image)]
        if isinstance(key, BackendError):
            return key
        keyed.append((key, image))
    return tuple(keyed)


def _key(image: ImageRef) -> str | BackendError:
    try:
        return image.key
    except InputError as error:
        return BackendError(str(error))
