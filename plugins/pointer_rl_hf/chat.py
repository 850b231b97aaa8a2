"""Prompts as the text that a checkpoint's processor reads, images as its own marks in it.

Images stay where they stand in the prompt. Some chat templates (LLaVA's) put all images of a
message before its text, which would part demonstrations from their images; there the template is
given text alone, in which the images are already marked as it marks them. How a template does it is
found by rendering three words and two images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from pointer_rl.errors import InputError, first_line
from pointer_rl.types import Prompt

__all__ = ["Chat", "load_chat"]

_PLAIN = (
    "{% for message in messages %}{% for part in message.content %}"
    "{% if part.type == 'image' %}{{ IMAGE }}{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% if not loop.last %}\n{% endif %}{% endfor %}"
)


Turn = tuple[str, Sequence[str | None]]
"""A role and its parts; None is an image."""


class Chat:
    """Renders prompts with a chat template."""

    def __init__(self, tokenizer: Any, template: str, where: Path) -> None:
        """Raises InputError for a template that cannot place images; `where` is named in it."""
        self.template = template
        self._tokenizer = tokenizer
        self._mark: str | None = None
        """What stands for an image in the text; None where the template places it itself."""
        try:
            if not self._keeps_order():
                self._mark = self._find_mark()
        except InputError as error:
            raise InputError(
                f"{where}: the chat template cannot show a text with images ({error}); give one"
                " that can with chat_template=FILE, or chat_template=plain"
            ) from error

    def render(self, prompt: Prompt) -> str:
        """The prompt up to where the model begins to answer. Raises InputError."""
        return self._render(
            [
                (each.role, [part if isinstance(part, str) else None for part in each.parts])
                for each in prompt.messages
            ]
        )

    def render_user(self, *parts: str | None) -> str:
        """One message of texts and, where None stands, images. Raises InputError."""
        return self._render([("user", parts)])

    def after_answer(self) -> str:
        """What the template writes after an assistant's answer. Raises InputError."""
        turns: list[Turn] = [("user", ["alpha"]), ("assistant", ["omega"])]
        return self._render(turns, answering=False).rpartition("omega")[2]

    def _render(self, turns: Sequence[Turn], *, answering: bool = True) -> str:
        conversation = [
            {"role": role, "content": [self._content(part) for part in parts]}
            for role, parts in turns
        ]
        try:
            text: str = self._tokenizer.apply_chat_template(
                conversation,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=answering,
            )
        except (TemplateError, TypeError) as error:
            raise InputError(
                f"the chat template refuses the prompt: {first_line(error)}"
            ) from error
        return text

    def _content(self, part: str | None) -> dict[str, str]:
        text = self._mark if part is None else part
        return {"type": "image"} if text is None else {"type": "text", "text": text}

    def _keeps_order(self) -> bool:
        text = self.render_user("alpha", None, "beta", None, "gamma")
        found = re.search("alpha(.*)beta(.*)gamma", text, re.DOTALL)
        return found is not None and all(between.strip() for between in found.groups())

    def _find_mark(self) -> str:
        """What an image adds to a text. Raises InputError where that is nothing."""
        text, shown = self.render_user("alpha"), self.render_user(None, "alpha")
        pairs = enumerate(zip(text, shown, strict=False))
        place = next((index for index, (one, other) in pairs if one != other), len(text))
        mark = shown[place : place + len(shown) - len(text)]
        if not mark.strip() or shown != text[:place] + mark + text[place:]:
            raise InputError("it has no place for images")
        return mark


def load_chat(processor: Any, folder: Path, option: str | None) -> Chat:
    """The chat of the checkpoint, or of the option `chat_template`. Raises InputError."""
    tokenizer = processor.tokenizer
    if option == "plain":
        image = getattr(processor, "image_token", None)
        if image is None:
            raise InputError(
                f"{folder}: chat_template=plain cannot be used: the processor"
                f" ({type(processor).__name__}) names no image token; give chat_template=FILE"
            )
        return Chat(tokenizer, _PLAIN.replace("IMAGE", json.dumps(str(image))), folder)
    if option is not None:
        path = Path(option).expanduser()
        try:
            return Chat(tokenizer, path.read_text(encoding="utf-8"), path)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot read the chat template ({error})") from error
    template = getattr(processor, "chat_template", None) or tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if template is None:
        raise InputError(
            f"{folder}: no chat template (chat_template.jinja, chat_template.json or in"
            " tokenizer_config.json); give one with chat_template=FILE or, for a model that knows"
            " no chat, chat_template=plain"
        )
    return Chat(tokenizer, template, folder)
