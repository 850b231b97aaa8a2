"""What a checkpoint is, as a short string: equal where the same request gets the same response.

Hashed is the content, never a name or place: a checkpoint from the Hub, its copy and the copy's
new name are one. Small weight files are hashed whole. Of larger ones (reading 15 GB to start
would double the start) the header (every tensor's name, dtype, shape and place), the size and the
first 64 KiB of every tensor are hashed: two trainings from one initialisation differ there, a file
in which a few numbers were edited by hand may not.

A backend leaves out its device and batch size. They move floats in the last digits, not answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pointer_rl.errors import InputError

__all__ = ["CHECKPOINT_FILES", "digest_of", "folder_digest"]

CHECKPOINT_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer.model",
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


def folder_digest(folder: Path, files: Sequence[str] = CHECKPOINT_FILES) -> str:
    """Of the contents of these files and of all *.safetensors, as far as they are there.

    Raises InputError for weights that are no safetensors file.
    """
    digest = hashlib.sha256()
    weights = sorted(path.name for path in folder.glob("*.safetensors"))
    for name in (*files, *weights):
        path = folder / name
        if not path.is_file():
            continue
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        for piece in _content(path):
            digest.update(piece)
    return digest.hexdigest()


def digest_of(parts: Mapping[str, object]) -> str:
    """20 hex digits of named JSON values, whatever their order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]


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
