"""The backend: requests become jobs for an engine; those that cannot fail alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from pointer_rl.errors import InputError
from pointer_rl.local_backend import by_decoding, default_batch_tokens
from pointer_rl.types import BackendError, ImageRef, Request
from pointer_rl_qwen2vl.checkpoint import Checkpoint
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
        self._engine: Engine = make(checkpoint, PatchStore(checkpoint), batch_tokens)

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, Result]]:
        """Answer each request once, those of one decoding together, as (its index, its result)."""
        keys: dict[int, str | BackendError] = {}
        for decoding, indices in by_decoding(requests).items():
            prompts = self._encoder.encode([requests[index].prompt for index in indices])
            answers = self._encoder.encode_answers([requests[index].score for index in indices])
            images = [_keyed(requests[index].prompt.images, keys) for index in indices]
            jobs = []
            for index, prompt, scored, shown in zip(indices, prompts, answers, images, strict=True):
                if isinstance(prompt, BackendError):
                    yield index, prompt
                elif isinstance(scored, BackendError):
                    yield index, scored
                elif isinstance(shown, BackendError):
                    yield index, shown
                else:
                    jobs.append(Job(index, prompt, shown, scored))
            yield from self._engine.run(jobs, decoding)


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
