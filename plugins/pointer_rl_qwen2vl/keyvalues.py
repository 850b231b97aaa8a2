"""Keys and values of the attention layers: of shared prefixes, and of rows that are decoded.

`PrefixStore` keeps each token of the shared prefixes once. `RowCache` has a stretch of memory for
each row, into which the row's prefix is copied and its own tokens are written; it is what the
model's attention layers are handed as `past_key_values`. Rows lie apart: nothing that is computed
for one is ever read for another.

Memory is not cleared between uses. What a mask hides gets the weight 0 exactly, whatever finite
number it is; after numbers that are not finite the memory is given up (`Memory.drop`).

Shapes: L layers, B rows, C places of a row, T places of the store, K key-value heads, D numbers a
head. Layers are lists.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["HeadShape", "Memory", "PrefixStore", "RowCache"]


@dataclass(frozen=True)
class HeadShape:
    """What a token's keys and values are."""

    layers: int
    heads: int
    size: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, model: Any) -> HeadShape:
        """Of a Qwen-VL model's language model."""
        config = model.config.get_text_config()
        size = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        return cls(
            config.num_hidden_layers, config.num_key_value_heads, size, model.dtype, model.device
        )

    @property
    def token_bytes(self) -> int:
        """Memory of one token."""
        return 2 * self.layers * self.heads * self.size * self.dtype.itemsize

    def zeros(self, *shape: int) -> list[Tensor]:
        """Keys of all layers, then values of all layers: [*shape, K, D] each."""
        return [
            torch.zeros((*shape, self.heads, self.size), dtype=self.dtype, device=self.device)
            for _ in range(2 * self.layers)
        ]


class RowCache:
    """Some rows: `tensors` [B, C, K, D], keys of all layers, then values of all layers."""

    def __init__(self, tensors: list[Tensor], places: int = 0) -> None:
        self.tensors = tensors
        self.places = places
        """That are in use, in every row: where the next tokens go."""

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """A layer's new keys and values [B, K, S, D] → those of all places in use and the new.

        What an attention layer of transformers calls.
        """
        end = self.places + keys.shape[2]
        found = []
        for tensor, new in (
            (self.tensors[layer], keys),
            (self.tensors[self._layers + layer], values),
        ):
            tensor[:, self.places : end] = new.transpose(1, 2)
            found.append(tensor[:, :end].transpose(1, 2))
        return found[0], found[1]

    @property
    def _layers(self) -> int:
        return len(self.tensors) // 2

    def rows(self, first: int, last: int) -> RowCache:
        """A part of the rows: the same memory."""
        return RowCache([tensor[first:last] for tensor in self.tensors], self.places)

    def keep(self, rows: Tensor) -> RowCache:
        """The places in use of the rows that are named, moved together at the front."""
        kept = []
        for tensor in self.tensors:
            # Gathered into new memory before it is written: rows move onto others' places.
            tensor[: len(rows), : self.places] = tensor[rows, : self.places]
            kept.append(tensor[: len(rows)])
        return RowCache(kept, self.places)


class Memory:
    """Memory for keys and values, kept for the next use: a CPU clears each fresh page."""

    def __init__(self, shape: HeadShape) -> None:
        self._shape = shape
        self._tensors: list[Tensor] = []

    def take(self, *places: int) -> list[Tensor]:
        """[*places, K, D] for each; what was taken before may be used no more.

        Holds what it held, and zeros where nothing was written yet.
        """
        size = math.prod(places)
        if not self._tensors or len(self._tensors[0]) < size:
            self._tensors.clear()
            self._tensors = self._shape.zeros(size)
        shape = (*places, self._shape.heads, self._shape.size)
        return [tensor[:size].view(shape) for tensor in self._tensors]

    def drop(self) -> None:
        """Give the memory up."""
        self._tensors.clear()


class PrefixStore:
    """Keys and values of shared prefixes: `tensors` [T, K, D], keys of all layers, then values.

    Place 0 is for padding, and is 0.
    """

    NOWHERE = 0

    def __init__(self, tensors: list[Tensor]) -> None:
        self._tensors = tensors

    def write(self, cache: RowCache, rows: Tensor, columns: Tensor, places: Tensor) -> None:
        """Copy from a cache: what lies in row r, column c goes to place p, for each of three."""
        for mine, theirs in zip(self._tensors, cache.tensors, strict=True):
            mine[places] = theirs[rows, columns]

    def read(self, cache: RowCache, places: Tensor) -> None:
        """Fill a cache's first columns: places [B, P] → columns 0 to P of its rows."""
        rows, columns = places.shape
        for mine, theirs in zip(self._tensors, cache.tensors, strict=True):
            found = mine.index_select(0, places.flatten())
            theirs[:, :columns] = found.view(rows, columns, *found.shape[1:])
        cache.places = columns
