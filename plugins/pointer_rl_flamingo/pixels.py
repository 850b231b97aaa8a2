"""Preprocess images for CLIP's vision tower as OpenFlamingo's training did."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's mean and standard deviation of red, green and blue."""


def pixels(image: Image.Image, side: int) -> Tensor:
    """[3, side, side] float32: resized (bicubic) by the short side, centre-cropped, normalised.

    The models were trained with torchvision, which rounds the margins of the crop to the nearest
    integer (half to even). `CLIPImageProcessor` rounds them down, which shifts some sizes by a
    pixel.
    """
    width, height = image.size
    short = min(width, height)
    size = (side * width // short, side * height // short)
    resized = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    left, top = (round((length - side) / 2) for length in size)
    cropped = resized.crop((left, top, left + side, top + side))
    values = np.asarray(cropped, dtype=np.float32) / 255
    normalised = (values - np.array(_MEAN, np.float32)) / np.array(_STD, np.float32)
    return torch.from_numpy(normalised).permute(2, 0, 1).contiguous()
