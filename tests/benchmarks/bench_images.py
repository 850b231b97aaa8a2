"""Cutting images into patches: qwen2vl against the official processor, with bit-identical results.

    python tests/benchmarks/bench_images.py

CPU time of one thread, medians of seven. Also printed: the time of resizing, which both include,
and of decoding the image as JPEG.
"""

from __future__ import annotations

import io
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from pointer_rl_qwen2vl.patches import PixelTable, cut

SIZES = [(56, 56), (640, 480), (1024, 1024)]
REPEATS = 7


def milliseconds(run: Callable[[], object]) -> float:
    found = []
    for _ in range(REPEATS):
        start = time.process_time()
        for _ in range(10):
            run()
        found.append((time.process_time() - start) * 100)
    return statistics.median(found)


def main() -> None:
    torch.set_num_threads(1)
    processor = Qwen2VLImageProcessorPil()
    table = PixelTable(processor, torch.float32, torch.device("cpu"))

    def own(image: Image.Image) -> torch.Tensor:
        return table.pixels([cut(image, processor).values])

    print(f"{platform.machine()}, one thread (CPU time)")
    for size in SIZES:
        pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        _, down, across = cut(image, processor).grid
        official = processor(images=[image], return_tensors="np")["pixel_values"]
        assert np.array_equal(own(image).numpy(), official)
        file = io.BytesIO()
        image.save(file, "JPEG")
        side = processor.patch_size
        slow = milliseconds(lambda p=image: processor(images=[p], return_tensors="pt"))
        fast = milliseconds(lambda p=image: own(p))
        resized = milliseconds(
            lambda p=image, s=(across * side, down * side): p.resize(s, processor.resample)
        )
        decoded = milliseconds(lambda f=file: Image.open(f).convert("RGB"))
        print(
            f"{size[0]} x {size[1]}: official {slow:.3g} ms, own {fast:.3g} ms: {slow / fast:.1f}x;"
            f" resizing {resized:.2g} ms, decoding {decoded:.2g} ms"
        )


if __name__ == "__main__":
    main()
