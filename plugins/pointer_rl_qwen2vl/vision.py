"""Vision features: each image of a window of prompts goes through the vision tower once.

Features are kept in memory up to a number of bytes, those that were used last, and no longer than
a window: images are encoded several at a time, an image's floats depend in the last digits on its
neighbours, and those must follow from the requests alone, not from what was asked before.

Shapes: N tokens an image, H hidden size of the language model.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch
from torch import Tensor

from pointer_rl.types import ImageRef
from pointer_rl_qwen2vl.checkpoint import Checkpoint
from pointer_rl_qwen2vl.patches import ImagePatches, PatchStore

__all__ = ["FeatureStore", "Features"]

_BLOCK_IMAGES = 64
_BLOCK_PATCHES = {"cpu": 4096}
_BLOCK_PATCHES_OTHERWISE = 32768
"""Images, and patches by device, that go through the vision tower together."""

_Block = list[tuple[int, ImagePatches | str]]
"""Numbers of images with what was cut from them."""


@dataclass(frozen=True)
class Features:
    """What the vision tower says of one image."""

    embeds: Tensor
    """[N, H], in the model's dtype, on its device"""
    deepstack: tuple[Tensor, ...]
    """[N, H] each: what Qwen3-VL adds after its first layers; elsewhere none."""
    grid: tuple[int, int]
    """Tokens down and across: N is their product."""

    @property
    def bytes(self) -> int:
        """Memory that they take."""
        return self.embeds.nbytes * (1 + len(self.deepstack))


class FeatureStore:
    """Features by an image's number in the window; encodes those that are missing."""

    def __init__(
        self, checkpoint: Checkpoint, patches: PatchStore, capacity_bytes: int, *, ahead: bool
    ) -> None:
        """ahead: while a block goes through the vision tower, another thread opens the next.

        A gain where the tower runs on another device. On the CPU the two would wait for each other.
        """
        self._model = checkpoint.model
        self._merge = checkpoint.image_processor.merge_size
        self._patches = patches
        self._capacity = capacity_bytes
        device = checkpoint.model.device.type
        self._block_patches = _BLOCK_PATCHES.get(device, _BLOCK_PATCHES_OTHERWISE)
        self._opener = ThreadPoolExecutor(1, thread_name_prefix="images") if ahead else None
        self._images: Sequence[tuple[str, ImageRef]] = ()
        self._blocks: Iterator[_Block] = iter(())
        self._opening: Future[_Block | None] | None = None
        self._seen = 0
        """Images of the window that have been encoded, the first ones."""
        self._kept: OrderedDict[int, Features | str] = OrderedDict()
        self._bytes = 0

    def begin(self, images: Sequence[tuple[str, ImageRef]]) -> None:
        """A new window: its distinct images with their keys, in the order of their first use."""
        self._images = images
        self._blocks = self._open_blocks(images)
        self._open_ahead()

    def end(self) -> None:
        """The window is over, or left: nothing is kept of it, and no image is being opened."""
        self._wait()
        self._opening = None
        self._kept.clear()
        self._bytes = self._seen = 0

    def get(self, number: int) -> Features | str:
        """Features of an image by its place in the window's list, or why it has none."""
        while number >= self._seen:
            block = next(self._blocks) if self._opening is None else self._opening.result()
            assert block is not None, "images are left"
            self._open_ahead()
            self._seen += len(block)
            self._keep(self._encode_block(block))
        if number not in self._kept:  # it was dropped, and is needed again
            self._wait()
            [patches] = self._patches.find([self._images[number]])
            self._keep(self._encode_block([(number, patches)]))
        self._kept.move_to_end(number)
        return self._kept[number]

    def _open_ahead(self) -> None:
        if self._opener is not None:
            self._opening = self._opener.submit(next, self._blocks, None)

    def _wait(self) -> None:
        """Only one thread opens images at a time."""
        if self._opening is not None:
            wait([self._opening])

    def _open_blocks(self, images: Sequence[tuple[str, ImageRef]]) -> Iterator[_Block]:
        """Runs of images that go through the vision tower together; depend on their sizes only."""
        block: _Block = []
        size = 0
        for number, patches in enumerate(self._patches.find(images)):
            more = 0 if isinstance(patches, str) else len(patches.pixels)
            if block and (len(block) == _BLOCK_IMAGES or size + more > self._block_patches):
                yield block
                block, size = [], 0
            block.append((number, patches))
            size += more
        if block:
            yield block

    def _keep(self, found: dict[int, Features | str]) -> None:
        # Last in, last out: those of a block that come first are wanted now.
        for number in reversed(found):
            self._kept[number] = found[number]
            self._bytes += _bytes(found[number])
        while self._bytes > self._capacity and len(self._kept) > len(found):
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= _bytes(oldest)

    def _encode_block(self, block: _Block) -> dict[int, Features | str]:
        ready = [(number, each) for number, each in block if isinstance(each, ImagePatches)]
        found = self._encode_within_memory(ready) if ready else {}
        return {number: each if isinstance(each, str) else found[number] for number, each in block}

    def _encode_within_memory(
        self, images: Sequence[tuple[int, ImagePatches]]
    ) -> dict[int, Features | str]:
        """Encode; where memory does not suffice, half of the images at a time."""
        try:
            return self._encode(images)
        except torch.OutOfMemoryError as error:
            message = str(error).partition("\n")[0]
        # Outside the `except`: the traceback holds the tensors of the failed pass.
        torch.cuda.empty_cache()
        if len(images) == 1:
            [(number, patches)] = images
            size = f"{patches.tokens} tokens"
            return {
                number: f"out of memory on an image ({size}); use a smaller max_pixels ({message})"
            }
        self._block_patches = max(1, sum(len(each.pixels) for _, each in images) // 2)
        middle = (len(images) + 1) // 2
        found = self._encode_within_memory(images[:middle])
        return found | self._encode_within_memory(images[middle:])

    @torch.inference_mode()
    def _encode(self, images: Sequence[tuple[int, ImagePatches]]) -> dict[int, Features | str]:
        device = self._model.device
        pixels = torch.cat([each.pixels for _, each in images]).to(device)
        grids = torch.tensor([each.grid for _, each in images], device=device)
        output = self._model.get_image_features(pixels, grids, return_dict=True)
        layers = getattr(output, "deepstack_features", None) or ()
        # Copies: `get_image_features` splits one tensor, and a view keeps all of it.
        return {
            number: Features(
                embeds=output.pooler_output[place].to(self._model.dtype).clone(),
                deepstack=tuple(layer[place].clone() for layer in layers),
                grid=(patches.grid[1] // self._merge, patches.grid[2] // self._merge),
            )
            for place, (number, patches) in enumerate(images)
        }


def _bytes(features: Features | str) -> int:
    return 0 if isinstance(features, str) else features.bytes
