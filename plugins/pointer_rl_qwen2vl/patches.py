"""Images cut into patches as by the official processor, with a cache of the most recent ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pointer_rl.errors import InputError
from pointer_rl.local.lru import LRUCache
from pointer_rl.types import ImageRef
from pointer_rl_qwen2vl.checkpoint import Checkpoint
from pointer_rl_qwen2vl.cutting import PatchCutter

_CAPACITY_BYTES = 512 * 2**20


@dataclass(frozen=True)
class ImagePatches:
    """A preprocessed image."""

    pixels: Tensor
    """[patches, D], in the model's dtype, on the CPU"""
    grid: tuple[int, int, int]
    """Number of patches in time, height and width."""
    tokens: int
    """Number of <|image_pad|> tokens, one per merged patch."""


class PatchCache:
    """Opens images and cuts them into patches, unless it has cut them before."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._cutter = PatchCutter(checkpoint.image_processor)
        self._merged = checkpoint.image_processor.merge_size**2
        self._dtype = checkpoint.model.dtype
        self._cache: LRUCache[str, ImagePatches] = LRUCache(
            _CAPACITY_BYTES, lambda patches: patches.pixels.nbytes
        )

    def find(self, images: Sequence[tuple[str, ImageRef]]) -> Iterator[ImagePatches | str]:
        """The patches of each (key, image), or why it has none, in the order given.

        Lazy: an image is opened when its patches are read.
        """
        for key, image in images:
            found: ImagePatches | str | None = self._cache.get(key)
            if found is None:
                found = self._open(key, image)
                if isinstance(found, ImagePatches):
                    self._cache.put({key: found})
            yield found

    def _open(self, key: str, image: ImageRef) -> ImagePatches | str:
        try:
            opened = image.open()
        except InputError as error:
            return str(error)
        try:
            pixels, grid = self._cutter.cut(opened)
        except ValueError as error:  # The aspect ratio is beyond 200.
            return f"image {key[:12]}, {opened.size} pixels: {error}"
        return ImagePatches(
            torch.from_numpy(pixels).to(self._dtype), grid, len(pixels) // self._merged
        )
