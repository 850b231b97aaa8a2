"""Prompts as chats: the message format that chat templates and the OpenAI API share.

A chat is a list of `{"role": …, "content": …}`, whose content is a list of parts: texts
(`{"type": "text", "text": …}`) and images, in reading order.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from pointer_rl.errors import InputError, first_line
from pointer_rl.local import template_trial
from pointer_rl.types import ImageRef, Prompt


def text_part(text: str) -> dict[str, Any]:
    """The part that shows a text."""
    return {"type": "text", "text": text}


def image_placeholder(image: ImageRef) -> dict[str, Any]:
    """The part by which a chat template knows where an image goes."""
    return {"type": "image"}


def chat_messages(
    prompt: Prompt,
    image: Callable[[ImageRef], dict[str, Any] | None] = image_placeholder,
    *,
    merge_text: bool = False,
) -> list[dict[str, Any]]:
    """Convert a prompt to a chat.

    `image` makes the part of an image; if it returns None, the image is left out. `merge_text`
    joins adjacent texts, and makes the content of a message without images a string.
    """
    messages: list[dict[str, Any]] = []
    for message in prompt.messages:
        parts: list[dict[str, Any]] = []
        for each in message.parts:
            part = text_part(each) if isinstance(each, str) else image(each)
            if part is None:
                continue
            if merge_text and parts and part["type"] == parts[-1]["type"] == "text":
                parts[-1] = text_part(parts[-1]["text"] + part["text"])
            else:
                parts.append(part)
        content: object = parts
        if merge_text and all(part["type"] == "text" for part in parts):
            content = parts[0]["text"] if parts else ""
        messages.append({"role": message.role, "content": content})
    return messages


def render_chat(
    tokenizer: Any,
    messages: Sequence[dict[str, Any]],
    template: str | None = None,
    *,
    add_generation_prompt: bool = True,
) -> str:
    """Render a chat with the template, or with the tokenizer's own template.

    Raises InputError if the template refuses the chat, or loops or allocates without end.
    """
    own = getattr(tokenizer, "chat_template", None) if template is None else template
    if isinstance(own, str):
        _try_template(own)
    try:
        text: str = tokenizer.apply_chat_template(
            messages,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except Exception as error:  # a template may run into any error of Python
        raise InputError(f"the chat template refuses the prompt: {first_line(error)}") from error
    return text


_SECONDS = 60
"""How long a template may take on a machine that is busy with other things."""


@lru_cache
def _try_template(template: str) -> None:
    """Raise InputError for a template that loops or allocates without end on a short chat."""
    command = [sys.executable, "-P", "-X", "utf8", template_trial.__file__]
    try:
        done = subprocess.run(
            command,
            input=template.encode("utf-8", "replace"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_SECONDS,
        )
        # Negative: stopped by a signal, at a limit. Other failures are those of the trial itself.
        ends = 0 <= done.returncode != template_trial.TOO_MUCH
    except subprocess.TimeoutExpired:
        ends = False
    if not ends:
        raise InputError("the chat template loops, or makes a text without end: give another one")
