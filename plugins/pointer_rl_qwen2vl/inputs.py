"""From prompts to what a Qwen-VL model takes, as the official processor makes it.

The checkpoint's chat template writes the prompt with one <|image_pad|> an image. The official
processor repeats it in the text, once for every merged patch; here it is repeated after tokenising
(`expand`). It is a special token, so the tokens are the same, and this way long prompts are not
tokenised pad by pad, and tokenising needs no image.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from jinja2 import TemplateError

from pointer_rl.types import BackendError, Prompt
from pointer_rl_qwen2vl.checkpoint import Checkpoint

__all__ = ["PromptEncoder", "expand"]

_PIECES = 100_000
"""Pieces of prompts whose tokens are kept."""


class PromptEncoder:
    """Renders and tokenises; opens no image."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._tokenizer = checkpoint.tokenizer
        self._template = checkpoint.chat_template
        self._image_token_id = checkpoint.image_token_id
        self._special = _special_tokens(checkpoint.tokenizer)
        self._pieces: dict[str, list[int]] = {}

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int] | BackendError]:
        """The tokens of each prompt up to where the model begins to answer, or why it has none.

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
        """The tokens of each answer alone, for each request's answers.

        Tokenised apart from the prompt: generation, too, begins at a token boundary after the
        prompt, and a boundary that shifted with the answer would change the prompt it follows.
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
        """Whole prompts, from pieces that are tokenised once: most have been seen before.

        A special token is cut out before anything else happens to a text, so what stands before
        it and after it are tokenised apart in any case.
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
        conversation = [
            {
                "role": message.role,
                "content": [
                    {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                    for part in message.parts
                ],
            }
            for message in prompt.messages
        ]
        try:
            text: str = self._tokenizer.apply_chat_template(
                conversation,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=True,
            )
        except TemplateError as error:
            return BackendError(f"the chat template refuses the prompt: {error}")
        return text

    def _check(self, token_ids: list[int], prompt: Prompt) -> list[int] | BackendError:
        pads, images = token_ids.count(self._image_token_id), len(prompt.images)
        if pads == images:
            return token_ids
        return BackendError(
            f"the prompt has {images} images but {pads} <|image_pad|>: a question or answer"
            " contains that token, or the chat template has no place for images"
        )


def expand(token_ids: Sequence[int], pad: int, replacements: Iterable[Sequence[int]]) -> list[int]:
    """The tokens with each `pad` replaced by the next of the replacements."""
    expanded: list[int] = []
    remaining = iter(replacements)
    for token_id in token_ids:
        if token_id == pad:
            expanded += next(remaining)
        else:
            expanded.append(token_id)
    return expanded


def _special_tokens(tokenizer: Any) -> re.Pattern[str] | None:
    """Matches the tokens at which a text may be cut; None for a tokenizer that looks across them.

    Qwen's do not: they put nothing around a text, and their special tokens take no space along.
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
