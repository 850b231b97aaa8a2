"""Load a checkpoint folder or Hub id as a model, a tokenizer and an image processor.

A Hub id is first turned into its snapshot folder, so that all files belong to one commit.

`AutoProcessor` is not used, since for these models it also builds a video processor, which needs
torchvision.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from pointer_rl.devices import dtype_name, resolve_device, resolve_dtype
from pointer_rl.errors import InputError, first_line
from pointer_rl.local.fingerprints import folder_digest, make_fingerprint
from pointer_rl.local.hub import checkpoint_folder
from pointer_rl.local.loading import (
    SNAPSHOT_FILES,
    check_attention,
    check_weights,
    load_preprocessing,
    load_weights,
    place,
    read_model_type,
    set_end_tokens,
)
from pointer_rl_qwen2vl.options import Qwen2VLOptions

_MODEL_CLASSES = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
}


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint. Its parts are transformers' own objects, without types."""

    model: Any
    """In evaluation mode, on its device, including the layers of an adapter."""
    tokenizer: Any
    image_processor: Any
    chat_template: str
    image_token_id: int
    turn_end_id: int
    """<|im_end|>, the token that ends an answer."""
    stop_ids: tuple[int, ...]
    """All tokens at which generation ends, padding included."""
    pad_id: int
    fingerprint: str


def load_checkpoint(options: Qwen2VLOptions) -> Checkpoint:
    """Load the checkpoint that the options name.

    Raises InputError for a checkpoint that cannot be found, read or moved to its device, and
    MissingExtraError if peft or flash-attn is needed but not installed.
    """
    device = resolve_device(options.device)
    dtype = resolve_dtype(options.dtype, device)
    check_attention(options.attn_implementation, device, dtype)
    folder = checkpoint_folder(options.model, options.revision, SNAPSHOT_FILES)
    model_type = _model_type(folder)
    pixels = {"min_pixels": options.min_pixels, "max_pixels": options.max_pixels}
    tokenizer, image_processor = load_preprocessing(
        folder, **{name: value for name, value in pixels.items() if value is not None}
    )
    adapter = None if options.adapter is None else Path(options.adapter).expanduser()
    model = load_weights(
        getattr(transformers, _MODEL_CLASSES[model_type]),
        folder,
        dtype=dtype,
        attention=options.attn_implementation,
        adapter=adapter,
    )
    model = place(model, device, options.model)

    image_token_id = model.config.image_token_id
    turn_end_id = _token_id(tokenizer, "<|im_end|>", folder)
    if _token_id(tokenizer, "<|image_pad|>", folder) != image_token_id:
        raise InputError(f"{folder}: the tokenizer is not this model's (<|image_pad|> differs)")
    pad_id = turn_end_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    stop_ids = set_end_tokens(model, [turn_end_id], pad_id)
    return Checkpoint(
        model=model,
        tokenizer=tokenizer,
        image_processor=image_processor,
        chat_template=_chat_template(folder, tokenizer),
        image_token_id=image_token_id,
        turn_end_id=turn_end_id,
        stop_ids=stop_ids,
        pad_id=pad_id,
        fingerprint=make_fingerprint(
            "qwen2vl",
            model_type,
            dtype_name(dtype),
            {
                "model": folder_digest(folder),
                "adapter": None if adapter is None else folder_digest(adapter),
                "attn_implementation": options.attn_implementation,
                "pixels": {
                    name: value
                    for name, value in dict(image_processor.size).items()
                    if value is not None
                },
            },
        ),
    )


def _model_type(folder: Path) -> str:
    model_type = read_model_type(folder)
    if model_type not in _MODEL_CLASSES:
        raise InputError(
            f"{folder}: is a {model_type} model; the backend qwen2vl runs"
            f" {', '.join(_MODEL_CLASSES)}"
        )
    check_weights(folder)
    return model_type


def _chat_template(folder: Path, tokenizer: Any) -> str:
    """The chat template that the official processor would use.

    The official processor first reads `chat_template.json`, in which older checkpoints keep the
    template. `chat_template.jinja` and tokenizer_config.json are read by the tokenizer.
    """
    legacy = folder / "chat_template.json"
    template = tokenizer.chat_template
    if legacy.is_file():
        try:
            template = json.loads(legacy.read_bytes())["chat_template"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{legacy}: not a chat template ({first_line(error)})") from error
    if not isinstance(template, str):
        raise InputError(
            f"{folder}: no chat template (chat_template.json, chat_template.jinja or in"
            " tokenizer_config.json); copy it from the model that this one was made from"
        )
    return template


def _token_id(tokenizer: Any, token: str, folder: Path) -> int:
    index = tokenizer.get_vocab().get(token)
    if index is None:
        raise InputError(f"{folder}: the tokenizer has no {token}; it is not a Qwen-VL tokenizer")
    return int(index)
