"""Images cut into patches, as the official processor cuts them; those met last are kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL.Image import Image
from torch import Tensor

from pointer_rl.errors import InputError
from pointer_rl.types import ImageRef
from pointer_rl_qwen2vl.checkpoint import Checkpoint

__all__ = ["ImagePatches", "PatchStore"]

_BLOCK_IMAGES = 16
_BLOCK_PIXELS = 4_000_000
"""Images that are preprocessed together: fewer calls, and not many large ones in memory."""
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
        self._processor = checkpoint.image_processor
        self._dtype = checkpoint.model.dtype
        self._kept: OrderedDict[str, ImagePatches] = OrderedDict()
        self._bytes = 0

    def find(self, images: Sequence[tuple[str, ImageRef]]) -> Iterator[ImagePatches | str]:
        """The patches of each (key, image), or why it has none, in the order given.

        Opens them as they are asked for, a block ahead.
        """
        ahead: dict[str, ImagePatches | str] = {}
        for place, (key, _) in enumerate(images):
            if key in self._kept:
                self._kept.move_to_end(key)
                yield self._kept[key]
                continue
            if key not in ahead:
                ahead = self._open_block(images[place:])
            patches = ahead[key]
            if isinstance(patches, ImagePatches):
                self._keep(key, patches)
            yield patches

    def _keep(self, key: str, patches: ImagePatches) -> None:
        self._kept[key] = patches
        self._bytes += patches.pixels.nbytes
        while self._bytes > _CAPACITY_BYTES:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.pixels.nbytes

    def _open_block(self, images: Sequence[tuple[str, ImageRef]]) -> dict[str, ImagePatches | str]:
        """As many of the first that are not kept as make a block."""
        found: dict[str, ImagePatches | str] = {}
        block: dict[str, Image] = {}
        pixels = 0
        for key, image in images:
            if key in self._kept or key in block or key in found:
                continue
            try:
                block[key] = image.open()
            except InputError as error:
                found[key] = str(error)
                continue
            pixels += block[key].width * block[key].height
            if len(block) == _BLOCK_IMAGES or pixels >= _BLOCK_PIXELS:
                break
        return found | dict(self._cut(list(block.items())))

    def _cut(self, block: Sequence[tuple[str, Image]]) -> Iterator[tuple[str, ImagePatches | str]]:
        if not block:
            return
        try:
            features = self._processor(
                images=[picture for _, picture in block], return_tensors="pt"
            )
        except ValueError as error:  # an aspect ratio beyond 200
            if len(block) > 1:
                for each in block:
                    yield from self._cut([each])
                return
            [(key, picture)] = block
            yield key, f"image {key[:12]}, {picture.size} pixels: {error}"
            return
        grids = features["image_grid_thw"].tolist()
        sizes = [frames * height * width for frames, height, width in grids]
        pieces = features["pixel_values"].to(self._dtype).split(sizes)
        merged = self._processor.merge_size**2
        for (key, _), grid, size, piece in zip(block, grids, sizes, pieces, strict=True):
            # A copy: a view would keep the whole block in memory.
            yield key, ImagePatches(piece.clone(), tuple(grid), size // merged)
