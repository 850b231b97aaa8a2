"""Windows of queries, and parts of a run for several machines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pointer_rl.errors import InputError

__all__ = ["WINDOW", "Shard", "windows"]

WINDOW = 128
"""Queries proposed for and judged together."""


def windows(queries: int, size: int) -> Iterator[range]:
    """So many queries' indices, `size` at a time."""
    for start in range(0, queries, size):
        yield range(start, min(start + size, queries))


@dataclass(frozen=True)
class Shard:
    """One of several parts of a run: every `count`-th window, so that each has the same batches."""

    number: int
    """From 1."""
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise InputError(f"shard {self}: write 1/{self.count} to {self.count}/{self.count}")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def rows(self, queries: int, size: int) -> list[int]:
        """The indices of its queries, of so many."""
        mine = list(windows(queries, size))[self.number - 1 :: self.count]
        return [index for window in mine for index in window]
