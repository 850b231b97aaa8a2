from __future__ import annotations

from pointer_rl.types import Message, Prompt


class ArrowPrompt:
    """A line for each demonstration, `question -> answer`."""

    def build(self, query, demonstrations):
        parts = []
        for shown in demonstrations:
            parts += [shown.image, f"\n{shown.question} -> {shown.answer}\n"]
        return Prompt((Message("user", (*parts, query.image, query.question)),))

    def parse(self, text):
        return text.strip()
