"""Small versions of images, each once, up to a number of bytes."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field

from pointer_rl.errors import InputError
from pointer_rl.types import ImageRef

SIDE = 144
"""Largest width and height of a thumbnail, in pixels."""
_QUALITY = 60
_DRAWN = 64
"""Width and height up to which an image is kept without loss: it was drawn, not photographed."""


@dataclass
class Thumbnails:
    """Images as WebP in base64, by the number that the page uses."""

    most: int
    """Characters that all of them may take."""
    encoded: list[str] = field(default_factory=list)
    size: int = 0
    full: bool = False
    """Whether there was no room for an image. There is none for any other one then: a smaller one
    would fit, but what is shown would be a sample of small images."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """The name of an image → why it could not be opened."""
    _numbers: dict[str, int] = field(default_factory=dict)

    def add(self, image: ImageRef) -> int | None:
        """The number of the image's thumbnail; None if it has none."""
        name = str(getattr(image, "name", ""))
        if name in self.unreadable:
            return None
        try:
            key = image.key
            if key not in self._numbers and not self.full:
                self._encode(image)
        except InputError as error:
            self.unreadable[name or str(error)] = str(error)
            return None
        return self._numbers.get(key)

    def _encode(self, image: ImageRef) -> None:
        text = base64.b64encode(encode_webp(image, SIDE)).decode()
        size = len(text) + 3  # quotes and a comma
        self.full = self.size + size > self.most
        if not self.full:
            self.size += size
            self._numbers[image.key] = len(self.encoded)
            self.encoded.append(text)


def encode_webp(image: ImageRef, side: int) -> bytes:
    """The image as WebP, at most `side` pixels wide and high.

    Raises InputError if it cannot be opened.
    """
    opened = image.open()
    lossless = max(opened.size) <= _DRAWN
    opened.thumbnail((side, side))
    buffer = io.BytesIO()
    opened.save(buffer, "webp", quality=_QUALITY, method=2, lossless=lossless)
    return buffer.getvalue()
