"""Load a checkpoint into vLLM as a backend."""

from __future__ import annotations

import json
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pointer_rl.errors import InputError, first_line
from pointer_rl.local.fingerprints import folder_digest, make_fingerprint
from pointer_rl.local.hub import checkpoint_folder
from pointer_rl.local.loading import SNAPSHOT_FILES, check_weights, read_model_type
from pointer_rl.local.templates import Chat
from pointer_rl_vllm.backend import VLLMBackend
from pointer_rl_vllm.engine import ON_CPU, VERSION, VLLMEngine, start
from pointer_rl_vllm.options import VLLMOptions
from pointer_rl_vllm.prompts import PromptEncoder

_CPU_CACHE_BYTES = 4 * 2**30
_CPU_BLOCK_SIZE = 32
"""vLLM's own 128 tokens are longer than short prompts, which would then share nothing."""


def load_backend(options: VLLMOptions) -> VLLMBackend:
    """Load the checkpoint that the options name.

    Raises InputError for a checkpoint that cannot be found, or that vLLM cannot run as asked.
    """
    folder = checkpoint_folder(options.model, options.revision, SNAPSHOT_FILES)
    model_type = read_model_type(folder)
    check_weights(folder)
    llm = start(model=str(folder), **_arguments(options))
    tokenizer = llm.get_tokenizer()
    chat = Chat(tokenizer, _chat_template(folder, tokenizer, options.chat_template), folder)
    try:
        encoder = PromptEncoder(tokenizer, chat)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    config = llm.model_config
    fingerprint = make_fingerprint(
        "vllm",
        model_type,
        str(config.dtype).removeprefix("torch."),
        {
            "model": folder_digest(folder),
            "chat_template": chat.template,
            "quantization": config.quantization,
            "min_pixels": options.min_pixels,
            "max_pixels": options.max_pixels,
            "vllm": VERSION,
            "torchvision": _version("torchvision"),  # vLLM may resize images with it.
        },
    )
    return VLLMBackend(VLLMEngine(llm, encoder.stop_ids), encoder, fingerprint)


def _arguments(options: VLLMOptions) -> dict[str, Any]:
    """The engine's arguments. Those that are None are left to vLLM."""
    dtype: str = options.dtype
    if dtype == "auto" and ON_CPU:
        dtype = "float32"
    arguments: dict[str, Any] = {
        "dtype": dtype,
        "quantization": options.quantization,
        "min_pixels": options.min_pixels,
        "max_pixels": options.max_pixels,
        "max_model_len": options.max_model_len,
        "tensor_parallel_size": options.tensor_parallel_size,
        "enforce_eager": options.enforce_eager,
    }
    if options.gpu_memory_utilization is not None:
        arguments["gpu_memory_utilization"] = options.gpu_memory_utilization
    elif ON_CPU and "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
        # vLLM would take most of the machine's memory, and refuse to start if it is not free.
        arguments["kv_cache_memory_bytes"] = _CPU_CACHE_BYTES
    block_size = options.block_size or (_CPU_BLOCK_SIZE if ON_CPU else None)
    if block_size is not None:
        arguments["block_size"] = block_size
    return arguments


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _chat_template(folder: Path, tokenizer: Any, option: str | None) -> str:
    """The option's file, else the processor's template, else the tokenizer's.

    vLLM's tokenizer does not know of the processor's chat_template.json. Raises InputError.
    """
    path = folder / "chat_template.json" if option is None else Path(option).expanduser()
    try:
        if option is not None:
            return path.read_text(encoding="utf-8")
        if path.is_file():
            return str(json.loads(path.read_bytes())["chat_template"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot read the chat template ({first_line(error)})") from error
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise InputError(
            f"{folder}: no chat template (chat_template.jinja, chat_template.json or in"
            " tokenizer_config.json); give one with chat_template=FILE"
        ) from error
