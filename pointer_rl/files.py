"""Write files so that they appear whole or not at all.

Every file is written under a temporary name in the target's folder, synced to disk, and renamed.
The temporary name is `.NAME.PID@HOST.tmp`, so that the next process to write NAME can tell what a
killed process left behind, and deletes it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

from pointer_rl.errors import InputError, first_line

if TYPE_CHECKING:
    from torch import Tensor

_HOST = platform.node().partition(".")[0]
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)@(?P<host>.*)\.tmp")
_ABANDONED = 86_400
"""Seconds after which a temporary file of another host counts as left behind."""


class AtomicFile:
    """A file that replaces `path` when it is committed; until then `path` stays as it was.

    As a context manager it yields `file` and commits at the end, or discards on an exception.
    Missing folders are created. Raises InputError if the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}@{_HOST}.tmp")
        if path.is_dir():
            raise InputError(f"{path}: cannot be written (it is a folder; name a file)")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path)
            self.file: BinaryIO = open(self._temporary, "wb")  # noqa: SIM115 (closed in commit)
        except OSError as error:
            raise cannot_be_written(path, error) from error

    def write(self, data: bytes) -> None:
        """Append to `file`."""
        try:
            self.file.write(data)
        except OSError as error:
            raise cannot_be_written(self.path, error) from error

    def commit(self) -> None:
        """Sync the content to disk and move it to `path`."""
        try:
            self.file.close()
            # A new handle, because a library may have written to the name and not to `file`.
            with open(self._temporary, "r+b") as file:
                os.fsync(file.fileno())
            os.replace(self._temporary, self.path)
            _sync_folder(self.path.parent)
        except OSError as error:
            self._temporary.unlink(missing_ok=True)
            raise cannot_be_written(self.path, error) from error

    def discard(self) -> None:
        """Delete the temporary file. Does nothing after `commit`."""
        if not self.file.closed:
            with suppress(OSError):  # a full disk has no room for what is still buffered
                self.file.close()
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> BinaryIO:
        return self.file

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.commit()
            return
        self.discard()
        if isinstance(error, OSError):
            raise cannot_be_written(self.path, error) from error


def cache_folder() -> Path:
    """POINTER_RL_CACHE, else pointer-rl in XDG_CACHE_HOME, else pointer-rl in ~/.cache."""
    own = os.environ.get("POINTER_RL_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pointer-rl"


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file. Lone surrogates, which UTF-8 lacks, become backslash escapes."""
    with AtomicFile(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file. The tensors must be contiguous and share no memory."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with AtomicFile(path) as file:
        try:
            mode = os.fstat(file.fileno()).st_mode
            save_file(dict(tensors), file.name, None if metadata is None else dict(metadata))
            os.chmod(file.name, mode)  # safetensors makes a file that only its owner can read
        except SafetensorError as error:
            raise cannot_be_written(path, error) from error


def check_writable(path: Path, *, overwrite: bool) -> None:
    """Raise InputError unless a file can be created at `path`.

    Call it before anything that takes long. Without `overwrite` an existing file is an error too.
    """
    if path.exists() and not path.is_dir() and not overwrite:
        raise InputError(f"{path}: exists; remove it, or give --overwrite")
    AtomicFile(path).discard()


def remove_leftovers(path: Path) -> None:
    """Delete the temporary files of dead processes: those for `path`, or all in a folder `path`.

    Whether a process of another host is alive is unknown; its files go when they are a day old.
    """
    is_folder = path.is_dir()
    with suppress(OSError):  # no such folder; or another process is deleting the same files
        for entry in os.scandir(path if is_folder else path.parent):
            found = _TEMPORARY.fullmatch(entry.name) if entry.name[0] == "." else None
            if found is None or not (is_folder or found["name"] == path.name):
                continue
            if found["host"] != _HOST or os.name != "posix":
                left = time.time() - entry.stat().st_mtime > _ABANDONED
            else:
                left = not _is_alive(int(found["pid"]))
            if left:
                os.unlink(entry)


def cannot_be_written(path: Path, error: BaseException) -> InputError:
    """The error of a file that cannot be written, with the system's reason."""
    reason = getattr(error, "strerror", None) or first_line(error)
    return InputError(f"{path}: cannot be written ({reason})")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _sync_folder(folder: Path) -> None:
    """Make the renaming survive a power cut, on systems that can sync a folder."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
