"""The chat template of a checkpoint with a processor of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pointer_rl.errors import InputError
from pointer_rl.local.templates import Chat

_ADVICE = "chat_template=FILE, or chat_template=plain"
_PLAIN = (
    "{% for message in messages %}{% for part in message.content %}"
    "{% if part.type == 'image' %}{{ IMAGE }}{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% if not loop.last %}\n{% endif %}{% endfor %}"
)


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
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot read the chat template ({error})") from error
        return Chat(tokenizer, text, path, advice=_ADVICE)
    template = getattr(processor, "chat_template", None) or tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if template is None:
        raise InputError(
            f"{folder}: no chat template (chat_template.jinja, chat_template.json or in"
            " tokenizer_config.json); give one with chat_template=FILE or, for a model that was"
            " not trained on chats, chat_template=plain"
        )
    return Chat(tokenizer, template, folder, advice=_ADVICE)
