"""Images cut into patches, as the official processor cuts them; those met last are kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pointer_rl.errors import InputError
from pointer_rl.types import ImageRef
from pointer_rl_qwen2vl.checkpoint import Checkpoint
from pointer_rl_qwen2vl.cutting import PatchCutter

__all__ = ["ImagePatches", "PatchStore"]

_CAPACITY_BYTES = 512 * 2**20


@dataclass(frozen=True)
class ImagePatches:
    """One preprocessed image."""

    pixels: Tensor
    """[patches, D], in the model's dtype, on the CPU"""
    grid: tuple[int, int, int]
    """Patches in time, height and width."""
    tokens: int
    """How many <|image_pad|> stand for it: patches after merging."""


class PatchStore:
    """Opens images and cuts them into patches, or finds them cut already."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._cutter = PatchCutter(checkpoint.image_processor)
        self._merged = checkpoint.image_processor.merge_size**2
        self._dtype = checkpoint.model.dtype
        self._kept: OrderedDict[str, ImagePatches] = OrderedDict()
        self._bytes = 0

    def find(self, images: Sequence[tuple[str, ImageRef]]) -> Iterator[ImagePatches | str]:
        """The patches of each (key, image), or why it has none, in the order given.

        Opens them as they are asked for.
        """
        for key, image in images:
            found = self._kept.get(key) or self._open(key, image)
            if isinstance(found, ImagePatches):
                self._keep(key, found)
            yield found

    def _keep(self, key: str, patches: ImagePatches) -> None:
        if key not in self._kept:
            self._kept[key] = patches
            self._bytes += patches.pixels.nbytes
        self._kept.move_to_end(key)
        while self._bytes > _CAPACITY_BYTES:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.pixels.nbytes

    def _open(self, key: str, image: ImageRef) -> ImagePatches | str:
        try:
            picture = image.open()
        except InputError as error:
            return str(error)
        try:
            pixels, grid = self._cutter.cut(picture)
        except ValueError as error:  # an aspect ratio beyond 200
            return f"image {key[:12]}, {picture.size} pixels: {error}"
        return ImagePatches(
            torch.from_numpy(pixels).to(self._dtype), grid, len(pixels) // self._merged
        )
