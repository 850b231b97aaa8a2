"""A picture cut into patches: the official processor's floats, at a fraction of its time.

The processor takes a picture's bytes through float64 and float32, one channel after the other, and
copies the floats into patches. But a byte of a channel becomes the same float wherever it stands.
So the picture is cut while it is bytes, and the floats are looked up in a table, which the
processor itself has filled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

__all__ = ["PatchCutter"]


class PatchCutter:
    """Cuts as a `Qwen2VLImageProcessorPil` does."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._patch: int = processor.patch_size
        self._merge: int = processor.merge_size
        side = self._patch * self._merge
        columns = side * -(-256 // side**2)  # room for every byte
        every_byte = (np.arange(side * columns) % 256).astype(np.uint8).reshape(side, columns)
        picture = np.stack([every_byte] * 3, axis=-1)
        floats = processor(images=[Image.fromarray(picture)], do_resize=False)["pixel_values"]
        floats = floats.reshape(-1, 3, processor.temporal_patch_size, self._patch**2)[:, :, 0]
        self._floats = np.zeros((3, 256), dtype=np.float32)
        """Of each channel's bytes."""
        for channel, places in enumerate(self._cut_bytes(picture)):
            self._floats[channel, places] = floats[:, channel]

    def cut(self, picture: Image.Image) -> tuple[NDArray[np.float32], tuple[int, int, int]]:
        """An RGB picture's patches [N, D], and how many there are in time, height and width.

        Raises ValueError for an aspect ratio beyond 200.
        """
        pixels = np.asarray(self._resize(picture))
        frames = self._processor.temporal_patch_size  # a picture is a film that stands still
        channels = self._cut_bytes(pixels)
        patches = np.empty((channels.shape[1], 3, frames, self._patch**2), dtype=np.float32)
        for channel, places in enumerate(channels):
            patches[:, channel] = self._floats[channel].take(places)[:, None]
        height, width, _ = pixels.shape
        grid = (1, height // self._patch, width // self._patch)
        return patches.reshape(len(patches), -1), grid

    def _resize(self, picture: Image.Image) -> Image.Image:
        if not self._processor.do_resize:
            return picture
        height, width = smart_resize(
            picture.height,
            picture.width,
            factor=self._patch * self._merge,
            min_pixels=self._processor.size["shortest_edge"],
            max_pixels=self._processor.size["longest_edge"],
        )
        if picture.size == (width, height):
            return picture
        return picture.resize((width, height), resample=self._processor.resample)

    def _cut_bytes(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """[height, width, 3] → [3, N, patch · patch]: patches that are merged follow each other."""
        patch, merge = self._patch, self._merge
        height, width, _ = pixels.shape
        parts = pixels.reshape(
            *(height // (patch * merge), merge, patch, width // (patch * merge), merge, patch, 3)
        )
        return parts.transpose(6, 0, 3, 1, 4, 2, 5).reshape(3, -1, patch * patch)
