"""Windows of queries, and parts of a run for several machines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pointer_rl.errors import InputError

__all__ = ["WINDOW", "Shard", "window_of", "windows"]

WINDOW = 128
"""Queries in a window, unless the user says otherwise."""
_SHARD = re.compile(r"([1-9][0-9]{0,8})/([1-9][0-9]{0,8})")


def windows(queries: int, size: int) -> Iterator[range]:
    """The indices of so many queries, `size` at a time."""
    for start in range(0, queries, size):
        yield range(start, min(start + size, queries))


def window_of(meta: Mapping[str, Any] | None) -> int:
    """The window size of the run that wrote a file, from its `_meta`."""
    size = (meta or {}).get("window")
    return size if isinstance(size, int) and size > 0 else WINDOW


@dataclass(frozen=True, order=True)
class Shard:
    """Every `count`-th window of a run, starting with the `number`-th (from 1).

    Shards are whole windows, so that requests share the same batches with and without shards.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise InputError(f"shard {self}: write 1/{self.count} to {self.count}/{self.count}")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parse "number/count". Raises InputError for anything else."""
        found = _SHARD.fullmatch(text)
        if found is None:
            raise InputError(f"shard {text!r}: write I/N, as in 1/4")
        return cls(*map(int, found.groups()))

    @classmethod
    def of(cls, meta: Mapping[str, Any] | None) -> Shard | None:
        """The shard that a file is, from its `_meta`; None if it is none."""
        text = (meta or {}).get("shard")
        try:
            return cls.parse(text) if isinstance(text, str) else None
        except InputError:
            return None

    def rows(self, queries: int, size: int) -> list[int]:
        """The indices of the shard's queries, of so many in windows of `size`."""
        mine = list(windows(queries, size))[self.number - 1 :: self.count]
        return [index for window in mine for index in window]

    def size(self, queries: int, size: int) -> int:
        """The number of the shard's queries, of so many in windows of `size`."""
        return len(self.rows(queries, size))
