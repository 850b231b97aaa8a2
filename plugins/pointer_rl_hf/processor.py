"""A checkpoint's processor: tokenizer and image processor, joined as its model wants it.

Images are resized with Pillow where transformers has that way for the model, whether torchvision is
installed or not: the two round differently, and what is installed must not decide an answer.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from pointer_rl.errors import InputError, MissingExtraError, first_line
from pointer_rl.local.loading import LOADING_ERRORS

__all__ = ["load_processor"]

_OPTIONAL_PACKAGES = ("torchvision", "sentencepiece", "tiktoken", "num2words")
"""What processors of some models need; their errors name it."""


def load_processor(folder: Path) -> Any:
    """The folder's processor, with a tokenizer and an image processor.

    Raises InputError, and MissingExtraError for a package that this processor needs.
    """
    try:
        processor = _load(folder)
    except (*LOADING_ERRORS, ImportError) as error:
        for package in _OPTIONAL_PACKAGES:
            if package in str(error).lower() and importlib.util.find_spec(package) is None:
                raise MissingExtraError(package, f"the processor of {folder}") from error
        raise InputError(f"{folder}: cannot load the processor ({first_line(error)})") from error
    for part in ("tokenizer", "image_processor"):
        if not hasattr(processor, part):
            raise InputError(
                f"{folder}: its processor ({type(processor).__name__}) has no {part}; the backend"
                " hf needs an image-text-to-text checkpoint with all its files"
            )
    return processor


def _load(folder: Path) -> Any:
    processor_class = _processor_class(folder)
    if processor_class is not None and "video_processor" in processor_class.get_attributes():
        return _load_for_images(processor_class, folder)
    return transformers.AutoProcessor.from_pretrained(
        folder, backend="pil", trust_remote_code=False
    )


def _processor_class(folder: Path) -> Any:
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return PROCESSOR_MAPPING.get(type(config), None)


def _load_for_images(processor_class: Any, folder: Path) -> Any:
    """A processor with nothing where those of videos and sounds would be, which never reach it.

    Its video processor would need torchvision. transformers checks the parts' classes, of which
    that one does not exist without it.
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
