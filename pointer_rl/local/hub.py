"""Find a checkpoint by its folder or its Hugging Face Hub id."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pointer_rl.errors import InputError, first_line


def checkpoint_folder(model: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """The folder itself or, for a Hub id, its snapshot of the files that match `patterns`.

    An existing folder is used without any network access. All files of a snapshot belong to one
    commit. Raises InputError if the model is neither a folder nor a Hub id, or if the download
    fails.
    """
    from huggingface_hub import snapshot_download

    folder = Path(model).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise InputError(f"{folder}: a folder has no revision {revision!r}; leave it out")
        return folder
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model):
        raise InputError(f"{model}: no such checkpoint folder, and not a Hub id (owner/name)")
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:
        at = f" at revision {revision}" if revision else ""
        raise InputError(
            f"{model}{at}: neither a folder nor available from the Hugging Face Hub; check the"
            f" name, the network and the login (hf auth login) ({first_line(error)})"
        ) from error
