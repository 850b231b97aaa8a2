"""Selector checkpoints: our folders, and the files of Lever-LM and Lever-Plus.

Ours is `model.safetensors` with `config.json` beside it, which records the selector's registered
name and configuration; any registered selector loads. Of theirs (.ckpt, .pt, .pth), which are
`pointer` selectors, only tensors and plain values are read: `torch.load(weights_only=True)` never
runs a pickle's code. Their wrappings and key prefixes are removed, and sizes are inferred from the
tensors' shapes.
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

from pointer_rl.errors import InputError, PluginError, first_line
from pointer_rl.files import write_tensors, write_text
from pointer_rl.json_stream import parse_json
from pointer_rl.selectors.options import PointerConfig
from pointer_rl.selectors.pointer import PointerSelector
from pointer_rl.selectors.selector import Selector, create_selector

_log = logging.getLogger(__name__)

_WEIGHTS = "model.safetensors"
_CONFIG = "config.json"
_PREFIXES = ("lever_lm.", "pointer_selector.", "model.")
_SELECTOR_KEY = re.compile(
    r"(input_proj|cross_attn_layers\.\d+|attn_norms\.\d+|query_proj|cand_proj|query_update_gate"
    r"|stop|history_in|history_out)\."
)
_OLD_NAMES = {"cross_attn.": "cross_attn_layers.0.", "attn_norm.": "attn_norms.0."}
_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
_SAFE_GLOBALS: list[Any] = [
    # Metrics saved with the weights are often numpy numbers; making one runs no foreign code.
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "bool")),
]


def save_selector(folder: str | Path, selector: Selector) -> None:
    """Write `model.safetensors` and `config.json` into a folder, each atomically."""
    folder = Path(folder)
    tensors = {name: each.detach().contiguous() for name, each in selector.state_dict().items()}
    config = {"selector": selector.name, "config": dataclasses.asdict(selector.config)}
    write_tensors(folder / _WEIGHTS, tensors)
    write_text(folder / _CONFIG, json.dumps(config, indent=2) + "\n")


def load_selector(
    path: str | Path,
    device: str | torch.device = "cpu",
    *,
    num_heads: int | None = None,
    d_model: int | None = None,
) -> Selector:
    """Read a selector, in float32 and evaluation mode.

    `path` is a folder that `save_selector` wrote, a `.safetensors` file, or a `.ckpt` or `.pt` of
    Lever-LM or Lever-Plus. `num_heads` is for a file without `config.json` beside it, since the
    tensors do not show it. If it is not given, 1 is assumed, as in Lever-Plus, and logged.
    `d_model` is the size of the embeddings that it will be given, if that is known.
    Raises InputError, in one line, for a file that is damaged, holds code, is of another
    architecture or embedding size, or lacks a tensor; PluginError for a selector that is not
    installed.
    """
    path = Path(path)
    file = path / _WEIGHTS if path.is_dir() else path
    if not file.is_file():
        if path.is_dir():
            raise InputError(
                f"{path}: no {_WEIGHTS} in it: give the folder of a bundle or selector, of several "
                "seeds that of one, such as seed-0"
            )
        raise InputError(f"{path}: no such checkpoint; give a folder, .safetensors, .ckpt or .pt")
    _log.debug("%s: reading", file)
    tensors = _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    selector = _saved_selector(file.with_name(_CONFIG)) if file.suffix == ".safetensors" else None
    if selector is None:
        if path.is_dir():
            raise InputError(
                f"{path / _CONFIG}: missing or not a selector's; save the selector again"
            )
        found = len(tensors)
        tensors = _pointer_tensors(tensors, file)
        selector = PointerSelector(_infer_config(tensors, num_heads, file))
        _log.info("%s: %d tensors of other models ignored", file, found - len(tensors))
    elif num_heads is not None:
        saved = getattr(selector.config, "num_heads", None)
        if saved != num_heads:
            raise InputError(f"{file}: saved with num_heads={saved}; {num_heads} was asked for")
    _fill(selector, tensors, file)
    if d_model not in (None, selector.config.d_model):
        raise InputError(
            f"{path}: the selector takes embeddings of {selector.config.d_model} dimensions and "
            f"these have {d_model}: use the encoder that it was trained with"
        )
    return selector.to(device).eval()


def _saved_selector(file: Path) -> Selector | None:
    """A selector as `config.json` describes it; None if the file is missing or not a selector's."""
    try:
        content = parse_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not readable as JSON ({first_line(error)})") from error
    if not isinstance(content, dict):
        return None
    name, config = content.get("selector"), content.get("config")
    if content.pop("architecture", None) == "pointer_selector":  # as 57b4359 and earlier wrote it
        name, config = "pointer", content
    if not isinstance(name, str) or not isinstance(config, dict):
        return None
    try:
        return create_selector(name, config)
    except PluginError as error:
        raise PluginError(f"{file}: {error}") from error
    except (InputError, TypeError) as error:
        raise InputError(f"{file}: not a selector's configuration ({first_line(error)})") from error


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
            warnings.simplefilter("ignore")  # about pickle protocols
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # foreign bytes can make the parser raise anything
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise InputError(
                f"{file}: refused, it holds the Python object {refused[1]} and not only tensors; "
                "save its state_dict alone"
            ) from error
        raise InputError(
            f"{file}: not a selector's checkpoint, or damaged: give a folder, .safetensors, .ckpt "
            "or .pt"
        ) from error
    for wrapping in ("model_state_dict", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapping), Mapping):
            content = content[wrapping]
    if not isinstance(content, Mapping):
        raise InputError(f"{file}: holds a {type(content).__name__} and no state dict")
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _pointer_tensors(found: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The tensors of a `pointer` selector, under today's names."""
    sources: dict[str, str] = {}
    for key in found:
        name = _todays_name(key)
        if _SELECTOR_KEY.match(name):
            if name in sources:
                raise InputError(f"{file}: both {sources[name]} and {key} are a selector's {name}")
            sources[name] = key
    if not sources:
        raise InputError(
            f"{file}: not a pointer selector, none of its {len(found)} tensors belongs to one"
        )
    return {name: found[key] for name, key in sources.items()}


def _todays_name(key: str) -> str:
    while key.startswith(_PREFIXES):
        key = key.partition(".")[2]
    for old, new in _OLD_NAMES.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def _infer_config(
    tensors: Mapping[str, Tensor], num_heads: int | None, file: Path
) -> PointerConfig:
    if num_heads is None:
        _log.warning("%s: does not say how many attention heads it has; taking 1", file)
        num_heads = 1
    hidden_dim = _width(tensors, "query_proj.weight", file)
    projected = any(name.startswith("input_proj.") for name in tensors)
    gated = any(name.startswith("query_update_gate.") for name in tensors)
    history: Literal["static", "gated"] = "gated" if gated else "static"
    layers = [int(name.split(".")[1]) for name in tensors if name.startswith("cross_attn_layers.")]
    try:
        return PointerConfig(
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


def _fill(selector: Selector, tensors: Mapping[str, Tensor], file: Path) -> None:
    wanted = selector.state_dict()
    for name, parameter in wanted.items():
        if name not in tensors:
            raise InputError(f"{file}: no tensor {name}; the checkpoint is incomplete")
        if tensors[name].shape != parameter.shape:
            raise InputError(
                f"{file}: {name} has shape {tuple(tensors[name].shape)} and not "
                f"{tuple(parameter.shape)}; is it another architecture?"
            )
        if not tensors[name].isfinite().all():
            raise InputError(f"{file}: {name} holds values that are not finite; train it again")
    unknown = tensors.keys() - wanted.keys()
    if unknown:
        raise InputError(f"{file}: this selector has no {min(unknown)}; another architecture")
    selector.load_state_dict(dict(tensors))
