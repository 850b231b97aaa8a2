"""Load a checkpoint's processor, which combines its tokenizer and its image processor.

Images are resized with Pillow if transformers can do so for the model, even if torchvision is
installed. The two round differently, and installed packages must not change an answer.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from pointer_rl.errors import InputError, MissingExtraError, first_line
from pointer_rl.local.loading import LOADING_ERRORS

_OPTIONAL_PACKAGES = ("torchvision", "sentencepiece", "tiktoken", "num2words")
"""Packages that processors of some models need. Their errors name the package."""


def load_processor(folder: Path) -> Any:
    """Load the folder's processor and check that it has a tokenizer and an image processor.

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
