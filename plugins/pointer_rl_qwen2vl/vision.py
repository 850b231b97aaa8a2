"""Vision features. Each image of a call goes through the vision tower once.

Features are cached within one call only: their last digits depend on the images that were encoded
together, and responses must not depend on earlier calls.

Shapes: N tokens of an image, H hidden size of the language model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch
from torch import Tensor

from pointer_rl.errors import InputError
from pointer_rl.local.lru import LRUCache
from pointer_rl.local.memory import run_in_halves
from pointer_rl.types import ImageRef
from pointer_rl_qwen2vl.checkpoint import Checkpoint
from pointer_rl_qwen2vl.patches import ImagePatches, PatchCache

_BLOCK_IMAGES = 64
_BLOCK_PATCHES = {"cpu": 4096}
_BLOCK_PATCHES_OTHERWISE = 32768
"""Most images, and most patches by device, in one pass of the vision tower."""

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

    def __init__(
        self, checkpoint: Checkpoint, patches: PatchCache, capacity_bytes: int, *, ahead: bool
    ) -> None:
        """With `ahead`, another thread opens the next images while some are being encoded.

        This pays off if the vision tower runs on another device. On the CPU the two would wait for
        each other.
        """
        self._model = checkpoint.model
        self._merge = checkpoint.image_processor.merge_size
        self._patches = patches
        device = checkpoint.model.device.type
        self._block_patches = _BLOCK_PATCHES.get(device, _BLOCK_PATCHES_OTHERWISE)
        self._opener = ThreadPoolExecutor(1, thread_name_prefix="images") if ahead else None
        self._images: Sequence[tuple[str, ImageRef]] = ()
        self._blocks: Iterator[_Block] = iter(())
        self._opening: Future[_Block | None] | None = None
        self._num_encoded = 0
        """The first images of the call, up to this number, have been encoded."""
        self._cache: LRUCache[int, Features | str] = LRUCache(
            capacity_bytes, lambda each: 0 if isinstance(each, str) else each.bytes
        )

    def begin(self, images: Sequence[tuple[str, ImageRef]]) -> None:
        """Start a call with its distinct images and their keys, in the order of first use."""
        self._images = images
        self._blocks = self._open_blocks(images)
        self._open_ahead()

    def end(self) -> None:
        """End the call, completed or not: forget its features and open no more images."""
        self._wait()
        self._opening = None
        self._cache.clear()
        self._num_encoded = 0

    def get(self, index: int) -> Features:
        """The features of an image by its index in the call. Raises InputError if it has none."""
        while index >= self._num_encoded:
            block = next(self._blocks) if self._opening is None else self._opening.result()
            assert block is not None, "every image belongs to a block"
            self._open_ahead()
            self._num_encoded += len(block)
            self._encode_into_cache(block)
        found = self._cache.get(index)
        if found is None:  # Its features were dropped from the cache.
            self._wait()
            self._encode_into_cache([(index, self._open(self._images[index]))])
            found = self._cache.get(index)
            assert found is not None
        if isinstance(found, str):
            raise InputError(found)
        return found

    def _open_ahead(self) -> None:
        if self._opener is not None:
            self._opening = self._opener.submit(next, self._blocks, None)

    def _wait(self) -> None:
        """Wait for the other thread, since only one thread may open images at a time."""
        if self._opening is not None:
            wait([self._opening])

    def _open_blocks(self, images: Sequence[tuple[str, ImageRef]]) -> Iterator[_Block]:
        """Blocks of images that are encoded together. They depend on the images' sizes only."""
        block: _Block = []
        size = 0
        for index, image in enumerate(images):
            patches = self._open(image)
            more = 0 if isinstance(patches, str) else len(patches.pixels)
            if block and (len(block) == _BLOCK_IMAGES or size + more > self._block_patches):
                yield block
                block, size = [], 0
            block.append((index, patches))
            size += more
        if block:
            yield block

    def _open(self, image: tuple[str, ImageRef]) -> ImagePatches | str:
        try:
            return self._patches.get(*image)
        except InputError as error:
            return str(error)

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
            patches = sum(len(each.pixels) for _, each in part)
            self._block_patches = max(1, min(self._block_patches, patches) // 2)

        def fail(image: tuple[int, ImagePatches], message: str) -> str:
            return (
                f"out of memory on an image ({image[1].tokens} tokens); use a smaller max_pixels"
                f" ({message})"
            )

        results = run_in_halves(images, encode, on_split=halve_blocks, on_failure=fail)
        return dict(zip((index for index, _ in images), results, strict=True))

    @torch.inference_mode()
    def _encode(self, images: Sequence[ImagePatches]) -> list[Features]:
        device = self._model.device
        pixels = torch.cat([each.pixels for each in images]).to(device)
        grids = torch.tensor([each.grid for each in images], device=device)
        output = self._model.get_image_features(pixels, grids, return_dict=True)
        layers = getattr(output, "deepstack_features", None) or ()
        # Without the copy, each view would keep the features of the whole block in memory.
        return [
            Features(
                embeds=output.pooler_output[place].to(self._model.dtype).clone(),
                deepstack=tuple(layer[place].clone() for layer in layers),
                grid=(patches.grid[1] // self._merge, patches.grid[2] // self._merge),
            )
            for place, patches in enumerate(images)
        ]
