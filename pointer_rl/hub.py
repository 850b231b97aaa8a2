"""Downloads from and uploads to the Hugging Face Hub. Errors are InputErrors of one line.

huggingface_hub reads endpoint, cache, offline mode and token from the environment (`HF_ENDPOINT`,
`HF_HOME`, `HF_HUB_OFFLINE`, `HF_TOKEN`). Messages never contain the token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from pointer_rl.errors import InputError

REPOSITORY = r"[\w-][\w.-]*/[\w.-]+"
"""Pattern of OWNER/NAME."""


def download(repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Download the files of a model repository that match `patterns`, all from one commit.

    Returns the folder of the snapshot. Cached files are not downloaded again. Raises InputError if
    the download fails.
    """
    from huggingface_hub import snapshot_download

    with _one_line(repository if revision is None else f"{repository}@{revision}"):
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))


def upload(
    repository: str, folder: Path, kind: Literal["model", "dataset"], patterns: Sequence[str]
) -> str:
    """Upload the files of the folder that match `patterns`, in one commit.

    Matching files that only the repository has are deleted there. A new repository is private.
    Returns the URL of the commit. Raises InputError if the upload fails; the repository then keeps
    its earlier files.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="pointer-rl", library_version=version("pointer-rl"))
    with _one_line(repository):
        api.create_repo(repository, repo_type=kind, private=True, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository,
            repo_type=kind,
            folder_path=folder,
            allow_patterns=list(patterns),
            delete_patterns=list(patterns),
            commit_message=f"Upload with pointer-rl {version('pointer-rl')}",
        )
    return done.commit_url


def is_snapshot(path: Path) -> bool:
    """Whether the path is in the Hub's cache, where files must not be changed."""
    from huggingface_hub import constants

    return path.resolve().is_relative_to(Path(constants.HF_HUB_CACHE).expanduser().resolve())


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    from huggingface_hub import get_token

    try:
        yield
    # It passes on errors of its HTTP client, which is not the same in all versions.
    except Exception as error:
        reason = _reason(error)
        cause: Exception | None = error
        token = get_token()
        if token and token in f"{reason} {error}":  # a server may echo it
            reason, cause = reason.replace(token, "(token)"), None
        raise InputError(f"{what}: {reason}") from cause


def _reason(error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):  # of one file
        return _reason(error.__cause__)
    if isinstance(error, errors.GatedRepoError):
        return "a gated repository; request access on its page, and set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such repository, or a private one; check the name, and set HF_TOKEN"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the Hub refuses access ({status}): set HF_TOKEN to a token that may do this"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            "not in the cache, and the Hub cannot be reached; check the network and HF_HUB_OFFLINE"
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "the Hub is not asked while HF_HUB_OFFLINE is set"
    # Its messages have several lines, of which the last is the Hub's own.
    return f"the Hub cannot be used ({type(error).__name__}: {' '.join(str(error).split())})"
