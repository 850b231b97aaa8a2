"""Prompt builders: they lay out demonstrations and query, and extract the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pointer_rl.errors import InputError
from pointer_rl.types import Example, ImageRef, Message, Prompt
from pointer_rl_standard.options import ChatOptions, ShortAnswerOptions

_NEXT_BLOCK = re.compile("Question|Answer|Short")


class ShortAnswerPromptBuilder:
    """One user message with an image and `Question:… Short answer:…` for each example.

    Layout and answer extraction are those of Lever-LM and Lever-Plus.
    """

    def __init__(self, options: ShortAnswerOptions) -> None:
        self._system = _system(options.instructions)

    def build(self, query: Example, demonstrations: Sequence[Example]) -> Prompt:
        """Lay out the demonstrations in the given order, then the query with its answer left open.

        Raises InputError for a demonstration without answers.
        """
        parts: list[ImageRef | str] = []
        for shown in demonstrations:
            parts += [shown.image, f"Question:{shown.question} Short answer:{_answer(shown)}"]
        parts += [query.image, f"Question:{query.question} Short answer:"]
        return Prompt((*self._system, Message("user", tuple(parts))))

    def parse(self, text: str) -> str:
        """Return the text up to another block ("Question", "Answer", "Short") or the first ", "."""
        return _NEXT_BLOCK.split(text, maxsplit=1)[0].split(", ", maxsplit=1)[0].strip()


class ChatPromptBuilder:
    """A conversation: for each example the user asks with an image, and the assistant answers."""

    def __init__(self, options: ChatOptions) -> None:
        self._system = _system(options.instructions)

    def build(self, query: Example, demonstrations: Sequence[Example]) -> Prompt:
        """Lay out the demonstrations in the given order, then the query as the last user turn.

        Raises InputError for a demonstration without answers.
        """
        turns: list[Message] = []
        for shown in demonstrations:
            turns.append(Message("user", (shown.image, shown.question)))
            turns.append(Message("assistant", (_answer(shown),)))
        turns.append(Message("user", (query.image, query.question)))
        return Prompt((*self._system, *turns))

    def parse(self, text: str) -> str:
        """Return the first line that is not blank, stripped."""
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
