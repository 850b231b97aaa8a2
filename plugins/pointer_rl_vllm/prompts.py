"""Prompts and answers as tokens, with one placeholder per image, as the chat template writes it.

vLLM repeats the placeholder for every token of the image.
"""

from __future__ import annotations

import re
from typing import Any

from pointer_rl.errors import InputError
from pointer_rl.local.templates import WIDE, Chat, user_prompt
from pointer_rl.types import Prompt


class PromptEncoder:
    """Renders prompts with a chat template and tokenises them, without opening images."""

    def __init__(self, tokenizer: Any, chat: Chat) -> None:
        """Raises InputError if no token ends an answer."""
        self._tokenizer = tokenizer
        self._chat = chat
        special = {
            index: each.content
            for index, each in tokenizer.added_tokens_decoder.items()
            if each.special
        }
        longest_first = sorted(special.values(), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self.end_id = self._find_end(special)
        """The token that ends an answer."""
        self.stop_ids = sorted({self.end_id, tokenizer.pad_token_id} - {None})
        """Tokens at which generation ends, besides those of the checkpoint's generation config."""

    def encode(self, prompt: Prompt) -> list[int]:
        """Tokenise a prompt up to where the model begins to answer.

        Raises InputError if a text contains a special token, which could stand for an image.
        """
        for message in prompt.messages:
            for part in message.parts:
                if isinstance(part, str):
                    self._check_plain(part, "the prompt")
        text = self._chat.render(prompt)
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
        return self._tokenise(self._chat.render(user_prompt(WIDE)), add_special_tokens=False)

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

    def _find_end(self, special: dict[int, str]) -> int:
        """The special token that the template puts after an answer, else the tokenizer's end."""
        after = self._chat.after_answer().lstrip()
        first = next(iter(self._tokenise(after, add_special_tokens=False)), None)
        end: int | None = first if first in special else self._tokenizer.eos_token_id
        if end is None:
            raise InputError(
                "neither the chat template nor the tokenizer names a token that ends an answer"
            )
        return end
