"""From options to a backend: what kind of checkpoint it is, where its parts are, what it is.

Hub ids are first turned into snapshot folders, so that everything after reads files of one commit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from pointer_rl.devices import dtype_name, resolve_device, resolve_dtype
from pointer_rl.errors import InputError
from pointer_rl.local.batching import LocalBackend, default_batch_tokens
from pointer_rl.local.fingerprints import digest_of, folder_digest
from pointer_rl.local.hub import checkpoint_folder
from pointer_rl.local.loading import SNAPSHOT_FILES, check_weights, place, read_model_type
from pointer_rl.types import VQABackend
from pointer_rl_flamingo.fingerprint import file_digest
from pointer_rl_flamingo.idefics import FAMILIES, load_idefics
from pointer_rl_flamingo.native import OpenFlamingo
from pointer_rl_flamingo.openflamingo import assemble, load_saved
from pointer_rl_flamingo.options import FlamingoOptions
from pointer_rl_flamingo.published import find_checkpoint

__all__ = ["load_backend", "load_model"]


def load_backend(options: FlamingoOptions) -> VQABackend:
    """Load what the options name. Raises InputError for what cannot be found, read or placed."""
    model, fingerprint = load_model(options)
    return LocalBackend(
        model,
        fingerprint=fingerprint,
        batch_tokens=options.batch_tokens or default_batch_tokens(model.model.device),
        advice="use fewer demonstrations or fewer beams",
    )


def load_model(options: FlamingoOptions) -> tuple[Any, str]:
    """The `LocalModel` on its device, and its fingerprint. Raises as `load_backend` does."""
    device = resolve_device(options.device)
    dtype = resolve_dtype(options.dtype, device)
    folder = checkpoint_folder(options.model, options.revision, (*SNAPSHOT_FILES, "*.pt"))
    if (folder / "checkpoint.pt").is_file() or not (folder / "config.json").is_file():
        return _load_parts(options, folder, dtype, device)
    family = read_model_type(folder)
    if family not in ("open_flamingo", *FAMILIES):
        raise InputError(
            f"{folder}: is a {family} model; the backend flamingo runs open_flamingo,"
            f" {', '.join(FAMILIES)}, and checkpoints of OpenFlamingo (checkpoint.pt)"
        )
    check_weights(folder)
    model: Any
    if family == "open_flamingo":
        parts, tokenizer = load_saved(folder, dtype)
        model = OpenFlamingo(place(parts, device, options.model), tokenizer)
    else:
        model = load_idefics(folder, family, dtype, device, options.model)
    return model, _fingerprint(family, dtype, {"model": folder_digest(folder)})


def _load_parts(
    options: FlamingoOptions, folder: Path, dtype: torch.dtype, device: torch.device
) -> tuple[OpenFlamingo, str]:
    """An OpenFlamingo as published: a checkpoint, a language model, a vision tower."""
    checkpoint = find_checkpoint(folder)
    if options.language_model is None:
        raise InputError(
            f"{checkpoint}: holds only what was trained; name the language model that it stands on:"
            " language_model=FOLDER or a Hub id"
        )
    language = checkpoint_folder(options.language_model, None, (*SNAPSHOT_FILES, "*.bin"))
    vision = checkpoint_folder(options.vision_model, None, SNAPSHOT_FILES)
    parts, tokenizer = assemble(checkpoint, language, vision, dtype)
    model = OpenFlamingo(place(parts, device, options.model), tokenizer)
    content = {
        "trained": file_digest(checkpoint),
        "language": [folder_digest(language), *map(file_digest, sorted(language.glob("*.bin")))],
        "vision": folder_digest(vision),
    }
    return model, _fingerprint("open_flamingo", dtype, content)


def _fingerprint(family: str, dtype: torch.dtype, content: Mapping[str, object]) -> str:
    """`flamingo-<family>-<dtype>-<20 hex digits>`"""
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    return f"flamingo-{family}-{dtype_name(dtype)}-{digest_of({**content, **versions})}"
