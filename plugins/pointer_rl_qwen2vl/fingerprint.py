"""What a checkpoint is, as a short string: equal where the same request gets the same response.

Hashed is the content, never a name or place: a checkpoint from the Hub, its copy and the copy's
new name are one. Small weight files are hashed whole. Of larger ones (reading 15 GB to start
would double the start) the header (every tensor's name, dtype, shape and place), the size and the
first 64 KiB of every tensor are hashed: two trainings from one initialisation differ there, a file
in which a few numbers were edited by hand may not.

Left out: the device and the batch size. They move floats in the last digits, not answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import transformers

from pointer_rl.errors import InputError

__all__ = ["checkpoint_fingerprint"]

_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    "adapter_config.json",
)
"""Files beside the weights that decide a response."""
_WHOLE_BELOW = 64 * 2**20
_TENSOR_SAMPLE = 64 * 2**10


def checkpoint_fingerprint(
    folder: Path,
    adapter: Path | None,
    *,
    family: str,
    dtype: str,
    attn_implementation: str,
    pixels: Mapping[str, int],
) -> str:
    """`qwen2vl-<family>-<dtype>-<20 hex digits>`.

    `pixels`: the image processor's limits, as in use. Raises InputError for unreadable files.
    """
    parts = {
        "model": _folder_digest(folder),
        "adapter": None if adapter is None else _folder_digest(adapter),
        "attn_implementation": attn_implementation,
        "pixels": {name: value for name, value in pixels.items() if value is not None},
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return f"qwen2vl-{family}-{dtype}-{digest[:20]}"


def _folder_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    weights = sorted(path.name for path in folder.glob("*.safetensors"))
    for name in (*_SMALL_FILES, *weights):
        path = folder / name
        if not path.is_file():
            continue
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        for piece in _content(path):
            digest.update(piece)
    return digest.hexdigest()


def _content(path: Path) -> Iterator[bytes]:
    if path.suffix != ".safetensors" or path.stat().st_size < _WHOLE_BELOW:
        yield path.read_bytes()
        return
    # The safetensors format: header size (8 bytes), JSON header, tensors.
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        header = file.read(header_size)
        yield header
        try:
            tensors = [each for name, each in json.loads(header).items() if name != "__metadata__"]
            offsets = [tensor["data_offsets"] for tensor in tensors]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: not a safetensors file") from error
        for start, end in sorted(offsets):
            file.seek(8 + header_size + start)
            yield file.read(min(end - start, _TENSOR_SAMPLE))
