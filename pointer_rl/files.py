"""Write files so that they appear whole or not at all, and by one process at a time.

Every file is written under a temporary name in the target's folder, synced to disk, and renamed.
What a killed process left is deleted by the next process that writes into the folder. Temporary
files and lock files are locked (flock) while their process lives; the system unlocks them when it
dies, so that no lock is ever stale. (Windows has no such locks, and renames no open file: it is not
supported.)
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

from pointer_rl.errors import InputError, first_line

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

_HOST = platform.node().partition(".")[0]
_LEFT = re.compile(r"\..+\.(?:\d+@(?P<host>.*)\.tmp|pointer-rl\.lock)", re.DOTALL)
"""Names of temporary files, `.NAME.PID@HOST.tmp`, and of lock files."""
_ABANDONED = 86_400
"""Seconds after which a temporary file of another host counts as left behind."""
_DTYPES = {
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{"bfloat16": "BF16", "uint8": "U8", "bool": "BOOL"},
}
"""torch's names of types → safetensors'."""
_PATIENCE = 0.5
"""Seconds that a lock is tried: `remove_leftovers` of another process takes one for a moment."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
"""How file systems without locks refuse one."""


class AtomicFile:
    """A file that replaces `path` when it is committed; until then `path` stays as it was.

    As a context manager it yields `file` and commits at the end, or discards on an exception.
    Missing folders are created. Raises InputError if the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        check_name(path)
        self.path = path
        self._temporary = temporary_path(path)
        if path.is_dir():
            raise InputError(f"{path}: cannot be written (it is a folder; name a file)")
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: cannot be written (it is a pipe or a device; name a file)")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path.parent)
            self.file: BinaryIO = _open_locked(self._temporary)
            self.file.truncate(0)
        except OSError as error:
            raise cannot_be_written(path, error) from error

    def write(self, data: bytes | memoryview) -> None:
        """Append to `file`."""
        try:
            self.file.write(data)
        except OSError as error:
            raise cannot_be_written(self.path, error) from error

    def commit(self) -> None:
        """Sync the content to disk and move it to `path`."""
        try:
            self.file.flush()
            os.fsync(self.file.fileno())
            os.replace(self._temporary, self.path)
            self.file.close()  # not earlier: it has the lock
            _sync_folder(self.path.parent)
        except OSError as error:
            self.discard()
            raise cannot_be_written(self.path, error) from error

    def discard(self) -> None:
        """Delete the temporary file. Does nothing after `commit`."""
        if not self.file.closed:
            self._temporary.unlink(missing_ok=True)
            with suppress(OSError):  # a full disk has no room for what is still buffered
                self.file.close()

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


def embeddings_folder() -> Path:
    """The folder of the embeddings that commands keep."""
    return cache_folder() / "embeddings"


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes `path` at the end, or is deleted on an exception.

    Raises InputError if `path` exists or cannot be written.
    """
    check_name(path)
    temporary = temporary_path(path)
    try:
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        temporary.mkdir()
        descriptor = os.open(temporary, os.O_RDONLY)
    except OSError as error:
        raise cannot_be_written(path, error) from error
    try:
        _lock(descriptor)
        yield temporary
        os.rename(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise cannot_be_written(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(descriptor)


@contextmanager
def locked(path: Path, waiting: Callable[[str], object] | None = None) -> Iterator[None]:
    """Until the block ends, no other process may enter it with the same path.

    The lock is the file `.NAME.pointer-rl.lock` beside `path`; it holds the process's id and host.
    A run that writes a folder locks a file in it. If another process has the lock, `waiting` is
    called with a sentence that names that process, and this one waits. Raises InputError if there
    is no `waiting`, and if no file can be written there.
    """
    check_name(path)
    place = _beside(path, "pointer-rl.lock")
    is_new = not path.parent.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        try:
            file = _open_locked(place)
        except BlockingIOError as error:
            holder = "it has just begun"
            with suppress(OSError):
                holder = place.read_text(errors="replace") or holder
            busy = f"{path}: another process is writing it ({holder})"
            if waiting is None:
                raise InputError(f"{busy}: wait for it, or name another output") from error
            waiting(f"{busy}; waiting for it")
            file = _open_locked(place, math.inf)
    except OSError as error:
        raise cannot_be_written(path, error) from error
    try:
        if not _lock(file.fileno()):  # asked again, because it says whether there are locks
            log.warning("%s: the file system has no locks: let only one process write it", path)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {_HOST}".encode())
        file.flush()
    except OSError as error:
        _unlock(place, file)
        raise cannot_be_written(path, error) from error
    try:
        yield
    finally:
        _unlock(place, file)
        if is_new:
            with suppress(OSError):  # something was written
                path.parent.rmdir()


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
    """Write a safetensors file: the length of a JSON header, the header, and the tensors' bytes.

    The safetensors package would write to a temporary file of its own, which a kill leaves behind.
    Format: https://github.com/huggingface/safetensors#format
    """
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    # Large items first, so that all are aligned.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _DTYPES[str(tensor.dtype).removeprefix("torch.")],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    with AtomicFile(path) as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for _, tensor in ordered:
            file.write(tensor_bytes(tensor))


def tensor_bytes(tensor: Tensor) -> memoryview:
    """A tensor's values as they stand in memory, row by row."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def check_writable(path: Path, *, overwrite: bool) -> None:
    """Raise InputError unless a file can be created at `path`.

    Call it before anything that takes long. Without `overwrite` an existing file is an error too.
    """
    check_name(path)
    if path.is_file() and not overwrite:
        raise InputError(f"{path}: exists; remove it, or give --overwrite")
    AtomicFile(path).discard()


def check_name(path: Path) -> None:
    """Raise InputError for a name that other programs, and UTF-8, could not write."""
    name = str(path)
    if "\0" in name or name.encode("utf-8", "replace").decode() != name:
        raise InputError(f"{ascii(name)[1:-1]}: not a name in UTF-8: give another one")


def temporary_path(path: Path) -> Path:
    """The temporary name that this process writes `path` under."""
    return _beside(path, f"{os.getpid()}@{_HOST}.tmp")


def _beside(path: Path, suffix: str) -> Path:
    if not path.name:
        raise InputError(f"{path}: cannot be written (it is a folder; name a file)")
    return path.with_name(f".{path.name}.{suffix}")


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files and lock files in a folder that dead processes have left.

    Where it is not known whether the process lives (it is on another host, or there are no locks),
    they are deleted when they are a day old.
    """
    try:
        entries = [entry for entry in os.scandir(folder) if entry.name[0] == "."]
    except OSError:  # there is no such folder
        return
    for entry in entries:
        found = _LEFT.fullmatch(entry.name)
        if found is None or not (entry.is_file() or entry.is_dir()):
            continue
        with suppress(OSError):  # its process is alive; or another one deletes it just now
            descriptor = os.open(entry, os.O_RDONLY if entry.is_dir() else os.O_RDWR)
            try:
                can_lock = _lock(descriptor) and found["host"] in (None, _HOST)
                if can_lock or time.time() - entry.stat().st_mtime > _ABANDONED:
                    _remove(entry)
            finally:
                os.close(descriptor)


def _remove(entry: os.DirEntry[str]) -> None:
    if entry.is_dir(follow_symlinks=False):
        shutil.rmtree(entry)
    else:
        os.unlink(entry)


def cannot_be_written(path: Path, error: BaseException) -> InputError:
    """The error of a file that cannot be written, with the system's reason."""
    reason = getattr(error, "strerror", None) or first_line(error)
    if isinstance(error, FileExistsError) and path.parent.is_file():
        reason = f"{path.parent.name} is not a folder"
    return InputError(f"{path}: cannot be written ({reason})")


def _open_locked(place: Path, patience: float = _PATIENCE) -> BinaryIO:
    """Open or create a file, and lock it.

    Raises BlockingIOError if another process still has it after `patience` seconds.
    """
    give_up = time.monotonic() + patience
    while True:
        file = os.fdopen(os.open(place, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            _lock(file.fileno())
            # If not, whoever had it has removed it since it was opened.
            if os.name != "posix" or os.path.samestat(os.fstat(file.fileno()), os.stat(place)):
                return file
        except FileNotFoundError:
            pass
        except BlockingIOError:
            if time.monotonic() > give_up:
                file.close()
                raise
            time.sleep(0.01)
        except BaseException:
            file.close()
            raise
        file.close()


def _lock(descriptor: int) -> bool:
    """Lock a file until it is closed or this process dies; False if the system has no locks.

    Raises BlockingIOError if another process has locked it.
    """
    if os.name != "posix":
        return False
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _unlock(place: Path, file: BinaryIO) -> None:
    place.unlink(missing_ok=True)
    with suppress(OSError):
        file.close()


def _sync_folder(folder: Path) -> None:
    """Make the renaming survive a power cut, on systems that can sync a folder."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
