"""Hash a pickled file of tensors by the checksums that PyTorch stores in its archive."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

from pointer_rl.errors import InputError


def file_digest(path: Path) -> str:
    """Hash a file's content. Of an archive only the directory is read, with each member's CRC-32.

    Member names start with the name under which the file was saved; that part is left out. Raises
    InputError for a file that cannot be read.
    """
    digest = hashlib.sha256()
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for part in sorted(archive.infolist(), key=lambda each: each.filename):
                    name = part.filename.partition("/")[2]
                    digest.update(f"{name}\0{part.file_size}\0{part.CRC}\0".encode())
        else:
            with path.open("rb") as file:
                while piece := file.read(2**20):
                    digest.update(piece)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    return digest.hexdigest()
