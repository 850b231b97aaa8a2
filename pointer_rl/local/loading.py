"""Load checkpoint folders as transformers models. Every problem of a folder is a one-line error.

Weights must be safetensors. Pickled weights are never read, and code in a checkpoint is never run.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoTokenizer, GenerationConfig

from pointer_rl.devices import dtype_name
from pointer_rl.errors import InputError, MissingExtraError, first_line
from pointer_rl.json_stream import parse_json

LOADING_ERRORS = (
    *(OSError, ValueError, RuntimeError, KeyError, TypeError),
    *(SafetensorError, StrictDataclassError),
)
"""Exceptions that transformers and peft raise for missing, damaged or unsuitable files."""
SNAPSHOT_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.safetensors")
"""Files to download from a Hub repository."""


def check_attention(implementation: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raise InputError or MissingExtraError for attention kernels that cannot run here."""
    if implementation != "flash_attention_2":
        return
    if device.type != "cuda" or dtype == torch.float32:
        raise InputError(
            "attn_implementation=flash_attention_2 needs a CUDA device and dtype bfloat16 or"
            f" float16 (here {device}, {dtype_name(dtype)}); use sdpa"
        )
    if importlib.util.find_spec("flash_attn") is None:
        raise MissingExtraError("flash-attn", "attn_implementation=flash_attention_2")


def read_model_type(folder: Path) -> str:
    """The `model_type` in the folder's config.json. Raises InputError if it cannot be read."""
    path = folder / "config.json"
    try:
        model_type = parse_json(path.read_bytes())["model_type"]
    except FileNotFoundError:
        raise InputError(f"{folder}: not a checkpoint folder (no config.json)") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a model configuration ({first_line(error)})") from error
    return str(model_type)


def check_weights(folder: Path) -> None:
    """Raise InputError for a folder without safetensors."""
    if not any(folder.glob("*.safetensors")):
        raise InputError(
            f"{folder}: no *.safetensors weights (pickled weights are not read; convert them with"
            " save_pretrained)"
        )


def load_preprocessing(folder: Path, **settings: object) -> tuple[Any, Any]:
    """Load the tokenizer and the image processor, with further settings of the image processor.

    Images are resized with Pillow even if torchvision is installed: the two round differently, and
    installed packages must not change an answer. Raises InputError for files that cannot be read.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        image_processor = AutoImageProcessor.from_pretrained(
            folder, backend="pil", trust_remote_code=False, **settings
        )
    except LOADING_ERRORS as error:
        raise InputError(
            f"{folder}: cannot load the tokenizer and the image processor ({first_line(error)})"
        ) from error
    return tokenizer, image_processor


def load_weights(
    model_class: Any,
    folder: Path,
    *,
    dtype: torch.dtype,
    attention: str = "sdpa",
    adapter: Path | None = None,
) -> Any:
    """Load a model, and add the layers of a LoRA adapter. Every tensor must come from the files.

    Raises InputError for weights that cannot be read or that do not cover the model, for a folder
    that is not a LoRA adapter of this model, and MissingExtraError for an adapter without peft.
    """
    try:
        model, report = model_class.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # Reported below, with the missing tensors.
            output_loading_info=True,
        )
    except LOADING_ERRORS as error:
        raise InputError(f"{folder}: cannot load the model ({first_line(error)})") from error
    _check_complete(folder, report["missing_keys"], report["mismatched_keys"])
    if adapter is not None:
        _apply_adapter(model, adapter)
    return model


def _apply_adapter(model: Any, adapter: Path) -> None:
    """Add the layers of an adapter. Merging them would round them to the weights' dtype."""
    if not (adapter / "adapter_config.json").is_file():
        raise InputError(f"{adapter}: not an adapter folder (no adapter_config.json)")
    if not (adapter / "adapter_model.safetensors").is_file():
        raise InputError(f"{adapter}: no adapter_model.safetensors (pickled weights are not read)")
    if importlib.util.find_spec("peft") is None:
        raise MissingExtraError("peft", f"the adapter {adapter}")
    try:
        kind = parse_json((adapter / "adapter_config.json").read_bytes())["peft_type"]
        if kind != "LORA":
            raise InputError(f"{adapter}: is a {kind} adapter; only LORA can be applied")
        report = model.load_adapter(str(adapter), ignore_mismatched_sizes=True)
    except LOADING_ERRORS as error:
        raise InputError(f"{adapter}: does not fit the model ({first_line(error)})") from error
    _check_complete(adapter, report.missing_keys, report.mismatched_keys)


def place(model: Any, device: torch.device, name: str) -> Any:
    """Move a model to its device, in evaluation mode. Raises InputError if it does not fit.

    `name` is the user's name for the model; the error starts with it.
    """
    try:
        return model.to(device).eval()
    except torch.OutOfMemoryError:
        raise InputError(
            f"{name}: does not fit into the memory of {device} as {dtype_name(model.dtype)};"
            " choose another device, a smaller model or dtype=bfloat16"
        ) from None


def set_end_tokens(model: Any, end_ids: Iterable[int], pad_id: int) -> tuple[int, ...]:
    """End generation at these tokens and at the checkpoint's own. Returns all, with padding.

    This drops the checkpoint's sampling defaults (temperature, repetition penalty, …), which
    `generate` would otherwise use for every option that a call does not set.
    """
    own = model.generation_config.eos_token_id
    own_ids = own if isinstance(own, list) else [own]
    stop_ids = sorted({*end_ids, pad_id, *own_ids} - {None})
    model.generation_config = GenerationConfig(eos_token_id=stop_ids, pad_token_id=pad_id)
    return tuple(stop_ids)


def _check_complete(
    folder: Path, missing: Iterable[str], mismatched: Iterable[Sequence[Any]]
) -> None:
    """Refuse weights that do not cover the model. transformers would use random numbers."""
    faults = sorted([*missing, *(name for name, *_ in mismatched)])
    if faults:
        raise InputError(
            f"{folder}: {len(faults)} tensors of the model are missing or of another shape"
            f" ({faults[0]}, …); the files are incomplete or belong to another model"
        )
