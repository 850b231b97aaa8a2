"""References to encoded images: a file, or bytes in memory."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pointer_rl.errors import InputError, first_line

if TYPE_CHECKING:
    from PIL.Image import Image


class EncodedImage:
    """Base of the `ImageRef`s to an encoded image (PNG, JPEG, …); hashes and decodes it.

    A subclass provides `name` and `read`.
    """

    __slots__ = ("_key",)
    _key: str
    name: str
    """Where the image comes from, for error messages."""

    def read(self) -> bytes:
        """The encoded image. Raises InputError if it cannot be read."""
        raise NotImplementedError

    @property
    def key(self) -> str:
        """SHA-256 of the encoded image, computed once."""
        try:
            return self._key
        except AttributeError:
            key = hashlib.sha256(self.read()).hexdigest()
            object.__setattr__(self, "_key", key)  # subclasses are frozen dataclasses
            return key

    def open(self) -> Image:
        """The decoded image, in RGB. Raises InputError if it cannot be read or decoded."""
        from PIL import Image, UnidentifiedImageError

        data = self.read()
        try:
            return Image.open(io.BytesIO(data)).convert("RGB")
        except UnidentifiedImageError as error:
            raise InputError(
                f"{self.name}: not a readable image (no format that Pillow knows)"
            ) from error
        except Exception as error:  # Pillow's decoders raise anything for damaged files
            raise InputError(f"{self.name}: not a readable image ({first_line(error)})") from error


@dataclass(frozen=True, slots=True, init=False, repr=False)
class ImageFile(EncodedImage):
    """An image file, read when needed."""

    name: str  # a Path takes several times the memory of a string

    def __init__(self, path: str | Path) -> None:
        object.__setattr__(self, "name", os.fspath(path))

    def __repr__(self) -> str:
        return f"ImageFile({self.name!r})"

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.name)

    def read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{self.name}: cannot read the image ({reason})") from error


@dataclass(frozen=True, slots=True)
class ImageBytes(EncodedImage):
    """An encoded image held in memory."""

    data: bytes = field(repr=False)
    name: str

    def read(self) -> bytes:
        return self.data
