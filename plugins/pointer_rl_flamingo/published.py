"""An OpenFlamingo `checkpoint.pt`: what was trained, and nothing else.

It holds the resampler, the gated layers and the token embeddings; the vision tower and the language
model's own layers are taken from where training began. From the names and shapes follows how the
parts were put together, so that nobody has to say it.

Key forms that are read: with or without the prefix `module.` (DDP); bare or in `model_state_dict`
(training checkpoints, beside the optimizer); gated layers below the language model's layers
(`….blocks.3.gated_cross_attn_layer.…`) or in their own list (`gated_cross_attn_layers.3.…`).
"""

from __future__ import annotations

import pickle
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pointer_rl.errors import InputError, first_line

__all__ = ["EMBEDDINGS", "Layout", "find_checkpoint", "layout", "read_checkpoint", "rename"]

EMBEDDINGS = {
    "mpt": "lang_encoder.transformer.wte.weight",
    "gpt_neox": "lang_encoder.gpt_neox.embed_in.weight",
}
"""Model type → the token embeddings' name."""
_HEAD_DIM = 64
"""Of all published models: shapes alone do not tell it."""
_OLD_BUFFERS = re.compile(r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$")
"""Constants that GPT-NeoX used to save among its weights."""
_OWN_LIST = re.compile(r"^lang_encoder\.gated_cross_attn_layers\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the parts were put together."""

    cross_attn_every_n_layers: int
    resampler_depth: int
    num_latents: int
    num_heads: int
    head_dim: int
    vocab_size: int


def find_checkpoint(folder: Path) -> Path:
    """The one file of weights in a folder. Raises InputError where there is none, or several."""
    named = folder / "checkpoint.pt"
    if named.is_file():
        return named
    found = sorted([*folder.glob("*.pt"), *folder.glob("*.safetensors")])
    if len(found) == 1:
        return found[0]
    what = f"several ({', '.join(path.name for path in found)})" if found else "none"
    raise InputError(
        f"{folder}: expected one OpenFlamingo checkpoint (checkpoint.pt, another *.pt or"
        f" *.safetensors), found {what}"
    )


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Its tensors by name, without wrapper and prefix. Pickles are read with `weights_only`.

    Raises InputError for a file that is no checkpoint.
    """
    try:
        if path.suffix == ".safetensors":
            content: object = load_file(path)
        else:
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except (OSError, RuntimeError, ValueError, EOFError, SafetensorError) as error:
        raise InputError(f"{path}: not a readable checkpoint ({first_line(error)})") from error
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: holds other things than tensors, which are not unpickled; save its"
            " state_dict alone"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("model_state_dict"), dict):
        content = content["model_state_dict"]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise InputError(f"{path}: not a state_dict (names and tensors)")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def rename(tensors: dict[str, Tensor], layers: str) -> dict[str, Tensor]:
    """The tensors under our model's names; constants that it computes itself are left out.

    layers: where the language model has its layers.
    """
    renamed = {}
    for name, tensor in tensors.items():
        if _OLD_BUFFERS.search(name):
            continue
        name = _OWN_LIST.sub(rf"lang_encoder.{layers}.\1.gated_cross_attn_layer.", name)
        name = name.replace("lang_encoder.embed_out.", "lang_encoder.lm_head.")
        renamed[name] = tensor
    return renamed


def layout(tensors: dict[str, Tensor], model_type: str, path: Path) -> Layout:
    """Read the layout off renamed tensors. Raises InputError where they are no OpenFlamingo's."""
    numbers = [_number(r"\.(\d+)\.gated_cross_attn_layer\.attn_gate$", name) for name in tensors]
    depths = [_number(r"^perceiver\.layers\.(\d+)\.", name) for name in tensors]
    first_gated = min((number for number in numbers if number is not None), default=None)
    last_depth = max((number for number in depths if number is not None), default=None)
    latents = tensors.get("perceiver.latents")
    queries = tensors.get("perceiver.layers.0.0.to_q.weight")
    embeddings = tensors.get(EMBEDDINGS[model_type])
    if (
        first_gated is None
        or last_depth is None
        or latents is None
        or queries is None
        or embeddings is None
    ):
        raise InputError(
            f"{path}: not an OpenFlamingo checkpoint over {model_type}: it needs perceiver.…,"
            f" gated_cross_attn_layer.… and {EMBEDDINGS[model_type]}"
            f" (it holds {', '.join(sorted(tensors)[:3]) or 'nothing'}, …)"
        )
    return Layout(
        cross_attn_every_n_layers=first_gated + 1,
        resampler_depth=last_depth + 1,
        num_latents=len(latents),
        num_heads=len(queries) // _HEAD_DIM,
        head_dim=_HEAD_DIM,
        vocab_size=len(embeddings),
    )


def _number(pattern: str, name: str) -> int | None:
    found = re.search(pattern, name)
    return None if found is None else int(found[1])
