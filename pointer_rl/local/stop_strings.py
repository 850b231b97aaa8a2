"""Stop strings: where a generated text ends."""

from __future__ import annotations

from collections.abc import Sequence


def find_stop(text: str, stop: Sequence[str]) -> int | None:
    """The position of the first stop string in the text, or None if it contains none."""
    return min((place for each in stop if (place := text.find(each)) >= 0), default=None)
