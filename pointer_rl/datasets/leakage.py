"""Which pool rows a query may be shown: never one with its own image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from pointer_rl.datasets.examples import KeyIndex, values
from pointer_rl.errors import InputError
from pointer_rl.types import Example

__all__ = ["AllowedRows", "image_content"]


class AllowedRows:
    """The mask of a query: never an example with the query's image, thus never the query itself.

    Images are the same when their image_id is or, where the query or any example of the pool has
    none, when their content is. (The examples' ids say nothing here: a query file and a pool file
    may both count from 0.)
    """

    def __init__(self, pool: Sequence[Example]) -> None:
        self._pool = pool
        self._size = len(pool)
        self._have_ids = all(image_id is not None for image_id in values(pool, "image_id"))

    @cached_property
    def _by_id(self) -> KeyIndex:
        marks = map(str, values(self._pool, "image_id"))
        return KeyIndex(marks, lambda row: str(self._pool[row].image_id))

    @cached_property
    def _by_content(self) -> KeyIndex:
        marks = map(image_content, self._pool)
        return KeyIndex(marks, lambda row: image_content(self._pool[row]))

    def excluded(self, query: Example) -> tuple[int, ...]:
        """The rows that a query may not choose, ascending."""
        return tuple(self._blocked(query))

    def _blocked(self, query: Example) -> list[int]:
        if self._have_ids and query.image_id is not None:
            return self._by_id.rows(str(query.image_id))
        return self._by_content.rows(image_content(query))

    def check(self, queries: Sequence[Example], shots: int) -> None:
        """Raise InputError for the first query that may choose fewer rows than `shots`."""
        if shots > self._size:
            raise InputError(
                f"{shots} shots need a pool of at least as many examples; this one has {self._size}"
            )
        index = self._by_id if self._have_ids else self._by_content
        if self._size - index.most >= shots:
            return
        for query in queries:
            left = self._size - len(self._blocked(query))
            if left < shots:
                raise InputError(
                    f"query {query.id} may choose {left} of the pool's {self._size} examples (the "
                    f"others have its image), fewer than {shots} shots: enlarge the pool"
                )

    def mask(self, queries: Sequence[Example]) -> Tensor:
        """[B, K] bool."""
        allowed = torch.ones(len(queries), self._size, dtype=torch.bool)
        for index, query in enumerate(queries):
            allowed[index, self._blocked(query)] = False
        return allowed


def image_content(example: Example) -> str:
    """A key of the example's image, equal for equal content."""
    try:
        return example.image.key
    except InputError:
        # Equal to no image that can be read: the trials of this example fail, and say why.
        return f"unreadable {example.row}"
