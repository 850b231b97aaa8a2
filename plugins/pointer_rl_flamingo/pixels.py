"""Images as CLIP's vision tower takes them, as OpenFlamingo's training prepared them."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["pixels"]

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's, of red, green and blue."""


def pixels(image: Image.Image, side: int) -> Tensor:
    """[3, side, side] float32: the short side resized (bicubic), the middle cropped, normalised.

    `CLIPImageProcessor` rounds the margins of the crop down; torchvision, with which the models
    were trained, rounds them to the nearest (half to even): a pixel apart for some sizes.
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
