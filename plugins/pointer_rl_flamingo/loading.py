"""From options to a backend: find the parts of a checkpoint and load them.

A Hub id is first turned into its snapshot folder, so that all files belong to one commit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pointer_rl.devices import dtype_name, resolve_device, resolve_dtype
from pointer_rl.errors import InputError
from pointer_rl.local.batching import LocalBackend, default_batch_tokens
from pointer_rl.local.fingerprints import folder_digest, make_fingerprint
from pointer_rl.local.hub import checkpoint_folder
from pointer_rl.local.loading import SNAPSHOT_FILES, check_weights, place, read_model_type
from pointer_rl.local.threads import choose_threads
from pointer_rl.types import VQABackend
from pointer_rl_flamingo.idefics import load_idefics
from pointer_rl_flamingo.native import OpenFlamingo
from pointer_rl_flamingo.openflamingo import assemble, load_saved
from pointer_rl_flamingo.options import FlamingoOptions
from pointer_rl_flamingo.published import file_digest, find_checkpoint


def load_backend(options: FlamingoOptions) -> VQABackend:
    """Load the model as a backend. Raises InputError if it cannot be found, read or placed."""
    model, fingerprint = load_model(options)
    return LocalBackend(
        model,
        fingerprint=fingerprint,
        batch_tokens=options.batch_tokens or default_batch_tokens(model.model.device),
        advice="use fewer demonstrations or fewer beams",
        threads=choose_threads(model.model, options.threads),
    )


def load_model(options: FlamingoOptions) -> tuple[Any, str]:
    """The `LocalModel` on its device, and its fingerprint. Raises as `load_backend` does."""
    device = resolve_device(options.device)
    dtype = resolve_dtype(options.dtype, device)
    folder = checkpoint_folder(options.model, options.revision, (*SNAPSHOT_FILES, "*.pt"))
    if (folder / "checkpoint.pt").is_file() or not (folder / "config.json").is_file():
        return _load_parts(options, folder, dtype, device)
    model_type = read_model_type(folder)
    if model_type in ("idefics2", "idefics3"):
        raise InputError(
            f"{folder}: is an {model_type} model, which the backend flamingo does not run; use"
            " --backend hf"
        )
    if model_type not in ("open_flamingo", "idefics"):
        raise InputError(
            f"{folder}: is a {model_type} model; the backend flamingo runs open_flamingo, idefics,"
            " and checkpoints of OpenFlamingo (checkpoint.pt)"
        )
    check_weights(folder)
    model: Any
    if model_type == "open_flamingo":
        parts, tokenizer = load_saved(folder, dtype)
        model = OpenFlamingo(place(parts, device, options.model), tokenizer)
    else:
        model = load_idefics(folder, dtype, device, options.model)
    content = {"model": folder_digest(folder)}
    return model, make_fingerprint("flamingo", model_type, dtype_name(dtype), content)


def _load_parts(
    options: FlamingoOptions, folder: Path, dtype: torch.dtype, device: torch.device
) -> tuple[OpenFlamingo, str]:
    """Load an OpenFlamingo model as published: a checkpoint, a language model, a vision tower."""
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
    return model, make_fingerprint("flamingo", "open_flamingo", dtype_name(dtype), content)
