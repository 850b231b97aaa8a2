"""Read an OpenFlamingo `checkpoint.pt`, which holds only the trained tensors.

These are the resampler, the gated layers and the token embeddings. The vision tower and the
language model's own layers come from the models on which training was based. The names and shapes
of the tensors tell how the parts are combined.

Keys may have the prefix `module.` (DDP), and may lie in `model_state_dict` (training checkpoints
that include an optimizer). Gated layers may belong to the language model's layers
(`….blocks.3.gated_cross_attn_layer.…`) or be a list of their own (`gated_cross_attn_layers.3.…`).
"""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pointer_rl.errors import InputError, first_line

EMBEDDINGS = {
    "mpt": "lang_encoder.transformer.wte.weight",
    "gpt_neox": "lang_encoder.gpt_neox.embed_in.weight",
}
"""Model type → name of the token embeddings."""
_HEAD_DIM = 64
"""The same in all published models. It cannot be derived from shapes."""
_OLD_BUFFERS = re.compile(r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$")
"""Constants that older versions of GPT-NeoX saved with the weights."""
_OWN_LIST = re.compile(r"^lang_encoder\.gated_cross_attn_layers\.(\d+)\.")


def find_checkpoint(folder: Path) -> Path:
    """Find the file of weights in a folder. Raises InputError unless there is exactly one."""
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


def file_digest(path: Path) -> str:
    """Hash a file of tensors. Of an archive only the directory is read, with the members' CRC-32.

    Member names start with the name under which the file was saved; that part is left out. Raises
    InputError for a file that cannot be read.
    """
    digest = hashlib.sha256()
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for part in sorted(archive.infolist(), key=lambda each: each.filename):
                    name = part.filename.partition("/")[2]
                    digest.update(f"{name}\0{part.file_size}\0{part.CRC}\0".encode())
        else:
            with path.open("rb") as file:
                while piece := file.read(2**20):
                    digest.update(piece)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    return digest.hexdigest()


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint's tensors by name, without wrapper and prefix.

    Pickles are read with `weights_only`. Raises InputError for a file that is not a checkpoint.
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
    """Rename tensors to the names of `OpenFlamingoModel`, and drop constants that it computes.

    `layers` is the name of the module that lists the language model's layers.
    """
    renamed = {}
    for name, tensor in tensors.items():
        if _OLD_BUFFERS.search(name):
            continue
        name = _OWN_LIST.sub(rf"lang_encoder.{layers}.\1.gated_cross_attn_layer.", name)
        name = name.replace("lang_encoder.embed_out.", "lang_encoder.lm_head.")
        renamed[name] = tensor
    return renamed


def read_sizes(tensors: dict[str, Tensor], model_type: str, path: Path) -> dict[str, int]:
    """Derive fields of `OpenFlamingoConfig`, and `vocab_size`, from renamed tensors.

    Raises InputError for any other kind of model.
    """
    gated = _numbers(r"\.(\d+)\.gated_cross_attn_layer\.attn_gate$", tensors)
    depths = _numbers(r"^perceiver\.layers\.(\d+)\.", tensors)
    latents, queries = "perceiver.latents", "perceiver.layers.0.0.to_q.weight"
    embeddings = EMBEDDINGS[model_type]
    if not (gated and depths and {latents, queries, embeddings} <= tensors.keys()):
        raise InputError(
            f"{path}: not an OpenFlamingo checkpoint over {model_type}: it needs perceiver.…,"
            f" gated_cross_attn_layer.… and {embeddings}"
            f" (it holds {', '.join(sorted(tensors)[:3]) or 'nothing'}, …)"
        )
    return {
        "cross_attn_every_n_layers": min(gated) + 1,
        "resampler_depth": max(depths) + 1,
        "num_latents": len(tensors[latents]),
        "num_heads": len(tensors[queries]) // _HEAD_DIM,
        "head_dim": _HEAD_DIM,
        "vocab_size": len(tensors[embeddings]),
    }


def _numbers(pattern: str, names: Iterable[str]) -> list[int]:
    found = (re.search(pattern, name) for name in names)
    return [int(match[1]) for match in found if match]
