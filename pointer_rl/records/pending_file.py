"""A file that appears whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from pointer_rl.errors import InputError

__all__ = ["PendingFile"]


class PendingFile:
    """A temporary file beside `path`, which takes its place when it is committed.

    Raises InputError at once where the folder cannot be written; missing folders are made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        if path.is_dir():
            raise InputError(f"{path}: is a folder; name a file to write")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file: BinaryIO = open(self._temporary, "wb")  # noqa: SIM115 (closed in commit)
        except OSError as error:
            raise InputError(f"{path}: cannot write there ({error.strerror})") from error

    def commit(self) -> None:
        """Make it last, and put it in place of what was there."""
        try:
            with self.file as file:
                file.flush()
                os.fsync(file.fileno())
            os.replace(self._temporary, self.path)
        except OSError as error:
            self._temporary.unlink(missing_ok=True)
            raise InputError(f"{self.path}: cannot write it ({error.strerror})") from error
        _sync_folder(self.path.parent)

    def discard(self) -> None:
        """Leave nothing behind, and what was there as it was. After `commit`: does nothing."""
        if not self.file.closed:
            with suppress(OSError):  # of a full disk, on which the last bytes found no room
                self.file.close()
            self._temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the renaming last through a power cut, where the system lets a folder be synced."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
