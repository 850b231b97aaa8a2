"""Growing columns of numbers, and of lists of rows, that take no Python object per value."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int32]
Indices = npt.NDArray[np.int64]
Scalar = TypeVar("Scalar", bound=np.generic)


class Column(Generic[Scalar]):
    """A column of numbers that can be appended to."""

    def __init__(self, code: str, dtype: type[Scalar]) -> None:
        self._values: array[Any] = array(code)
        self._dtype = dtype
        assert self._values.itemsize == np.dtype(dtype).itemsize
        self.append = self._values.append
        self.extend = self._values.extend

    def __len__(self) -> int:
        return len(self._values)

    def array(self) -> npt.NDArray[Scalar]:
        """The values, without a copy. Nothing can be appended afterwards."""
        return np.frombuffer(self._values, dtype=self._dtype)


class RowLists(Sequence[Rows | None]):
    """For each query a list of rows or None, all stored in one array."""

    def __init__(self, rows: Rows, offsets: Indices, known: npt.NDArray[np.bool_]) -> None:
        self._rows = rows
        self._offsets = offsets
        """[Q+1]: the rows of query i are offsets[i]:offsets[i+1]."""
        self._known = known
        """[Q] false if the query has None."""

    def __len__(self) -> int:
        return len(self._known)

    @overload
    def __getitem__(self, index: int) -> Rows | None: ...
    @overload
    def __getitem__(self, index: slice) -> RowLists: ...
    def __getitem__(self, index: int | slice) -> Rows | RowLists | None:
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        if not self._known[index]:  # raises IndexError
            return None
        index %= len(self)
        return self._rows[self._offsets[index] : self._offsets[index + 1]]

    def select(self, queries: Indices) -> RowLists:
        """The lists of the queries at these indices, in this order."""
        offsets, members = gather(self._offsets, queries)
        return RowLists(self._rows[members], offsets, self._known[queries])


class RowListsColumn:
    """`RowLists` that can be appended to."""

    def __init__(self) -> None:
        self._rows = Column("i", np.int32)
        self._offsets = Column("q", np.int64)
        self._offsets.append(0)
        self._known = Column("b", np.bool_)

    def append(self, rows: Sequence[int] | None) -> None:
        """Add the list of the next query."""
        self._known.append(rows is not None)
        self._rows.extend(rows or ())
        self._offsets.append(len(self._rows))

    def lists(self) -> RowLists:
        """All lists. Nothing can be appended afterwards."""
        return RowLists(self._rows.array(), self._offsets.array(), self._known.array())


def gather(offsets: Indices, groups: Indices) -> tuple[Indices, Indices]:
    """Choose G groups of adjacent members, where group i is offsets[i]:offsets[i+1].

    Returns the offsets [G+1] of the chosen groups and the indices of their members.
    """
    starts, ends = offsets[:-1][groups], offsets[1:][groups]
    sizes = ends - starts
    chosen = np.concatenate([[0], sizes.cumsum()]).astype(np.int64)
    members = np.arange(chosen[-1]) + np.repeat(starts - chosen[:-1], sizes)
    return chosen, members
