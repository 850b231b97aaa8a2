"""The shapes of passes, which on a GPU are rounded up to a few.

A CUDA graph is bound to its shapes, and cuDNN prepares its attention anew for each shape that it
meets. Rounding up costs some padding, and makes most shapes known ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pointer_rl_qwen2vl.language import Piece


@dataclass(frozen=True)
class Shapes:
    """How shapes are rounded up: to so many sizes between two powers of two. None: not at all."""

    rows_per_octave: int | None = None
    columns_per_octave: int | None = None
    lengths_per_octave: int | None = None

    def rows(self, number: int) -> int:
        """Number of rows to decode this many."""
        return _round_up(number, self.rows_per_octave)

    def columns(self, number: int) -> int:
        """Number of columns of keys and values for this many."""
        return _round_up(number, self.columns_per_octave)

    def length(self, number: int) -> int:
        """Number of tokens to prefill this many."""
        return _round_up(number, self.lengths_per_octave)

    def of(self, pieces: Sequence[Piece]) -> tuple[int, int]:
        """For a pass over pieces, the number of columns of their prefixes, and of the pieces."""
        length = self.length(max(piece.length for piece in pieces))
        prefix = max(len(piece.prefix) for piece in pieces)
        return self.columns(prefix + length) - length if prefix else 0, length


EXACT = Shapes()
ROUNDED = Shapes(rows_per_octave=4, columns_per_octave=8, lengths_per_octave=32)


def _round_up(number: int, sizes: int | None) -> int:
    """Round up to one of `sizes` equally spaced sizes between two powers of two."""
    if sizes is None:
        return number
    step = max(1, (1 << max(0, (number - 1).bit_length() - 1)) // sizes)
    return -(-number // step) * step
