"""Images are cut to the official processor's floats, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from pointer_rl_qwen2vl.patches import PixelTable, cut

PROCESSORS = [
    Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 30}),
    Qwen2VLImageProcessorPil(  # as Qwen3-VL's
        patch_size=16,
        image_mean=[0.5, 0.4, 0.3],
        image_std=[0.5, 0.6, 0.7],
        size={"shortest_edge": 32 * 32, "longest_edge": 32 * 32 * 20},
    ),
    Qwen2VLImageProcessorPil(  # fewer pixels in a merged patch than there are bytes
        patch_size=4,
        merge_size=3,
        temporal_patch_size=1,
        size={"shortest_edge": 144, "longest_edge": 144 * 30},
    ),
    Qwen2VLImageProcessorPil(do_normalize=False),
    Qwen2VLImageProcessorPil(do_rescale=False, resample=Image.Resampling.BILINEAR),
]


def make_image(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("processor", PROCESSORS)
@given(width=st.integers(1, 200), height=st.integers(1, 200), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_the_floats_are_the_official_processors(processor, width, height, seed):
    image = make_image(width, height, seed)
    expected = processor(images=[image], return_tensors="np")
    table = PixelTable(processor, torch.float32, torch.device("cpu"))
    patches = cut(image, processor)
    other = cut(make_image(60, 60), processor)
    pixels = table.pixels([patches.values, other.values])[: len(patches.values)].numpy()
    assert pixels.dtype == expected["pixel_values"].dtype
    assert np.array_equal(pixels, expected["pixel_values"])
    assert list(patches.grid) == expected["image_grid_thw"][0].tolist()


def test_an_image_that_is_not_resized_must_be_cut_evenly():
    processor = Qwen2VLImageProcessorPil(do_resize=False)
    patches = cut(make_image(84, 56), processor)
    assert (len(patches.values), patches.grid, patches.tokens) == (24, (1, 4, 6), 6)
    with pytest.raises(ValueError, match="reshape"):
        cut(make_image(85, 56), processor)


def test_what_the_official_processor_refuses_is_refused():
    with pytest.raises(ValueError, match="aspect ratio"):
        cut(make_image(402, 2), PROCESSORS[0])
