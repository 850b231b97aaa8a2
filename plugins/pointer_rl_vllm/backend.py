"""The backend: hands the generation and the scores of many requests to vLLM at once.

An answer is scored by a prompt that ends with it: vLLM returns the log-probabilities of the
prompt's tokens. For a token whose row came from the prefix cache it returns nothing, or
uninitialised memory. A score is therefore only read if every token of the answer was computed, and
asked again without the cache otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from PIL.Image import Image

from pointer_rl.errors import InputError
from pointer_rl.local.batching import Result, make_response
from pointer_rl.local.decoding import Generation
from pointer_rl.local.lru import LRUCache
from pointer_rl.local.stop_strings import find_stop
from pointer_rl.types import BackendError, Count, Decoding, ImageRef, Request
from pointer_rl_vllm.prompts import PromptEncoder

_AHEAD = 256
"""Requests that vLLM has at a time. Their images are in memory meanwhile."""
_OPENED = 2**30
"""Bytes of opened images that are kept."""


class Engine(Protocol):
    """What the backend needs of vLLM; `pointer_rl_vllm.engine` implements it."""

    def enqueue(
        self,
        token_ids: Sequence[int],
        images: Sequence[tuple[str, Image]],
        decoding: Decoding | None,
        *,
        use_cache: bool = True,
    ) -> None:
        """Add a prompt, to be continued or, without a decoding, to be scored.

        `images` are (key, opened image) in reading order. Raises InputError for a prompt that vLLM
        refuses.
        """
        ...

    def wait(self) -> Sequence[Any]:
        """vLLM's outputs of all prompts added since the last call, in that order."""
        ...

    def abort(self) -> None:
        """Drop all prompts added since the last call of `wait`."""
        ...

    def count(self, token_ids: Sequence[int], images: Sequence[tuple[str, Image]]) -> int:
        """Number of tokens of a prompt, with all tokens of its images. Raises InputError."""
        ...


@dataclass
class _Asked:
    """A request, and the parts of its response that vLLM has returned so far."""

    request: Request
    token_ids: list[int]
    images: list[tuple[str, Image]]
    answers: list[list[int]]
    generation: Generation | None = None
    logprobs: dict[int, float] = field(default_factory=dict)
    """Index of an answer → its log-probability."""
    prompt_tokens: int = 0
    failure: str | None = None


@dataclass(frozen=True)
class _Part:
    """A prompt for vLLM."""

    asked: _Asked
    answer: int | None
    """Index of the answer to be scored; None: generate."""
    use_cache: bool = True


