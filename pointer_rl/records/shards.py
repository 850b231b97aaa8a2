"""Split the queries of a run into windows, and its windows into shards for several machines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pointer_rl.errors import InputError

_UNSTATED = 128
"""Queries in a window of a file that does not say so."""
_SHARD = re.compile(r"([1-9][0-9]{0,8})/([1-9][0-9]{0,8})")


def windows(queries: range, size: int) -> Iterator[range]:
    """These indices of queries, `size` at a time."""
    for start in range(0, len(queries), size):
        yield queries[start : start + size]


def window_of(meta: Mapping[str, Any] | None) -> int:
    """The size of a run's windows, as the file's `_meta` states it."""
    size = (meta or {}).get("window")
    return size if isinstance(size, int) and size > 0 else _UNSTATED


@dataclass(frozen=True, order=True)
class Shard:
    """Every `count`-th window of a run, starting with the `number`-th; 1 is the first.

    A shard has whole windows, so that the same queries share a batch with and without shards.
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
        """The shard that a file is, as its `_meta` states it; None if it is not a shard."""
        text = (meta or {}).get("shard")
        try:
            return cls.parse(text) if isinstance(text, str) else None
        except InputError:
            return None

    def rows(self, queries: int, size: int) -> list[int]:
        """The indices of the shard's queries, of `queries` in windows of `size`."""
        mine = list(windows(range(queries), size))[self.number - 1 :: self.count]
        return [index for window in mine for index in window]

    def size(self, queries: int, size: int) -> int:
        """The number of the shard's queries. A file may claim any number of all queries."""
        whole, rest = divmod(queries, size)
        own, last = divmod(whole - self.number + 1, self.count)
        return max(0, own + bool(last)) * size + (0 if last else rest)
