"""Lookups by key that session/ and generate/ still use; plain dicts and lists replace them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from pointer_rl.types import Example

__all__ = ["KeyIndex", "select", "values"]


class KeyIndex:
    """The rows of each key."""

    def __init__(self, keys: Iterable[str], key_of: Callable[[int], str]) -> None:
        self._rows: dict[str, list[int]] = {}
        for row, key in enumerate(keys):
            self._rows.setdefault(key, []).append(row)

    def rows(self, key: str) -> list[int]:
        """The rows that have this key, ascending."""
        return self._rows.get(key, [])

    def repeated(self) -> tuple[int, int] | None:
        """Two rows that have the same key, the earlier first. None if all keys differ."""
        return next(((rows[0], rows[1]) for rows in self._rows.values() if len(rows) > 1), None)


def values(examples: Sequence[Example], field: str) -> Iterator[Any]:
    """The field of each example."""
    return (getattr(each, field) for each in examples)


def select(examples: Sequence[Example], rows: Iterable[int]) -> Sequence[Example]:
    """The examples at these rows, in this order."""
    return [examples[row] for row in rows]
