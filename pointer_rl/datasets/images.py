"""Images by reference: from a file, from bytes in memory."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pointer_rl.errors import InputError, first_line

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageBytes", "ImageFile"]


def _decode(data: bytes, name: str) -> Image:
    from PIL import Image

    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except Exception as error:  # Pillow's decoders raise anything for damaged files
        raise InputError(f"{name}: not a readable image ({first_line(error)})") from error


@dataclass(frozen=True)
class ImageFile:
    """An image file. Its key is the SHA-256 of the file, read when first asked for."""

    path: Path

    def _read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
            raise InputError(f"{self.path}: cannot read the image ({error})") from error

    @cached_property
    def key(self) -> str:
        return hashlib.sha256(self._read()).hexdigest()

    def open(self) -> Image:
        return _decode(self._read(), str(self.path))


@dataclass(frozen=True)
class ImageBytes:
    """An encoded image (PNG, JPEG, …) held in memory."""

    data: bytes = field(repr=False)
    name: str
    """Where it came from, for messages."""

    @cached_property
    def key(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    def open(self) -> Image:
        return _decode(self.data, self.name)
