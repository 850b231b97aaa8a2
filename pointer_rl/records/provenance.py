"""Compare the `_meta` of two files, or of a run and a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


def differences(
    first: Mapping[str, Any], second: Mapping[str, Any], inside: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, first value, second value) of each difference; None for a missing value."""
    for key in dict.fromkeys([*first, *second]):
        one, other = first.get(key), second.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from differences(one, other, f"{inside}{key}.")
        elif json.dumps(one) != json.dumps(other):  # where 1, 1.0 and true are three values
            yield f"{inside}{key}", one, other
