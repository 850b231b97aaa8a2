"""Stored responses as lines of JSON, for other programs."""

from __future__ import annotations

import contextlib
import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pointer_rl.errors import InputError, first_line
from pointer_rl.session.store import Entry, ResponseStore

__all__ = ["export_responses"]


def export_responses(store: ResponseStore, path: Path, overwrite: bool = False) -> int:
    """Write all that is not damaged, a response a line, by key; returns how many.

    At `path` there is all of it or what was there. Raises InputError where `path` exists (unless
    `overwrite`) or cannot be written.
    """
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists; remove it, or give --overwrite")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            for entry in store.entries():
                file.write(json.dumps(_describe(entry), allow_nan=False) + "\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({first_line(error)})") from error
    finally:
        with contextlib.suppress(OSError):  # it may be that the folder is none
            temporary.unlink()
    return count


def _describe(entry: Entry) -> dict[str, Any]:
    """JSON has no infinity: a probability of 0 has the log-probability null."""
    response = entry.response
    return {
        "key": entry.key.hex(),
        "backend": entry.fingerprint,
        "created": entry.created,
        "text": response.text,
        "score_logprobs": [
            each if math.isfinite(each) else None for each in response.score_logprobs
        ],
        "usage": asdict(response.usage),
    }
