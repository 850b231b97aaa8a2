"""Prompts as text for a checkpoint's processor, with the processor's own image placeholders.

Images keep their place in the prompt. Some chat templates (LLaVA's, for example) put all images of
a message before its text, which would separate demonstrations from their images. Such a template is
given text only, in which the images are already marked the way the template marks them. Rendering
three words and two images shows whether a template keeps the order, and how it marks an image.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pointer_rl.errors import InputError
from pointer_rl.local.chat import chat_messages, image_placeholder, render_chat, text_part
from pointer_rl.types import ImageRef, Message, Prompt

_PLAIN = (
    "{% for message in messages %}{% for part in message.content %}"
    "{% if part.type == 'image' %}{{ IMAGE }}{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% if not loop.last %}\n{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class _ProbeImage:
    """An image of a prompt that only shows what a template, a processor or a model does."""

    key: str
    size: tuple[int, int]

    def open(self) -> Image.Image:
        return Image.linear_gradient("L").convert("RGB").resize(self.size)


WIDE, TALL = _ProbeImage("wide", (64, 48)), _ProbeImage("tall", (40, 120))


def user_prompt(*parts: ImageRef | str) -> Prompt:
    """A prompt of one user message."""
    return Prompt((Message("user", parts),))


class Chat:
    """Renders prompts with a chat template."""

    def __init__(self, tokenizer: Any, template: str, where: Path) -> None:
        """Raises InputError for a template that cannot place images; the error names `where`."""
        self.template = template
        self._tokenizer = tokenizer
        self._mark: str | None = None
        """The text that marks an image; None if the template marks images in their place."""
        try:
            if not self._keeps_order():
                self._mark = self._find_mark()
        except InputError as error:
            raise InputError(
                f"{where}: the chat template cannot show a text with images ({error}); give one"
                " that can with chat_template=FILE, or chat_template=plain"
            ) from error

    def render(self, prompt: Prompt, *, add_generation_prompt: bool = True) -> str:
        """Render a prompt up to where the model begins to answer. Raises InputError."""
        return render_chat(
            self._tokenizer,
            chat_messages(prompt, self._image_part),
            self.template,
            add_generation_prompt=add_generation_prompt,
        )

    def after_answer(self) -> str:
        """The text that the template puts after an assistant's answer. Raises InputError."""
        turns = Prompt((Message("user", ("alpha",)), Message("assistant", ("omega",))))
        return self.render(turns, add_generation_prompt=False).rpartition("omega")[2]

    def _image_part(self, image: ImageRef) -> dict[str, Any]:
        return image_placeholder(image) if self._mark is None else text_part(self._mark)

    def _keeps_order(self) -> bool:
        text = self.render(user_prompt("alpha", WIDE, "beta", WIDE, "gamma"))
        found = re.search("alpha(.*)beta(.*)gamma", text, re.DOTALL)
        return found is not None and all(between.strip() for between in found.groups())

    def _find_mark(self) -> str:
        """The characters that an image adds to a text. Raises InputError if it adds none."""
        text, shown = self.render(user_prompt("alpha")), self.render(user_prompt(WIDE, "alpha"))
        pairs = enumerate(zip(text, shown, strict=False))
        place = next((index for index, (one, other) in pairs if one != other), len(text))
        mark = shown[place : place + len(shown) - len(text)]
        if not mark.strip() or shown != text[:place] + mark + text[place:]:
            raise InputError("it has no place for images")
        return mark


def load_chat(processor: Any, folder: Path, option: str | None) -> Chat:
    """The checkpoint's chat template, or that of the option `chat_template`. Raises InputError."""
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
            " tokenizer_config.json); give one with chat_template=FILE or, for a model that was"
            " not trained on chats, chat_template=plain"
        )
    return Chat(tokenizer, template, folder)
