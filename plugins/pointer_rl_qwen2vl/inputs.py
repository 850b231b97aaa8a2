"""Tokenise prompts for a Qwen-VL model, with the result of the official processor.

The checkpoint's chat template writes one <|image_pad|> per image. The official processor repeats it
in the text for every merged patch; here it is repeated after tokenisation. The tokens are the
same, since <|image_pad|> is a special token. Long prompts are tokenised faster this way,
and no image has to be opened.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

from pointer_rl.errors import InputError
from pointer_rl.local.chat import chat_messages, render_chat
from pointer_rl.types import BackendError, ImageRef, Prompt, Request
from pointer_rl_qwen2vl.checkpoint import Checkpoint

_PIECES = 100_000
"""Number of pieces of prompts, and of answers, whose tokens are cached."""


@dataclass(frozen=True)
class TokenisedRequest:
    """A request whose texts have been tokenised."""

    index: int
    """Index of the request."""
    token_ids: list[int]
    """The prompt, with one <|image_pad|> per image."""
    images: tuple[tuple[str, ImageRef], ...]
    """The prompt's images with their keys."""
    answers: list[list[int]]
    """Answers to be scored, without the token that ends them."""


class PromptEncoder:
    """Renders and tokenises prompts, without opening images."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._tokenizer = checkpoint.tokenizer
        self._template = checkpoint.chat_template
        self._image_token_id = checkpoint.image_token_id
        self._special = _special_tokens(checkpoint.tokenizer)
        self._tokenise = lru_cache(_PIECES)(self._tokenise_piece)

    def tokenise(
        self, requests: Sequence[Request]
    ) -> tuple[list[TokenisedRequest], list[tuple[int, BackendError]]]:
        """Tokenise requests. Returns the successful ones, and the errors of the others."""
        tokenised: list[TokenisedRequest] = []
        failed: list[tuple[int, BackendError]] = []
        for index, request in enumerate(requests):
            try:
                token_ids = self.encode(request.prompt)
                answers = [self.encode_answer(answer) for answer in request.score]
                images = tuple((image.key, image) for image in request.prompt.images)
            except InputError as error:
                failed.append((index, BackendError(str(error))))
            else:
                tokenised.append(TokenisedRequest(index, token_ids, images, answers))
        return tokenised, failed

    def encode(self, prompt: Prompt) -> list[int]:
        """Tokenise a prompt up to where the model begins to answer. Raises InputError.

        One <|image_pad|> stands for each image.
        """
        text = render_chat(self._tokenizer, chat_messages(prompt), self._template)
        token_ids = self._tokenise_rendered(text)
        pads, images = token_ids.count(self._image_token_id), len(prompt.images)
        if pads != images:
            raise InputError(
                f"the prompt has {images} images but {pads} <|image_pad|>: a question or answer"
                " contains that token, or the chat template has no place for images"
            )
        return token_ids

    def encode_answer(self, answer: str) -> list[int]:
        """Tokenise an answer alone. Raises InputError if it contains an <|image_pad|>.

        Generation, too, begins at a token boundary after the prompt. If prompt and answer were
        tokenised together, the answer could change the last tokens of the prompt.
        """
        token_ids = self._tokenise(answer)
        if self._image_token_id in token_ids:
            raise InputError("an answer to be scored contains the token <|image_pad|>")
        return token_ids

    def _tokenise_rendered(self, text: str) -> list[int]:
        """Tokenise a rendered prompt piece by piece, with a cache: most pieces repeat.

        The tokenizer cuts special tokens out of a text before anything else, so the pieces between
        them are independent of each other.
        """
        if self._special is None:
            token_ids: list[int] = self._tokenizer(text)["input_ids"]
            return token_ids
        return list(chain(*map(self._tokenise, self._special.split(text))))

    def _tokenise_piece(self, text: str) -> list[int]:
        token_ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return token_ids


def _special_tokens(tokenizer: Any) -> re.Pattern[str] | None:
    """A pattern for the tokens at which texts may be split; None if pieces are not independent.

    Pieces are independent for Qwen's tokenizers: they add nothing around a text, and their special
    tokens do not absorb spaces.
    """
    added = tokenizer.added_tokens_decoder.values()
    special = [each for each in added if each.special]
    if (
        tokenizer("a")["input_ids"] != tokenizer("a", add_special_tokens=False)["input_ids"]
        or not special
        or any(e.lstrip or e.rstrip or e.single_word or e.normalized for e in special)
    ):
        return None
    longest_first = sorted((each.content for each in special), key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
