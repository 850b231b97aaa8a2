"""Prompts and answers as tokens, with one placeholder per image, as the chat template writes it.

vLLM repeats the placeholder for every token of the image.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from pointer_rl.errors import InputError
from pointer_rl.local.chat import chat_messages, render_chat, text_part
from pointer_rl.types import Prompt

_IMAGE = {"type": "image"}


class PromptEncoder:
    """Renders prompts with a chat template and tokenises them, without opening images."""

    def __init__(self, tokenizer: Any, template: str) -> None:
        """Raises InputError for a template that has no place for images, or no end of a turn."""
        self._tokenizer = tokenizer
        self._template = template
        special = {
            index: each.content
            for index, each in tokenizer.added_tokens_decoder.items()
            if each.special
        }
        longest_first = sorted(special.values(), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._images_in_place = self._find_images()
        self.end_id = self._find_end(special)
        """The token that ends an answer."""
        self.stop_ids = sorted({self.end_id, tokenizer.pad_token_id} - {None})
        """Tokens at which generation ends, besides those of the checkpoint's generation config."""

    def encode(self, prompt: Prompt) -> list[int]:
        """Tokenise a prompt up to where the model begins to answer.

        Raises InputError if a text contains a special token, which could stand for an image, and if
        the template would move images.
        """
        for message in prompt.messages:
            for part in message.parts:
                if isinstance(part, str):
                    self._check_plain(part, "the prompt")
            is_text = [isinstance(part, str) for part in message.parts]
            if not self._images_in_place and (True, False) in pairwise(is_text):
                raise InputError(
                    "the chat template shows the images of a message before its text; use a prompt"
                    " builder that starts messages with their image (--prompt chat), or a template"
                    " that keeps images in place (chat_template=FILE)"
                )
        text = self._render(chat_messages(prompt))
        begin = self._tokenizer.bos_token
        return self._tokenise(text, add_special_tokens=not (begin and text.startswith(begin)))

    def encode_answer(self, answer: str) -> list[int]:
        """Tokenise an answer alone, with the token that ends it, since generation, too, starts at a
        new token. Raises InputError for an answer that contains a special token.
        """
        self._check_plain(answer, "an answer to be scored")
        return [*self._tokenise(answer, add_special_tokens=False), self.end_id]

    def encode_image(self) -> list[int]:
        """Tokenise a prompt that shows one image."""
        return self._tokenise(
            self._render([{"role": "user", "content": [_IMAGE]}]), add_special_tokens=False
        )

    def decode(self, token_ids: list[int]) -> str:
        """Tokens as text, without special tokens."""
        text: str = self._tokenizer.decode(
            token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _check_plain(self, text: str, where: str) -> None:
        found = self._special.search(text)
        if found:
            raise InputError(f"{where} contains the special token {found.group()}")

    def _tokenise(self, text: str, *, add_special_tokens: bool) -> list[int]:
        token_ids: list[int] = self._tokenizer(text, add_special_tokens=add_special_tokens)[
            "input_ids"
        ]
        return token_ids

    def _render(self, messages: list[dict[str, Any]], *, asks: bool = True) -> str:
        return render_chat(self._tokenizer, messages, self._template, add_generation_prompt=asks)

    def _find_images(self) -> bool:
        """Whether the template keeps images in their place among the texts of a message."""

        def rendered(*content: dict[str, Any]) -> str:
            return self._render([{"role": "user", "content": list(content)}])

        alpha, beta, gamma = map(text_part, ("alpha", "beta", "gamma"))
        if rendered(_IMAGE, alpha) == rendered(alpha):
            raise InputError("the chat template has no place for images; give chat_template=FILE")
        mixed = rendered(alpha, _IMAGE, beta, _IMAGE, gamma)
        found = re.search("alpha(.*)beta(.*)gamma", mixed, re.DOTALL)
        return found is not None and all(between.strip() for between in found.groups())

    def _find_end(self, special: dict[int, str]) -> int:
        """The special token that the template puts after an answer, else the tokenizer's end."""
        turns = [("user", "alpha"), ("assistant", "omega")]
        messages = [{"role": role, "content": [text_part(text)]} for role, text in turns]
        after = self._render(messages, asks=False).rpartition("omega")[2].lstrip()
        first = next(iter(self._tokenise(after, add_special_tokens=False)), None)
        end: int | None = first if first in special else self._tokenizer.eos_token_id
        if end is None:
            raise InputError(
                "neither the chat template nor the tokenizer names a token that ends an answer"
            )
        return end