class VLLMBackend:
    """A checkpoint in vLLM as a `VQABackend`."""

    def __init__(self, engine: Engine, encoder: PromptEncoder, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self._engine = engine
        self._encoder = encoder
        self._opened: LRUCache[str, Image] = LRUCache(
            _OPENED, lambda each: 3 * each.width * each.height
        )
        self._image_tokens: dict[str, int] = {}
        """Key of an image → number of tokens that it adds to its placeholder."""

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, Result]]:
        """Answer each request once as (its index, its result), in their order.

        Raises PluginError if vLLM's engine fails.
        """
        for start in range(0, len(requests), _AHEAD):
            results = self._answer(requests[start : start + _AHEAD])
            yield from enumerate(results, start)

    def count(self, requests: Sequence[Request]) -> Count:
        """Count the tokens of whole prompts. Each image is measured alone, and opened for it.

        Requests that cannot be asked are not counted.
        """
        tokens = 0
        for request in requests:
            with suppress(InputError):
                scored = sum(len(self._encoder.encode_answer(each)) for each in request.score)
                prompt = len(self._encoder.encode(request.prompt))
                tokens += scored + prompt + sum(map(self._count_image, request.prompt.images))
        return Count(prompt_tokens=tokens)

    def _count_image(self, image: ImageRef) -> int:
        if image.key not in self._image_tokens:
            token_ids = self._encoder.encode_image()
            tokens = self._engine.count(token_ids, [(image.key, self._open(image))])
            self._image_tokens[image.key] = tokens - len(token_ids)
        return self._image_tokens[image.key]

    def _answer(self, requests: Sequence[Request]) -> list[Result]:
        read = [self._read(request) for request in requests]
        asked = [each for each in read if isinstance(each, _Asked)]
        parts = [
            _Part(each, answer)
            for each in asked
            for answer in (
                *(() if each.request.decoding is None else (None,)),
                *range(len(each.answers)),
            )
        ]
        try:
            while parts:
                parts = self._ask(parts)
        except BaseException:  # An interrupt, too: the next call must not get these outputs.
            self._engine.abort()
            raise
        return [self._respond(each) if isinstance(each, _Asked) else each for each in read]

    def _read(self, request: Request) -> _Asked | BackendError:
        try:
            if request.decoding is not None and request.decoding.num_beams > 1:
                raise InputError(
                    "num_beams: vLLM's beam search is not the same as ours; use num_beams=1"
                )
            answers = [self._encoder.encode_answer(answer) for answer in request.score]
            token_ids = self._encoder.encode(request.prompt)
            images = [(image.key, self._open(image)) for image in request.prompt.images]
        except InputError as error:
            return BackendError(str(error))
        return _Asked(request, token_ids, images, answers)

    def _open(self, image: ImageRef) -> Image:
        opened = self._opened.get(image.key)
        if opened is None:
            opened = image.open()
            self._opened.put({image.key: opened})
        return opened

    def _ask(self, parts: Sequence[_Part]) -> list[_Part]:
        """Ask, read what is valid, and return the parts to be asked again."""
        sent = []
        for part in parts:
            asked = part.asked
            if asked.failure is not None:
                continue
            decoding, answer = asked.request.decoding, list[int]()
            if part.answer is not None:
                decoding, answer = None, asked.answers[part.answer]
            try:
                self._engine.enqueue(
                    [*asked.token_ids, *answer], asked.images, decoding, use_cache=part.use_cache
                )
            except InputError as error:
                asked.failure = str(error)
            else:
                sent.append(part)
        again = []
        for part, output in zip(sent, self._engine.wait(), strict=True):
            if part.answer is None:
                self._take_generation(part.asked, output)
            elif not _take_score(part.asked, part.answer, output):
                if part.use_cache:
                    again.append(replace(part, use_cache=False))
                else:
                    part.asked.failure = "vLLM returned no log-probabilities of the answer"
        return again

    def _take_generation(self, asked: _Asked, output: Any) -> None:
        decoding = asked.request.decoding
        assert decoding is not None
        completion = output.outputs[0]
        token_ids = list(completion.token_ids)
        asked.prompt_tokens = len(output.prompt_token_ids)
        if completion.finish_reason not in ("stop", "length"):
            asked.failure = f"vLLM did not answer (finish_reason {completion.finish_reason})"
        elif completion.finish_reason == "length" and len(token_ids) < decoding.max_new_tokens:
            asked.failure = (
                f"the answer was cut after {len(token_ids)} tokens: the prompt has"
                f" {asked.prompt_tokens}, and there is no room for {decoding.max_new_tokens} more;"
                " use a larger max_model_len, or fewer demonstrations"
            )
        text = self._encoder.decode(token_ids)
        asked.generation = Generation(text[: find_stop(text, decoding.stop)], len(token_ids))

    def _respond(self, asked: _Asked) -> Result:
        if asked.failure is not None:
            return BackendError(asked.failure)
        return make_response(
            asked.generation,
            [asked.logprobs[index] for index in range(len(asked.answers))],
            prompt_tokens=asked.prompt_tokens,
            images=len(asked.images),
        )


def _take_score(asked: _Asked, index: int, output: Any) -> bool:
    """Read an answer's log-probability; False if some of its tokens were not computed.

    The log-probability of a token is computed at the position before it.
    """
    answer = asked.answers[index]
    asked.prompt_tokens = len(output.prompt_token_ids) - len(answer)
    if (output.num_cached_tokens or 0) >= asked.prompt_tokens:
        return False
    rows = list(output.prompt_logprobs[-len(answer) :])
    # The tokens are checked, too: vLLM's runners differ in which rows they return.
    if len(rows) < len(answer) or any(
        not row or token not in row for row, token in zip(rows, answer, strict=True)
    ):
        return False
    asked.logprobs[index] = sum(row[token].logprob for row, token in zip(rows, answer, strict=True))
    return True
