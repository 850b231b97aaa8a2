"""Vision features. Each image of a call goes through the vision tower once.

Features are cached within one call only: their last digits depend on the images that were encoded
together, and responses must not depend on earlier calls.

Shapes: N tokens of an image, H hidden size of the language model.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

from torch import Tensor

from pointer_rl.errors import InputError
from pointer_rl.local.lru import LRUCache
from pointer_rl.local.memory import run_in_halves
from pointer_rl.types import ImageRef
from pointer_rl_qwen2vl.checkpoint import Checkpoint
from pointer_rl_qwen2vl.patches import ImagePatches, PatchCache
from pointer_rl_qwen2vl.tower import VisionTower

_BLOCKS = {"cpu": (64, 4096)}
_BLOCKS_OTHERWISE = (256, 65536)
"""Most images, and most patches, in one pass of the vision tower, by device."""

_Block = list[tuple[int, ImagePatches | str]]
"""Indices of images with their patches, or with the reason why there are none."""


@dataclass(frozen=True)
class Features:
    """The vision tower's output for one image."""

    embeds: Tensor
    """[N, H], in the model's dtype, on its device"""
    deepstack: tuple[Tensor, ...]
    """[N, H] each, which Qwen3-VL adds after its first layers; empty for other models."""
    grid: tuple[int, int]
    """Number of tokens in height and width; N is their product."""

    @property
    def bytes(self) -> int:
        """Memory of the features in bytes."""
        return self.embeds.nbytes * (1 + len(self.deepstack))


class FeatureStore:
    """Features by an image's index in the call. Encodes missing ones."""

    def __init__(self, checkpoint: Checkpoint, patches: PatchCache, capacity_bytes: int) -> None:
        self._dtype = checkpoint.model.dtype
        self._merge = checkpoint.image_processor.merge_size
        self._patches = patches
        self._tower = VisionTower(checkpoint.model)
        device = checkpoint.model.device.type
        self._block_images, self._block_patches = _BLOCKS.get(device, _BLOCKS_OTHERWISE)
        self._images: Sequence[tuple[str, ImageRef]] = ()
        self._blocks: Generator[_Block, None, None] = self._open_blocks(())
        self._num_encoded = 0
        """The first images of the call, up to this number, have been encoded."""
        self._cache: LRUCache[int, Features | str] = LRUCache(
            capacity_bytes, lambda each: 0 if isinstance(each, str) else each.bytes
        )

    def begin(self, images: Sequence[tuple[str, ImageRef]]) -> None:
        """Start a call with its distinct images and their keys, in the order of first use."""
        self._images = images
        self._blocks = self._open_blocks(images)

    def end(self) -> None:
        """End the call, completed or not: forget its features and open no more images."""
        self._blocks.close()
        self._cache.clear()
        self._num_encoded = 0

    def get(self, index: int) -> Features:
        """The features of an image by its index in the call. Raises InputError if it has none."""
        while index >= self._num_encoded:
            block = next(self._blocks)
            self._num_encoded += len(block)
            self._encode_into_cache(block)
        found = self._cache.get(index)
        if found is None:  # Its features were dropped from the cache.
            [patches] = self._patches.find([self._images[index]])
            self._encode_into_cache([(index, patches)])
            found = self._cache.get(index)
            assert found is not None
        if isinstance(found, str):
            raise InputError(found)
        return found

    def _open_blocks(self, images: Sequence[tuple[str, ImageRef]]) -> Generator[_Block, None, None]:
        """Blocks of images that are encoded together. They depend on the images' sizes only."""
        block: _Block = []
        size = 0
        with closing(self._patches.find(images)) as found:
            for index, patches in enumerate(found):
                more = 0 if isinstance(patches, str) else len(patches.values)
                full = len(block) == self._block_images or size + more > self._block_patches
                if block and full:
                    yield block
                    block, size = [], 0
                block.append((index, patches))
                size += more
        if block:
            yield block

    def _encode_into_cache(self, block: _Block) -> None:
        ready = [(index, each) for index, each in block if isinstance(each, ImagePatches)]
        encoded = self._encode_within_memory(ready) if ready else {}
        # The first images of a block are needed first, so they are dropped last.
        self._cache.put(
            {
                index: each if isinstance(each, str) else encoded[index]
                for index, each in reversed(block)
            }
        )

    def _encode_within_memory(
        self, images: Sequence[tuple[int, ImagePatches]]
    ) -> dict[int, Features | str]:
        def encode(part: Sequence[tuple[int, ImagePatches]]) -> Sequence[Features | str]:
            return self._encode([patches for _, patches in part])

        def halve_blocks(part: Sequence[tuple[int, ImagePatches]]) -> None:
            patches = sum(len(each.values) for _, each in part)
            self._block_patches = max(1, min(self._block_patches, patches) // 2)

        def fail(image: tuple[int, ImagePatches], message: str) -> str:
            return (
                f"out of memory on an image ({image[1].tokens} tokens); use a smaller max_pixels"
                f" ({message})"
            )

        results = run_in_halves(images, encode, on_split=halve_blocks, on_failure=fail)
        return dict(zip((index for index, _ in images), results, strict=True))

    def _encode(self, images: Sequence[ImagePatches]) -> list[Features]:
        grids = [each.grid for each in images]
        encoded = self._tower.encode(self._patches.pixels(images), grids)
        # Without the copy, each view would keep the features of the whole block in memory.
        return [
            Features(
                embeds=embeds.to(self._dtype).clone(),
                deepstack=tuple(layer.clone() for layer in layers),
                grid=(height // self._merge, width // self._merge),
            )
            for (embeds, layers), (_, height, width) in zip(encoded, grids, strict=True)
        ]
