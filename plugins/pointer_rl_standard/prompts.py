"""Prompt builders: how demonstrations and a query are laid out, and how the answer is read back."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pointer_rl.errors import InputError
from pointer_rl.types import Example, ImageRef, Message, Prompt
from pointer_rl_standard.options import ChatOptions, ShortAnswerOptions

__all__ = ["ChatPromptBuilder", "ShortAnswerPromptBuilder"]

_NEXT_BLOCK = re.compile("Question|Answer|Short")


class ShortAnswerPromptBuilder:
    """All in one user message: an image, then `Question:… Short answer:…`, for each example.

    The layout of Lever-LM and Lever-Plus, read back as they do it.
    """

    def __init__(self, options: ShortAnswerOptions) -> None:
        self._system = _system(options.instructions)

    def build(self, query: Example, demonstrations: Sequence[Example]) -> Prompt:
        """Demonstrations in the order given, then the query, its answer left open.

        Raises InputError for a demonstration without answers.
        """
        parts: list[ImageRef | str] = []
        for shown in demonstrations:
            parts += [shown.image, f"Question:{shown.question} Short answer:{_answer(shown)}"]
        parts += [query.image, f"Question:{query.question} Short answer:"]
        return Prompt((*self._system, Message("user", tuple(parts))))

    def parse(self, text: str) -> str:
        """What stands before a further block ("Question", "Answer", "Short"), to the first ", "."""
        return _NEXT_BLOCK.split(text, maxsplit=1)[0].split(", ", maxsplit=1)[0].strip()


class ChatPromptBuilder:
    """A conversation: the user asks with an image, the assistant answers, for each example."""

    def __init__(self, options: ChatOptions) -> None:
        self._system = _system(options.instructions)

    def build(self, query: Example, demonstrations: Sequence[Example]) -> Prompt:
        """Demonstrations in the order given, then the query as the last user turn.

        Raises InputError for a demonstration without answers.
        """
        turns: list[Message] = []
        for shown in demonstrations:
            turns.append(Message("user", (shown.image, shown.question)))
            turns.append(Message("assistant", (_answer(shown),)))
        turns.append(Message("user", (query.image, query.question)))
        return Prompt((*self._system, *turns))

    def parse(self, text: str) -> str:
        """The first line that is not blank, without spaces around it."""
        return text.strip().partition("\n")[0].strip()


def _system(instructions: str) -> tuple[Message, ...]:
    return (Message("system", (instructions,)),) if instructions else ()


def _answer(demonstration: Example) -> str:
    if not demonstration.answers:
        raise InputError(
            f"example {demonstration.id}: it has no answers, so it cannot be a demonstration: "
            "leave it out of the pool"
        )
    return demonstration.answer
