"""Export the response cache as lines of JSON, for other programs."""

from __future__ import annotations

import json
from pathlib import Path

from pointer_rl.errors import InputError, first_line
from pointer_rl.records.pending_file import PendingFile
from pointer_rl.session.cache import ResponseCache

__all__ = ["export_responses"]


def export_responses(cache: ResponseCache, path: Path, overwrite: bool = False) -> int:
    """Write every response as a line of JSON, ordered by key. Returns how many were written.

    `path` appears whole or not at all. Raises InputError if it exists (unless `overwrite`) or
    cannot be written.
    """
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists; remove it, or give --overwrite")
    target = PendingFile(path)
    count = 0
    try:
        for row in cache.rows():
            target.file.write((json.dumps(row, allow_nan=False) + "\n").encode())
            count += 1
        target.commit()
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({first_line(error)})") from error
    finally:
        target.discard()
    return count
