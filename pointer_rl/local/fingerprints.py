"""Fingerprints of checkpoints: equal if the same request gets the same response.

Fingerprints hash content, never names or paths, so that a checkpoint from the Hub and a renamed
copy of it have the same fingerprint. Small weight files are hashed whole. For larger ones, since
reading 15 GB would double the start-up time, the header (name, dtype, shape and offset of every
tensor), the size and the first 64 KiB of every tensor are hashed. Two trainings from the same
initialisation differ in these; a file in which a few numbers were edited by hand may not.

Device and batch size are not part of a fingerprint: they change the last digits of floats, not
answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pointer_rl.errors import InputError

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
"""Files next to the weights that affect a response."""
_WHOLE_BELOW = 64 * 2**20
_TENSOR_SAMPLE = 64 * 2**10


def folder_digest(folder: Path, files: Sequence[str] = CHECKPOINT_FILES) -> str:
    """Hash the contents of these files and of all *.safetensors. Missing files are skipped.

    Raises InputError for an invalid safetensors file.
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
    """Hash named JSON values, in any order, to 20 hex digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]


def make_fingerprint(backend: str, model_type: str, dtype: str, parts: Mapping[str, object]) -> str:
    """`<backend>-<model type>-<dtype>-<20 hex digits>`.

    The digits hash `parts` (JSON values) and the versions of torch and transformers.
    """
    import torch
    import transformers

    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    return f"{backend}-{model_type}-{dtype}-{digest_of({**parts, **versions})}"


def _content(path: Path) -> Iterator[bytes]:
    if path.suffix != ".safetensors" or path.stat().st_size < _WHOLE_BELOW:
        yield path.read_bytes()
        return
    # A safetensors file is the size of its header (8 bytes), a JSON header, and the tensors.
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
