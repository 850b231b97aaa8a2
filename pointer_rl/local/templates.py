"""Chat templates that keep images in their place, and those that do not.

Some chat templates (LLaVA's, for example) put all images of a message before its text, which would
separate demonstrations from their images. Such a template is given text only, in which the images
are already marked the way the template marks them. Rendering three words and two images shows
whether a template keeps the order, and how it marks an image.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pointer_rl.errors import InputError
from pointer_rl.local.chat import chat_messages, image_placeholder, render_chat, text_part
from pointer_rl.types import ImageRef, Message, Prompt


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

    def __init__(
        self, tokenizer: Any, template: str, where: Path, *, advice: str = "chat_template=FILE"
    ) -> None:
        """Raises InputError for a template that cannot place images.

        The error names `where` the template is from. `advice`: "chat_template=FILE, or …".
        """
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
                f" that can with {advice}"
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
