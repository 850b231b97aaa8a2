"""Stored responses as lines of JSON, for other programs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pointer_rl.files import AtomicFile, check_writable
from pointer_rl.session.store import Entry, ResponseStore

__all__ = ["export_responses"]


def export_responses(store: ResponseStore, path: Path, overwrite: bool = False) -> int:
    """Write all that is not damaged, a response a line, by key; returns how many.

    At `path` there is all of it or what was there. Raises InputError where `path` exists (unless
    `overwrite`) or cannot be written.
    """
    check_writable(path, overwrite=overwrite)
    count = 0
    with AtomicFile(path) as file:
        for entry in store.entries():
            file.write((json.dumps(_describe(entry), allow_nan=False) + "\n").encode())
            count += 1
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
