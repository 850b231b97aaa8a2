"""A dataset of a few small pictures, made with Pillow: enough to ask every kind of plugin."""

from __future__ import annotations

import io
from functools import lru_cache

from pointer_rl.datasets.images import ImageBytes
from pointer_rl.types import Dataset, Example

__all__ = ["tiny_dataset"]

_COLOURS = ("red", "green", "blue", "yellow", "black", "white")
_SIZES = ((48, 48), (72, 40), (40, 64))
"""Width and height in pixels: pictures of one batch rarely have one size."""


@lru_cache(maxsize=1)
def tiny_dataset() -> Dataset:
    """Four queries and a pool of eight: one colour, with a bar, and questions about them.

    Ten annotators answer each; a few disagree.
    """
    return Dataset(
        name="tiny",
        queries=tuple(_example("q", row, row) for row in range(4)),
        pool=tuple(_example("p", row, row + 4) for row in range(8)),
    )


def _example(split: str, row: int, number: int) -> Example:
    ground = _COLOURS[number % len(_COLOURS)]
    bar = _COLOURS[(number + 1 + number // len(_COLOURS)) % len(_COLOURS)]
    about_bar = number % 2 == 1
    answer = bar if about_bar else ground
    question = "what colour is the bar in this picture?" if about_bar else "what colour is it?"
    return Example(
        id=f"{split}{row}",
        row=row,
        image=ImageBytes(_png(ground, bar, _SIZES[number % len(_SIZES)]), f"picture {number}"),
        question=question,
        answers=(answer,) * 8 + (f"{answer} colour", "no idea"),
        question_id=number,
        image_id=number,
    )


def _png(ground: str, bar: str, size: tuple[int, int]) -> bytes:
    from PIL import Image

    picture = Image.new("RGB", size, ground)
    picture.paste(bar, (0, size[1] // 3, size[0] // 2, size[1] // 2))
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    return encoded.getvalue()
