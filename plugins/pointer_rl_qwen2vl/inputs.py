"""Tokenise prompts for a Qwen-VL model, with the result of the official processor.

The checkpoint's chat template writes one <|image_pad|> per image. The official processor repeats it
in the text for every merged patch; here it is repeated after tokenisation (`expand`). The tokens
are the same, since <|image_pad|> is a special token. Long prompts are tokenised faster this way,
and no image has to be opened.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from pointer_rl.errors import InputError
from pointer_rl.local.chat import chat_messages, render_chat
from pointer_rl.types import BackendError, Prompt
from pointer_rl_qwen2vl.checkpoint import Checkpoint

_PIECES = 100_000
"""Number of pieces of prompts whose tokens are cached."""


class PromptEncoder:
    """Renders and tokenises prompts, without opening images."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._tokenizer = checkpoint.tokenizer
        self._template = checkpoint.chat_template
        self._image_token_id = checkpoint.image_token_id
        self._special = _special_tokens(checkpoint.tokenizer)
        self._pieces: dict[str, list[int]] = {}

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int] | BackendError]:
        """Tokenise each prompt up to where the model begins to answer, or say why it cannot.

        One <|image_pad|> stands for each image.
        """
        rendered = [self._render(prompt) for prompt in prompts]
        texts = [text for text in rendered if isinstance(text, str)]
        token_ids = iter(self._tokenise_rendered(texts))
        return [
            text if isinstance(text, BackendError) else self._check(next(token_ids), prompt)
            for text, prompt in zip(rendered, prompts, strict=True)
        ]

    def encode_answers(
        self, answers: Sequence[tuple[str, ...]]
    ) -> list[list[list[int]] | BackendError]:
        """Tokenise the answers of each request, each answer alone.

        Generation, too, begins at a token boundary after the prompt. If prompt and answer were
        tokenised together, the answer could change the last tokens of the prompt.
        """
        distinct = list(dict.fromkeys(answer for each in answers for answer in each))
        token_ids = dict(zip(distinct, self._tokenise(distinct, special=False), strict=True))
        refused = {answer for answer in distinct if self._image_token_id in token_ids[answer]}
        return [
            BackendError("an answer to be scored contains the token <|image_pad|>")
            if refused.intersection(each)
            else [token_ids[answer] for answer in each]
            for each in answers
        ]

    def _tokenise_rendered(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise rendered prompts piece by piece, with a cache: most pieces repeat.

        The tokenizer cuts special tokens out of a text before anything else, so the pieces between
        them are independent of each other.
        """
        if self._special is None:
            return self._tokenise(list(texts), special=True)
        split = [self._special.split(text) for text in texts]
        new = [each for each in dict.fromkeys(chain(*split)) if each not in self._pieces]
        if len(self._pieces) + len(new) > _PIECES:
            self._pieces.clear()
            new = list(dict.fromkeys(chain(*split)))
        self._pieces |= zip(new, self._tokenise(new, special=False), strict=True)
        return [list(chain(*map(self._pieces.__getitem__, pieces))) for pieces in split]

    def _tokenise(self, texts: list[str], *, special: bool) -> list[list[int]]:
        if not texts:
            return []
        token_ids: list[list[int]] = self._tokenizer(
            texts,
            add_special_tokens=special,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        return token_ids

    def _render(self, prompt: Prompt) -> str | BackendError:
        try:
            return render_chat(self._tokenizer, chat_messages(prompt), self._template)
        except InputError as error:
            return BackendError(str(error))

    def _check(self, token_ids: list[int], prompt: Prompt) -> list[int] | BackendError:
        pads, images = token_ids.count(self._image_token_id), len(prompt.images)
        if pads == images:
            return token_ids
        return BackendError(
            f"the prompt has {images} images but {pads} <|image_pad|>: a question or answer"
            " contains that token, or the chat template has no place for images"
        )


def expand(token_ids: Sequence[int], pad: int, replacements: Iterable[Sequence[int]]) -> list[int]:
    """Replace each `pad` by the next of the replacements."""
    expanded: list[int] = []
    remaining = iter(replacements)
    for token_id in token_ids:
        if token_id == pad:
            expanded += next(remaining)
        else:
            expanded.append(token_id)
    return expanded


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
