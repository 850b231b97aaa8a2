"""Render prompts in the format that OpenFlamingo was trained on.

    <image>Question:… Short answer:red<|endofchunk|>
    <image>Question:… Short answer:

A chunk is an image with the text that follows it. A chunk is closed when another one begins: at the
next image, or after an assistant's answer. The last chunk stays open for the model to continue. A
system message comes on a line before the chunks. An answer directly follows a question that ends in
a colon; after any other question it starts a new line.

The prompt builder `short-answer` without instructions gives exactly this format.
"""

from __future__ import annotations

from pointer_rl.errors import InputError
from pointer_rl.types import Prompt

END_OF_CHUNK = "<|endofchunk|>"
IMAGE = "<image>"


def render(prompt: Prompt, close: str = f"{END_OF_CHUNK}\n") -> str:
    """Render a prompt up to where the model begins to answer, with one `<image>` per image.

    `close` is the text that closes a chunk.
    """
    text = ""
    complete = False
    """Whether the chunk has its image and its text, so that the next image begins a new one."""
    role = None
    for message in prompt.messages:
        if message.role == "assistant":
            text = _open_answer(text)
        elif role == "assistant":
            text, complete = text + close, False
        for part in message.parts:
            if isinstance(part, str):
                text += part
                complete = IMAGE in text
            elif complete:
                text, complete = text + close + IMAGE, False
            else:
                text += IMAGE
        role = message.role
        if role == "system":
            text += "\n"
    return text if role == "assistant" else _open_answer(text)


def _open_answer(text: str) -> str:
    opened = not text or text.endswith((":", "\n", IMAGE))
    return text if opened else f"{text}\n"


def check_images(places: int, prompt: Prompt) -> None:
    """Raise InputError unless the text has one `<image>` per image."""
    images = len(prompt.images)
    if places != images:
        raise InputError(
            f"the prompt has {images} images but {places} {IMAGE}: a question or answer contains"
            " that token"
        )
