"""Load a checkpoint folder or Hub id as a model, its processor and its chat template."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from pointer_rl.devices import dtype_name, resolve_device, resolve_dtype
from pointer_rl.errors import InputError, MissingExtraError, first_line
from pointer_rl.local.fingerprints import folder_digest, make_fingerprint
from pointer_rl.local.hub import checkpoint_folder
from pointer_rl.local.loading import (
    LOADING_ERRORS,
    SNAPSHOT_FILES,
    check_attention,
    check_weights,
    load_weights,
    place,
    read_model_type,
    set_end_tokens,
)
from pointer_rl.local.templates import Chat
from pointer_rl_hf.chat import load_chat
from pointer_rl_hf.options import HFBackendOptions

_OPTIONAL_PACKAGES = ("torchvision", "sentencepiece", "tiktoken", "num2words")
"""Packages that processors of some models need. Their errors name the package."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint. Model and processor are transformers' own objects, without types."""

    model: Any
    """In evaluation mode, on its device, including the layers of an adapter."""
    processor: Any
    tokenizer: Any
    chat: Chat
    turn_end_id: int
    """The token that ends an answer."""
    stop_ids: tuple[int, ...]
    """All tokens at which generation ends, padding included."""
    special_ids: frozenset[int]
    """Tokens that an answer must not contain."""
    pad_id: int
    fingerprint: str


def load_checkpoint(options: HFBackendOptions) -> Checkpoint:
    """Load the checkpoint that the options name.

    Raises InputError for a checkpoint that cannot be found, read or moved to its device, and
    MissingExtraError for a package that is not installed.
    """
    device = resolve_device(options.device)
    dtype = resolve_dtype(options.dtype, device)
    check_attention(options.attn_implementation, device, dtype)
    folder = checkpoint_folder(options.model, options.revision, SNAPSHOT_FILES)
    model_type = read_model_type(folder)
    _check_supported(folder, model_type)
    check_weights(folder)
    processor = _load_processor(folder)
    tokenizer = processor.tokenizer
    chat = load_chat(processor, folder, options.chat_template)
    adapter = None if options.adapter is None else Path(options.adapter).expanduser()
    model = load_weights(
        transformers.AutoModelForImageTextToText,
        folder,
        dtype=dtype,
        attention=options.attn_implementation,
        adapter=adapter,
    )
    model = place(model, device, options.model)

    special_ids = frozenset(
        index for index, each in tokenizer.added_tokens_decoder.items() if each.special
    )
    turn_end_id = _turn_end(chat, tokenizer, special_ids, model, folder)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(turn_end_id)
    pad_id = tokenizer.pad_token_id
    return Checkpoint(
        model=model,
        processor=processor,
        tokenizer=tokenizer,
        chat=chat,
        turn_end_id=turn_end_id,
        stop_ids=set_end_tokens(model, [turn_end_id], pad_id),
        special_ids=special_ids,
        pad_id=pad_id,
        fingerprint=make_fingerprint(
            "hf",
            model_type,
            dtype_name(dtype),
            {
                "model": folder_digest(folder),
                "adapter": None if adapter is None else folder_digest(adapter),
                "chat_template": chat.template,
                "image_processor": type(processor.image_processor).__name__,
                "attn_implementation": options.attn_implementation,
            },
        ),
    )


def _load_processor(folder: Path) -> Any:
    """Load the processor and check that it has a tokenizer and an image processor.

    Images are resized with Pillow if transformers can do so for the model, even if torchvision is
    installed. The two round differently, and installed packages must not change an answer.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        processor_class = PROCESSOR_MAPPING.get(type(config), None)
        if processor_class is not None and "video_processor" in processor_class.get_attributes():
            processor = _load_for_images(processor_class, folder)
        else:
            processor = transformers.AutoProcessor.from_pretrained(
                folder, backend="pil", trust_remote_code=False
            )
    except (*LOADING_ERRORS, ImportError) as error:
        # transformers may name the package in the cause alone.
        said = f"{error} {error.__cause__}".lower()
        for package in _OPTIONAL_PACKAGES:
            if package in said and importlib.util.find_spec(package) is None:
                raise MissingExtraError(package, f"the processor of {folder}") from error
        raise InputError(f"{folder}: cannot load the processor ({first_line(error)})") from error
    for part in ("tokenizer", "image_processor"):
        if not hasattr(processor, part):
            raise InputError(
                f"{folder}: its processor ({type(processor).__name__}) has no {part}; the backend"
                " hf needs an image-text-to-text checkpoint with all its files"
            )
    return processor


def _load_for_images(processor_class: Any, folder: Path) -> Any:
    """Load a processor without its parts for video and audio, which are never used here.

    The video processor needs torchvision. Without torchvision its class does not exist, and
    transformers' check of the parts' classes fails, so the check is skipped for missing parts.
    """

    class ImageTextProcessor(processor_class):  # type: ignore[misc]  # transformers has no types
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument is None:
                return type(None)
            return super().check_argument_for_proper_class(argument_name, argument)

    parts = {
        "tokenizer": transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
        "image_processor": transformers.AutoImageProcessor.from_pretrained(
            folder, backend="pil", trust_remote_code=False
        ),
    }
    settings, _ = processor_class.get_processor_dict(folder)
    ordered = [parts.get(name) for name in processor_class.get_attributes()]
    return ImageTextProcessor.from_args_and_dict(ordered, settings)


def _check_supported(folder: Path, model_type: str) -> None:
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise InputError(
            f"{folder}: transformers {transformers.__version__} cannot use this {model_type}"
            f" configuration ({first_line(error)}); code in a checkpoint is never run"
        ) from error
    if type(config) not in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise InputError(
            f"{folder}: is a {model_type} model, which is not an image-text-to-text model of"
            f" transformers {transformers.__version__}"
        )
    if config.is_encoder_decoder:
        raise InputError(
            f"{folder}: is a {model_type} model, an encoder-decoder; the backend hf runs models"
            " whose answer continues the prompt"
        )


def _turn_end(
    chat: Chat, tokenizer: Any, special_ids: Collection[int], model: Any, folder: Path
) -> int:
    """The special token that the template puts after an answer, or else the model's end token."""
    after = tokenizer(chat.after_answer().lstrip(), add_special_tokens=False)["input_ids"]
    if after and after[0] in special_ids:
        return int(after[0])
    ends = model.generation_config.eos_token_id
    for index in (*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id):
        if index is not None:
            return int(index)
    raise InputError(
        f"{folder}: neither the chat template, generation_config.json nor the tokenizer names a"
        " token that ends an answer"
    )
