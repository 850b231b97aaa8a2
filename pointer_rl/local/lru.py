"""A cache that is bounded by the memory of its values."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class LRUCache(Generic[K, V]):
    """Keeps values up to a number of bytes and drops the least recently used first.

    Not thread-safe.
    """

    def __init__(self, capacity: int, size: Callable[[V], int]) -> None:
        """`size` returns the bytes that a value takes."""
        self._capacity = capacity
        self._size = size
        self._values: OrderedDict[K, V] = OrderedDict()
        self._bytes = 0

    def get(self, key: K) -> V | None:
        """The value, which counts as a use of it. None if it is not cached."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key]

    def put(self, values: Mapping[K, V]) -> None:
        """Add values, the last one as the most recently used.

        They are kept until the next call even if they exceed the capacity.
        """
        for key, value in values.items():
            if key in self._values:
                self._bytes -= self._size(self._values.pop(key))
            self._values[key] = value
            self._bytes += self._size(value)
        while self._bytes > self._capacity and len(self._values) > len(values):
            _, oldest = self._values.popitem(last=False)
            self._bytes -= self._size(oldest)

    def clear(self) -> None:
        """Drop everything."""
        self._values.clear()
        self._bytes = 0
