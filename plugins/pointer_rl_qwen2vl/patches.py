"""Images cut into patches, with the official processor's floats bit for bit, but faster.

The official processor converts an image through float64 and float32, one channel after the other,
and copies the floats into patches. A given byte of a channel always becomes the same float. So here
an image stays bytes until it is on the model's device. There the floats are looked up in a table,
which the official processor itself fills.

Shapes: N patches, p pixels along a side of a patch, D numbers of a patch for the model.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from pointer_rl.errors import InputError
from pointer_rl.local.lru import LRUCache
from pointer_rl.types import ImageRef
from pointer_rl_qwen2vl.checkpoint import Checkpoint
from pointer_rl_qwen2vl.transfer import to_device

_CAPACITY_BYTES = 512 * 2**20
_THREADS = min(16, os.cpu_count() or 1)
_AHEAD = 16 * _THREADS
_AHEAD_PATCHES = 2**20
"""Most images that threads open before they are needed, and about how many patches: 600 MB."""


@dataclass(frozen=True)
class ImagePatches:
    """An image as patches. Those that the model merges are adjacent."""

    values: NDArray[np.uint8]
    """[N, 3, p · p] bytes by channel"""
    grid: tuple[int, int, int]
    """Numbers of patches: 1 in time, then in height and in width."""
    tokens: int
    """Number of <|image_pad|> tokens, one per merged patch."""


class PatchCache:
    """Opens images and cuts them into patches. Keeps those of the most recent images."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._processor = checkpoint.image_processor
        device = checkpoint.model.device
        self._table = PixelTable(self._processor, checkpoint.model.dtype, device)
        self._cache: LRUCache[str, ImagePatches] = LRUCache(
            _CAPACITY_BYTES, lambda patches: patches.values.nbytes
        )
        # Several threads open images ahead of a model on another device. On a CPU, they would take
        # time from the model.
        self._threads: ThreadPoolExecutor | None = None
        if device.type != "cpu":
            self._threads = ThreadPoolExecutor(_THREADS, "images")

    def get(self, key: str, image: ImageRef) -> ImagePatches:
        """The patches of an image with this key. Raises InputError if it has none."""
        [patches] = self.find([(key, image)])
        if isinstance(patches, str):
            raise InputError(patches)
        return patches

    def find(
        self, images: Iterable[tuple[str, ImageRef]]
    ) -> Generator[ImagePatches | str, None, None]:
        """The patches of images with these keys, in order. Where there are none, the reason.

        When the generator is closed, no more images are opened.
        """
        if self._threads is None:
            for key, image in images:
                yield self._keep(key, self._cache.get(key) or _open(key, image, self._processor))
            return
        opening: deque[tuple[str, Future[ImagePatches | str]]] = deque()
        ahead = _AHEAD
        try:
            for key, image in images:
                opening.append((key, self._begin(key, image, self._threads)))
                while len(opening) > ahead:
                    patches = self._finish(*opening.popleft())
                    if isinstance(patches, ImagePatches):
                        ahead = min(_AHEAD, max(1, _AHEAD_PATCHES // len(patches.values)))
                    yield patches
            while opening:
                yield self._finish(*opening.popleft())
        finally:
            for _, future in opening:
                future.cancel()

    def pixels(self, images: Sequence[ImagePatches]) -> Tensor:
        """The model's input [N, D] for images, one after the other, on its device."""
        return self._table.pixels([each.values for each in images])

    def _begin(
        self, key: str, image: ImageRef, threads: ThreadPoolExecutor
    ) -> Future[ImagePatches | str]:
        patches = self._cache.get(key)
        if patches is None:
            return threads.submit(_open, key, image, self._processor)
        known: Future[ImagePatches | str] = Future()
        known.set_result(patches)
        return known

    def _finish(self, key: str, future: Future[ImagePatches | str]) -> ImagePatches | str:
        return self._keep(key, future.result())

    def _keep(self, key: str, patches: ImagePatches | str) -> ImagePatches | str:
        if isinstance(patches, ImagePatches):
            self._cache.put({key: patches})
        return patches


def _open(key: str, image: ImageRef, processor: Any) -> ImagePatches | str:
    try:
        opened = image.open()
    except InputError as error:
        return str(error)
    try:
        return cut(opened, processor)
    except ValueError as error:  # The aspect ratio is beyond 200.
        return f"image {key[:12]}, {opened.size} pixels: {error}"


def cut(image: Image.Image, processor: Any) -> ImagePatches:
    """Resize an RGB image as a `Qwen2VLImageProcessorPil` does, and cut it into patches.

    Raises ValueError for an aspect ratio beyond 200.
    """
    patch, merge = processor.patch_size, processor.merge_size
    if processor.do_resize:
        height, width = smart_resize(
            image.height,
            image.width,
            factor=patch * merge,
            min_pixels=processor.size["shortest_edge"],
            max_pixels=processor.size["longest_edge"],
        )
        if image.size != (width, height):
            image = image.resize((width, height), resample=processor.resample)
    values = _cut(np.asarray(image), patch, merge)
    grid = (1, image.height // patch, image.width // patch)
    return ImagePatches(values, grid, len(values) // merge**2)


def _cut(pixels: NDArray[np.uint8], patch: int, merge: int) -> NDArray[np.uint8]:
    """[height, width, 3] → [N, 3, p · p]"""
    height, width, _ = pixels.shape
    parts = pixels.reshape(
        *(height // (patch * merge), merge, patch, width // (patch * merge), merge, patch, 3)
    )
    return parts.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3, patch * patch)


class PixelTable:
    """For each channel, the float that the official processor makes of each byte."""

    def __init__(self, processor: Any, dtype: torch.dtype, device: torch.device) -> None:
        patch, merge = processor.patch_size, processor.merge_size
        self._frames: int = processor.temporal_patch_size
        side = patch * merge
        columns = side * -(-256 // side**2)  # Large enough to hold every byte.
        every_byte = (np.arange(side * columns) % 256).astype(np.uint8).reshape(side, columns)
        image = np.stack([every_byte] * 3, axis=-1)
        floats = processor(images=[Image.fromarray(image)], do_resize=False)["pixel_values"]
        floats = np.asarray(floats).reshape(-1, 3, self._frames, patch**2)[:, :, 0]
        table = np.zeros((3, 256), dtype=np.float32)
        for channel, values in enumerate(_cut(image, patch, merge).swapaxes(0, 1)):
            table[channel, values] = floats[:, channel]
        self._table = torch.from_numpy(table).to(device, dtype)

    def pixels(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Floats [N, D] of images of [N, 3, p · p] bytes each, one after the other."""
        values = to_device(np.concatenate(images), self._table.device)
        count, channels, size = values.shape
        # An image is a video of equal frames.
        pixels = self._table.new_empty(count, channels, self._frames, size)
        for channel, floats in enumerate(self._table):
            found = floats.index_select(0, values[:, channel].int().flatten())
            pixels[:, channel] = found.view(count, 1, size)
        return pixels.view(count, -1)
