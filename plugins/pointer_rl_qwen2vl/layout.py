"""Lay out a prompt's elements for the model: token ids, M-RoPE positions, places of images.

A text token has the same position in time, height and width, one more than the token before it. An
image's tokens share the next position in time and count rows and columns from there. The text after
an image continues from the image's longer side. The positions of a piece therefore depend on the
text before it through a single number, and a piece after a shared prefix gets the positions that it
has in the whole prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pointer_rl_qwen2vl.vision import Features


@dataclass(frozen=True)
class Layout:
    """A piece of a prompt, L tokens long."""

    token_ids: list[int]
    positions: NDArray[np.int64]
    """[3, L] positions in time, height and width."""
    images: tuple[tuple[int, Features], ...]
    """The index of each image's first token, and the image's features."""
    next_position: int
    """Position of the token after the piece."""


def lay_out(
    elements: Sequence[int], first: int, features: Callable[[int], Features], image_token_id: int
) -> Layout:
    """Lay out tokens (≥ 0) and images (< 0); the first one is at position `first`."""
    token_ids: list[int] = []
    images: list[tuple[int, Features]] = []
    parts: list[NDArray[np.int64]] = []
    position = first
    run = 0  # Number of text tokens since the last image.
    for element in elements:
        if element >= 0:
            token_ids.append(element)
            run += 1
            continue
        parts.append(_text(run) + position)
        position += run
        run = 0
        image = features(element)
        images.append((len(token_ids), image))
        rows, columns = image.grid
        token_ids += [image_token_id] * (rows * columns)
        parts.append(_grid(rows, columns) + position)
        position += max(rows, columns)
    parts.append(_text(run) + position)
    return Layout(token_ids, np.concatenate(parts, axis=1), tuple(images), position + run)


@lru_cache(maxsize=1024)
def _text(length: int) -> NDArray[np.int64]:
    return np.broadcast_to(np.arange(length), (3, length))


@lru_cache(maxsize=1024)
def _grid(rows: int, columns: int) -> NDArray[np.int64]:
    """[3, rows · columns]"""
    down, across = np.divmod(np.arange(rows * columns), columns)
    return np.stack([np.zeros_like(down), down, across])
