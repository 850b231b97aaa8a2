"""Which pool rows may be shown to a query: none with its own image, none of another episode."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from pointer_rl.datasets.identity import image_content
from pointer_rl.errors import InputError
from pointer_rl.types import Example


class AllowedRows:
    """Masks rows with a query's image, and so the query itself, and rows of other episodes.

    Images are compared by image_id or, if the query or any example of the pool has none, by
    content. (Ids of examples are not compared: a query file and a pool file may both count from 0.)
    """

    def __init__(self, pool: Sequence[Example]) -> None:
        self._pool = pool
        self._have_ids = all(each.image_id is not None for each in pool)

    @cached_property
    def _by_id(self) -> dict[str, list[int]]:
        return _rows_by_key([str(each.image_id) for each in self._pool])

    @cached_property
    def _by_content(self) -> dict[str, list[int]]:
        return _rows_by_key([image_content(each) for each in self._pool])

    @cached_property
    def _by_episode(self) -> dict[str, list[int]]:
        return _rows_by_key([each.episode or "" for each in self._pool])

    def excluded(self, query: Example) -> tuple[int, ...]:
        """The rows that may not be shown to the query, ascending."""
        rows = self.with_image(query)
        if query.episode is None:
            return rows
        allowed = set(self._by_episode.get(query.episode, ())).difference(rows)
        return tuple(row for row in range(len(self._pool)) if row not in allowed)

    def with_image(self, query: Example) -> tuple[int, ...]:
        """The rows with the query's image, ascending."""
        if self._have_ids and query.image_id is not None:
            return tuple(self._by_id.get(str(query.image_id), ()))
        return tuple(self._by_content.get(image_content(query), ()))

    def check(self, queries: Sequence[Example], shots: int) -> None:
        """Raise InputError for the first query with fewer than `shots` allowed rows."""
        size = len(self._pool)
        if shots > size:
            raise InputError(
                f"{shots} shots need a pool of at least as many examples; this one has {size}"
            )
        alike = not self._have_ids or all(query.image_id is not None for query in queries)
        if alike and all(query.episode is None for query in queries):
            # All are compared alike. No query's image is hashed if no image could exclude so many.
            by_key = self._by_id if self._have_ids else self._by_content
            if size - max(map(len, by_key.values()), default=0) >= shots:
                return
        for query in queries:
            allowed = size - len(self.excluded(query))
            if allowed < shots:
                raise InputError(
                    f"query {query.id} may choose {allowed} of the pool's {size} examples (the "
                    "others have its image or are of other episodes), fewer than "
                    f"{shots} shots: enlarge the pool"
                )

    def mask(self, queries: Sequence[Example]) -> Tensor:
        """[B, K] bool: True where a row may be shown to a query."""
        allowed = torch.ones(len(queries), len(self._pool), dtype=torch.bool)
        for index, query in enumerate(queries):
            allowed[index, list(self.excluded(query))] = False
        return allowed


def _rows_by_key(keys: Sequence[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    return rows
