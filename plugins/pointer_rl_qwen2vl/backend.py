"""The backend: tokenises requests and hands them to an engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from pointer_rl.errors import InputError
from pointer_rl.local.batching import Result, by_decoding, default_batch_tokens
from pointer_rl.types import BackendError, Count, ImageRef, Request
from pointer_rl_qwen2vl.checkpoint import Checkpoint
from pointer_rl_qwen2vl.counting import count_tokens
from pointer_rl_qwen2vl.inputs import PromptEncoder
from pointer_rl_qwen2vl.patches import PatchCache
from pointer_rl_qwen2vl.plain import PlainEngine
from pointer_rl_qwen2vl.requests import Engine, TokenisedRequest
from pointer_rl_qwen2vl.shared import SharedEngine


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
        self._patches = PatchCache(checkpoint)
        self._engine: Engine = make(checkpoint, self._patches, batch_tokens)
        self._image_token_id = checkpoint.image_token_id

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, Result]]:
        """Answer each request once as (its index, its result), one decoding after the other."""
        for decoding, indices in by_decoding(requests).items():
            tokenised, failed = self._tokenise(requests, indices)
            yield from failed
            yield from self._engine.run(tokenised, decoding)

    def count(self, requests: Sequence[Request]) -> Count:
        """Count the tokens of whole prompts, and the tokens that the engine computes for them."""
        tokenised, _ = self._tokenise(requests, range(len(requests)))
        count = count_tokens(tokenised, self._patches, self._image_token_id)
        if isinstance(self._engine, PlainEngine):
            return Count(count.prompt_tokens, count.prompt_tokens)
        return count

    def _tokenise(
        self, requests: Sequence[Request], indices: Sequence[int]
    ) -> tuple[list[TokenisedRequest], list[tuple[int, BackendError]]]:
        """Tokenise these requests. Returns the successful ones, and the errors of the others."""
        keys: dict[int, str | BackendError] = {}
        prompts = self._encoder.encode([requests[index].prompt for index in indices])
        answers = self._encoder.encode_answers([requests[index].score for index in indices])
        tokenised: list[TokenisedRequest] = []
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
                tokenised.append(TokenisedRequest(index, prompt, images, scored))
        return tokenised, failed


def _keyed(
    images: Sequence[ImageRef], keys: dict[int, str | BackendError]
) -> tuple[tuple[str, ImageRef], ...] | BackendError:
    """The images with their keys, or the error of the first image without one.

    `keys` caches the keys by the identity of the image object.
    """
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
