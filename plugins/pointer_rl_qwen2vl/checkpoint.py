"""From a checkpoint folder or Hub id to a model, a tokenizer and an image processor.

A Hub id is first turned into its snapshot folder, so that everything after reads files of one
commit, and a copy of a checkpoint is the same checkpoint wherever it lies.

`AutoProcessor` is not used: for these models it also builds a video processor, which needs
torchvision. The image processor is the one that resizes with Pillow, whether torchvision is
installed or not: the two round differently, and what is installed must not decide an answer.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from pointer_rl.devices import resolve_device
from pointer_rl.errors import InputError, MissingExtraError, first_line
from pointer_rl.hub import checkpoint_folder
from pointer_rl_qwen2vl.fingerprint import checkpoint_fingerprint
from pointer_rl_qwen2vl.options import Qwen2VLOptions

__all__ = ["Checkpoint", "load_checkpoint"]

_MODEL_CLASSES = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
}
_SNAPSHOT_FILES = ["*.json", "*.jinja", "*.txt", "*.safetensors"]
_LOADING_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError)
"""What transformers and peft raise for files that are missing, damaged or do not fit."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint. The parts are transformers' own objects, which carry no types."""

    model: Any
    """In evaluation mode, on its device; an adapter's layers are in place."""
    tokenizer: Any
    image_processor: Any
    chat_template: str
    image_token_id: int
    turn_end_id: int
    """<|im_end|>: the token that ends an answer."""
    stop_ids: tuple[int, ...]
    """All tokens at which generation ends; padding is one."""
    pad_id: int
    fingerprint: str


def load_checkpoint(options: Qwen2VLOptions) -> Checkpoint:
    """Load what the options name.

    Raises InputError for what cannot be found, read or placed, and MissingExtraError where peft
    or flash-attn is asked for but not installed.
    """
    device = resolve_device(options.device)
    dtype = _dtype(options.dtype, device)
    _check_attention(options.attn_implementation, device, dtype)
    folder = checkpoint_folder(options.model, options.revision, _SNAPSHOT_FILES)
    model_type = _model_type(folder)
    tokenizer, image_processor = _load_preprocessing(folder, options)
    model = _load_model(folder, model_type, dtype, options.attn_implementation)
    adapter = None if options.adapter is None else Path(options.adapter).expanduser()
    if adapter is not None:
        _apply_adapter(model, adapter)
    try:
        model = model.to(device).eval()
    except torch.OutOfMemoryError:
        raise InputError(
            f"{options.model}: does not fit into the memory of {device} as {_name(dtype)};"
            " choose another device, a smaller model or dtype=bfloat16"
        ) from None

    image_token_id = model.config.image_token_id
    turn_end_id = _token_id(tokenizer, "<|im_end|>", folder)
    if _token_id(tokenizer, "<|image_pad|>", folder) != image_token_id:
        raise InputError(f"{folder}: the tokenizer is not this model's (<|image_pad|> differs)")
    pad_id = turn_end_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    stop_ids = {turn_end_id, pad_id, *_ids(model.generation_config.eos_token_id)}
    # The checkpoint's sampling defaults (temperature, repetition penalty, …) would fill in
    # whatever a call to `generate` leaves open.
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=sorted(stop_ids), pad_token_id=pad_id
    )
    return Checkpoint(
        model=model,
        tokenizer=tokenizer,
        image_processor=image_processor,
        chat_template=_chat_template(folder, tokenizer),
        image_token_id=image_token_id,
        turn_end_id=turn_end_id,
        stop_ids=tuple(sorted(stop_ids)),
        pad_id=pad_id,
        fingerprint=checkpoint_fingerprint(
            folder,
            adapter,
            family=model_type,
            dtype=_name(dtype),
            attn_implementation=options.attn_implementation,
            pixels=dict(image_processor.size),
        ),
    )


