"""Find a checkpoint by its folder, its Hugging Face Hub id, or the package that brings it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from pointer_rl.errors import InputError
from pointer_rl.hub import REPOSITORY, download


def checkpoint_folder(model: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """The folder itself or, for a Hub id, its snapshot of the files that match `patterns`.

    An existing folder is used without any network access. `package:folder` is a folder in an
    installed Python package, which is not imported. All files of a snapshot belong to one commit.
    Raises InputError if the model is none of these, or if the download fails.
    """
    folder = _in_package(model) or Path(model).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise InputError(f"{folder}: a folder has no revision {revision!r}; leave it out")
        return folder
    if not re.fullmatch(REPOSITORY, model):
        raise InputError(f"{model}: no such checkpoint folder, and not a Hub id (owner/name)")
    try:
        return download(model, revision, patterns)
    except InputError as error:
        raise InputError(f"{error}; nor is there such a folder") from error


def _in_package(model: str) -> Path | None:
    match = re.fullmatch(r"(\w+):([\w./-]+)", model)
    if match is None:
        return None
    package, folder = match.groups()
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"{model}: there is no installed package {package}")
    return Path(spec.submodule_search_locations[0]) / folder
