"""Keys and values of the attention layers, for shared prefixes and for rows.

`PrefixStore` holds each token of the shared prefixes once. `RowCache` has a stretch of memory per
row, which receives a copy of the row's prefix and the row's own tokens. The model's attention
layers get it as `past_key_values`. Rows are separate: nothing computed for one is read for another.

Memory is not cleared between uses. Masked places have a weight of exactly 0, whatever finite number
they hold. After numbers that are not finite, the memory is released (`Memory.drop`).

Shapes: L layers, B rows, C places of a row, T places of the store, K key-value heads, D size of a
head. Layers are lists.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class HeadShape:
    """The size of a token's keys and values."""

    layers: int
    heads: int
    size: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, model: Any) -> HeadShape:
        """The shape of a Qwen-VL model's language model."""
        config = model.config.get_text_config()
        size = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        return cls(
            config.num_hidden_layers, config.num_key_value_heads, size, model.dtype, model.device
        )

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values."""
        return 2 * self.layers * self.heads * self.size * self.dtype.itemsize

    def zeros(self, *shape: int) -> list[Tensor]:
        """Keys of all layers, then values of all layers, [*shape, K, D] each."""
        return [
            torch.zeros((*shape, self.heads, self.size), dtype=self.dtype, device=self.device)
            for _ in range(2 * self.layers)
        ]


class RowCache:
    """Keys and values of some rows: `tensors` [B, C, K, D], all layers' keys, then their values."""

    def __init__(self, tensors: list[Tensor], places: int = 0) -> None:
        self.tensors = tensors
        self.places = places
        """Number of used places in every row. The next tokens go after them."""

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Add a layer's new keys and values [B, K, S, D], and return those of all used places.

        transformers' attention layers call this method.
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
        """A view of some of the rows."""
        return RowCache([tensor[first:last] for tensor in self.tensors], self.places)

    def keep(self, rows: Tensor) -> None:
        """Move the used places of the given rows to the first rows."""
        for tensor in self.tensors:
            # The right side is a copy, since rows move to places of other rows.
            tensor[: len(rows), : self.places] = tensor[rows, : self.places]


class FixedCache(RowCache):
    """A cache for steps of one shape: a tensor has the place of the new token.

    Attention sees all columns, the unused ones masked.
    """

    def __init__(self, tensors: list[Tensor], place: Tensor) -> None:
        """`place` [1] is the column of the new token in every row."""
        super().__init__(tensors)
        self._place = place

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Add a layer's new keys and values [B, K, 1, D], and return those of all columns."""
        keys_BCKD, values_BCKD = self.tensors[layer], self.tensors[self._layers + layer]
        keys_BCKD.index_copy_(1, self._place, keys.transpose(1, 2))
        values_BCKD.index_copy_(1, self._place, values.transpose(1, 2))
        return keys_BCKD.transpose(1, 2), values_BCKD.transpose(1, 2)


class Memory:
    """Reusable memory for keys and values. (On a CPU, clearing fresh memory takes time.)"""

    def __init__(self, shape: HeadShape, most: int) -> None:
        """`most` places are expected to be taken at most."""
        self._shape = shape
        self._most = most
        self._tensors: list[Tensor] = []

    def take(self, *places: int) -> list[Tensor]:
        """Tensors of [*places, K, D]. Tensors that were taken earlier must no longer be used.

        Their content is left over from earlier uses, or 0.
        """
        size = math.prod(places)
        have = len(self._tensors[0]) if self._tensors else 0
        if have < size:
            self._tensors.clear()
            # On other devices it soon stays where it is, for graphs that are bound to its address.
            doubled = 0 if self._shape.device.type == "cpu" else min(2 * have, self._most)
            self._tensors = self._shape.zeros(max(size, doubled))
        shape = (*places, self._shape.heads, self._shape.size)
        return [tensor[:size].view(shape) for tensor in self._tensors]

    def drop(self) -> None:
        """Release the memory."""
        self._tensors.clear()


class PrefixStore:
    """Keys and values of shared prefixes: `tensors` [T, K, D], all layers' keys, then their values.

    Place 0 is for padding and holds zeros.
    """

    NOWHERE = 0

    def __init__(self, tensors: list[Tensor]) -> None:
        self._tensors = tensors

    def write(self, cache: RowCache, rows: Tensor, columns: Tensor, places: Tensor) -> None:
        """Copy from a cache: row r, column c to place p, for each r, c, p of the three tensors."""
        for mine, theirs in zip(self._tensors, cache.tensors, strict=True):
            mine[places] = theirs[rows, columns]

    def read(self, cache: RowCache, places: Tensor) -> None:
        """Copy places [B, P] to the first P columns of a cache's rows."""
        rows, columns = places.shape
        for mine, theirs in zip(self._tensors, cache.tensors, strict=True):
            found = mine.index_select(0, places.flatten())
            theirs[:, :columns] = found.view(rows, columns, *found.shape[1:])
        cache.places = columns