# --- where it runs ---


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_attention(implementation: str, device: torch.device, dtype: torch.dtype) -> None:
    if implementation != "flash_attention_2":
        return
    if device.type != "cuda" or dtype == torch.float32:
        raise InputError(
            "attn_implementation=flash_attention_2 needs a CUDA device and dtype bfloat16 or"
            f" float16 (here {device}, {_name(dtype)}); use sdpa"
        )
    if importlib.util.find_spec("flash_attn") is None:
        raise MissingExtraError("flash-attn", "attn_implementation=flash_attention_2")


# --- what is read ---


def _model_type(folder: Path) -> str:
    path = folder / "config.json"
    try:
        model_type = json.loads(path.read_bytes())["model_type"]
    except FileNotFoundError:
        raise InputError(f"{folder}: not a checkpoint folder (no config.json)") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a model configuration ({first_line(error)})") from error
    if model_type not in _MODEL_CLASSES:
        raise InputError(
            f"{folder}: is a {model_type} model; the backend qwen2vl runs"
            f" {', '.join(_MODEL_CLASSES)}"
        )
    if not any(folder.glob("*.safetensors")):
        raise InputError(
            f"{folder}: no *.safetensors weights (pickled weights are not read; convert them with"
            " save_pretrained)"
        )
    return str(model_type)


def _load_preprocessing(folder: Path, options: Qwen2VLOptions) -> tuple[Any, Any]:
    pixels = {"min_pixels": options.min_pixels, "max_pixels": options.max_pixels}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        image_processor = transformers.AutoImageProcessor.from_pretrained(
            folder,
            backend="pil",
            trust_remote_code=False,
            **{name: value for name, value in pixels.items() if value is not None},
        )
    except _LOADING_ERRORS as error:
        raise InputError(
            f"{folder}: cannot load the tokenizer and the image processor ({first_line(error)})"
        ) from error
    return tokenizer, image_processor


def _load_model(folder: Path, model_type: str, dtype: torch.dtype, attention: str) -> Any:
    model_class = getattr(transformers, _MODEL_CLASSES[model_type])
    try:
        model, report = model_class.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported below
            output_loading_info=True,
        )
    except _LOADING_ERRORS as error:
        raise InputError(f"{folder}: cannot load the model ({first_line(error)})") from error
    _check_complete(folder, report["missing_keys"], report["mismatched_keys"])
    return model


def _apply_adapter(model: Any, adapter: Path) -> None:
    """Put LoRA layers into the model. Not merged: that would round them to the weights' dtype."""
    if not (adapter / "adapter_config.json").is_file():
        raise InputError(f"{adapter}: not an adapter folder (no adapter_config.json)")
    if not (adapter / "adapter_model.safetensors").is_file():
        raise InputError(f"{adapter}: no adapter_model.safetensors (pickled weights are not read)")
    if importlib.util.find_spec("peft") is None:
        raise MissingExtraError("peft", f"the adapter {adapter}")
    try:
        kind = json.loads((adapter / "adapter_config.json").read_bytes())["peft_type"]
        if kind != "LORA":
            raise InputError(f"{adapter}: is a {kind} adapter; the backend qwen2vl applies LORA")
        report = model.load_adapter(str(adapter), ignore_mismatched_sizes=True)
    except _LOADING_ERRORS as error:
        raise InputError(f"{adapter}: does not fit the model ({first_line(error)})") from error
    _check_complete(adapter, report.missing_keys, report.mismatched_keys)


def _check_complete(folder: Path, missing: set[str], mismatched: set[tuple[Any, ...]]) -> None:
    """Refuse weights that do not cover the model: transformers fills up with random numbers."""
    faults = sorted([*missing, *(name for name, *_ in mismatched)])
    if faults:
        raise InputError(
            f"{folder}: {len(faults)} tensors of the model are missing or of another shape"
            f" ({faults[0]}, …); the files are incomplete or belong to another model"
        )


def _chat_template(folder: Path, tokenizer: Any) -> str:
    """The template that the official processor would use.

    `chat_template.json` is where older checkpoints keep the processor's template, and what it
    reads first; `chat_template.jinja` and tokenizer_config.json come with the tokenizer.
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


def _ids(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)
