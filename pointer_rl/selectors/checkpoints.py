"""Selector checkpoints: a folder of our own, and what Lever-LM and Lever-Plus left behind.

Ours is `model.safetensors` with `config.json` beside it. Of theirs (.ckpt, .pt, .pth) only tensors
and plain values are read: `torch.load(weights_only=True)` never runs a pickle's code. Their
wrappings and key prefixes are taken off, and sizes are read from the tensors' shapes.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pointer_rl.errors import InputError, first_line
from pointer_rl.files import write_tensors, write_text
from pointer_rl.selectors.pointer import PointerSelector, SelectorConfig

__all__ = ["load_selector", "save_selector"]

_log = logging.getLogger(__name__)

_ARCHITECTURE = "pointer_selector"
_WEIGHTS = "model.safetensors"
_CONFIG = "config.json"
_PREFIXES = ("lever_lm.", "pointer_selector.", "model.")
_SELECTOR_KEY = re.compile(
    r"(input_proj|cross_attn_layers\.\d+|attn_norms\.\d+|query_proj|cand_proj|query_update_gate)\."
)
_OLD_NAMES = {"cross_attn.": "cross_attn_layers.0.", "attn_norm.": "attn_norms.0."}
_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
_SAFE_GLOBALS: list[Any] = [
    # Metrics saved beside the weights are often numpy numbers; making one runs no foreign code.
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "bool")),
]


def save_selector(folder: str | Path, selector: PointerSelector) -> None:
    """Write `model.safetensors` and `config.json` into a folder (made if need be), each whole."""
    folder = Path(folder)
    tensors = {name: each.detach().contiguous() for name, each in selector.state_dict().items()}
    config = {"architecture": _ARCHITECTURE, **dataclasses.asdict(selector.config)}
    write_tensors(folder / _WEIGHTS, tensors)
    write_text(folder / _CONFIG, json.dumps(config, indent=2) + "\n")


def load_selector(
    path: str | Path, device: str | torch.device = "cpu", *, num_heads: int | None = None
) -> PointerSelector:
    """Read a selector, in float32 and evaluation mode.

    `path` is a folder that `save_selector` wrote, a `.safetensors` file, or an ancestor's `.ckpt`
    or `.pt`. `num_heads` is for a file without `config.json` beside it: the tensors do not show
    it; ancestors had 1, which is assumed, and logged, when it is not given.
    Raises InputError, in one line, for a file that is damaged, holds code, is of another
    architecture, or lacks a tensor. Tensors that are not a selector's are counted in the log.
    """
    path = Path(path)
    file = path / _WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file}: no such checkpoint; give a folder, .safetensors, .ckpt or .pt")
    found = _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    tensors = _selector_tensors(found, file)
    saved = _read_config(file.with_name(_CONFIG)) if file.suffix == ".safetensors" else None
    if saved is None and path.is_dir():
        raise InputError(f"{path / _CONFIG}: missing or not a selector's; save the selector again")
    if saved and num_heads not in (None, saved.num_heads):
        raise InputError(f"{file}: saved with {saved.num_heads} heads; {num_heads} were asked for")
    selector = PointerSelector(saved or _infer_config(tensors, num_heads, file))
    _fill(selector, tensors, file)
    _log.info("%s: %d tensors of other models ignored", file, len(found) - len(tensors))
    return selector.to(device).eval()


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{file}: damaged, or no safetensors file ({first_line(error)})"
        ) from error


def _read_torch(file: Path) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals(_SAFE_GLOBALS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols: what cannot be read is refused
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a parser of foreign bytes: there is no telling what it raises
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise InputError(
                f"{file}: refused, it holds the Python object {refused[1]} and not only tensors; "
                "save its state_dict alone"
            ) from error
        raise InputError(
            f"{file}: damaged, or no torch checkpoint ({type(error).__name__}: {first_line(error)})"
        ) from error
    for wrapping in ("model_state_dict", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapping), Mapping):
            content = content[wrapping]
    if not isinstance(content, Mapping):
        raise InputError(f"{file}: holds a {type(content).__name__} and no state dict")
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _selector_tensors(found: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Those of the selector, under today's names."""
    sources: dict[str, str] = {}
    for key in found:
        name = _today(key)
        if _SELECTOR_KEY.match(name):
            if name in sources:
                raise InputError(f"{file}: both {sources[name]} and {key} are a selector's {name}")
            sources[name] = key
    if not sources:
        raise InputError(
            f"{file}: not a pointer selector, none of its {len(found)} tensors belongs to one"
        )
    return {name: found[key] for name, key in sources.items()}


def _today(key: str) -> str:
    while key.startswith(_PREFIXES):
        key = key.partition(".")[2]
    for old, new in _OLD_NAMES.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def _read_config(file: Path) -> SelectorConfig | None:
    """The saved configuration; None where the file is missing or another program's."""
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not readable as JSON ({first_line(error)})") from error
    if not isinstance(content, dict) or content.pop("architecture", None) != _ARCHITECTURE:
        return None
    try:
        return SelectorConfig(**content)
    except (TypeError, ValueError) as error:
        raise InputError(f"{file}: not a selector's configuration ({first_line(error)})") from error


def _infer_config(
    tensors: Mapping[str, Tensor], num_heads: int | None, file: Path
) -> SelectorConfig:
    if num_heads is None:
        _log.warning("%s: does not say how many attention heads it has; taking 1", file)
        num_heads = 1
    hidden_dim = _width(tensors, "query_proj.weight", file)
    projected = any(name.startswith("input_proj.") for name in tensors)
    gated = any(name.startswith("query_update_gate.") for name in tensors)
    history: Literal["static", "gated"] = "gated" if gated else "static"
    layers = [int(name.split(".")[1]) for name in tensors if name.startswith("cross_attn_layers.")]
    try:
        return SelectorConfig(
            d_model=_width(tensors, "input_proj.weight", file) if projected else hidden_dim,
            hidden_dim=hidden_dim,
            num_layers=max(layers, default=0) + 1,
            num_heads=num_heads,
            history=history,
        )
    except ValueError as error:
        raise InputError(f"{file}: {error}") from error


def _width(tensors: Mapping[str, Tensor], name: str, file: Path) -> int:
    if name not in tensors or tensors[name].dim() != 2:
        raise InputError(f"{file}: no matrix {name}; the checkpoint is incomplete")
    return tensors[name].shape[1]


def _fill(selector: PointerSelector, tensors: Mapping[str, Tensor], file: Path) -> None:
    wanted = selector.state_dict()
    for name, parameter in wanted.items():
        if name not in tensors:
            raise InputError(f"{file}: no tensor {name}; the checkpoint is incomplete")
        if tensors[name].shape != parameter.shape:
            raise InputError(
                f"{file}: {name} has shape {tuple(tensors[name].shape)} where "
                f"{tuple(parameter.shape)} fits the other tensors; is it another architecture?"
            )
        if not tensors[name].isfinite().all():
            raise InputError(f"{file}: {name} holds values that are not finite; train it again")
    unknown = tensors.keys() - wanted.keys()
    if unknown:
        raise InputError(f"{file}: this selector has no {min(unknown)}; another architecture")
    selector.load_state_dict(dict(tensors))
