"""References to encoded images: a file, or bytes in memory."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pointer_rl.errors import InputError, first_line

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """The largest image that is read. A larger one is refused before it takes memory."""

    bytes: int = 2**28
    """Size of the encoded image."""
    pixels: int = 89_478_485
    """Width times height. The default is where Pillow warns; it opens none twice as large."""


LIMITS = ImageLimits()


class FileState(NamedTuple):
    """What changes when a file does."""

    size: int
    modified: int
    """Nanoseconds of the last change of the content."""
    changed: int
    """Nanoseconds of the last change of the file, which no program can set back."""

    @classmethod
    def of(cls, path: str | Path) -> FileState:
        """The state of a file. Raises OSError or ValueError if it cannot be looked at."""
        status = os.stat(path)
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class EncodedImage:
    """Base of the `ImageRef`s to an encoded image (PNG, JPEG, …); hashes and decodes it.

    A subclass provides `name` and `read`, and may have other `limits`.
    """

    __slots__ = ("_key",)
    _key: str
    name: str
    """Where the image comes from, for error messages."""

    @property
    def limits(self) -> ImageLimits:
        """The largest image that is read."""
        return LIMITS

    def read(self) -> bytes:
        """The encoded image. Raises InputError if it cannot be read."""
        raise NotImplementedError

    @property
    def place(self) -> str | None:
        """A name, on this machine, of the place that it is read from; None if there is none."""
        return None

    def states(self) -> tuple[FileState, ...]:
        """The state of the files at its place. As long as it is the same, the image is."""
        return ()

    @property
    def key(self) -> str:
        """SHA-256 of the encoded image, computed once."""
        if not self.has_key:
            self.set_key(hashlib.sha256(self.read()).hexdigest())
        return self._key

    @property
    def has_key(self) -> bool:
        """Whether the key is known already."""
        return hasattr(self, "_key")

    def set_key(self, key: str) -> None:
        """Tell the image its key, which is known without reading it."""
        object.__setattr__(self, "_key", key)  # subclasses are frozen dataclasses

    def open(self) -> Image:
        """The decoded image, in RGB. Raises InputError if it cannot be read or decoded.

        Pixels of 16 bits keep their upper 8, as Pillow does in colour images. Transparency is
        ignored, as the processors of vision-language models do. An image whose key has been
        computed and that has changed since is refused.
        """
        from PIL import Image, UnidentifiedImageError

        _silence_warnings()
        data = self.read()
        if self.has_key and self._key != hashlib.sha256(data).hexdigest():
            raise InputError(f"{self.name}: the image has changed since this run began; run again")
        try:
            with Image.open(io.BytesIO(data)) as opened:
                pixels = opened.width * opened.height
                if pixels <= self.limits.pixels:
                    return _to_rgb(opened)
        except UnidentifiedImageError as error:
            raise InputError(
                f"{self.name}: not a readable image (no format that Pillow knows)"
            ) from error
        except Exception as error:  # Pillow's decoders raise anything for damaged files
            raise InputError(f"{self.name}: not a readable image ({first_line(error)})") from error
        raise InputError(
            f"{self.name}: {pixels:,} pixels are more than max_image_pixels={self.limits.pixels}"
        )


@dataclass(frozen=True, slots=True, init=False, repr=False)
class ImageFile(EncodedImage):
    """An image file, read when needed."""

    name: str  # a Path takes several times the memory of a string
    _limits: ImageLimits = field(compare=False)

    def __init__(self, path: str | Path, limits: ImageLimits = LIMITS) -> None:
        object.__setattr__(self, "name", os.fspath(path))
        object.__setattr__(self, "_limits", limits)

    def __repr__(self) -> str:
        return f"ImageFile({self.name!r})"

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.name)

    @property
    def limits(self) -> ImageLimits:
        return self._limits

    @property
    def place(self) -> str:
        return os.path.abspath(self.name)

    def states(self) -> tuple[FileState, ...]:
        return (FileState.of(self.name),)

    def read(self) -> bytes:
        """The file's content. Only a regular file is read: a pipe or a device may never end."""
        most = self._limits.bytes
        try:
            with open(self.name, "rb", opener=_open_at_once) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise InputError(
                        f"{self.name}: cannot read the image (a pipe or a device, not a file)"
                    )
                data = file.read(most + 1) if status.st_size <= most else b""
        except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{self.name}: cannot read the image ({reason})") from error
        if max(status.st_size, len(data)) > most:
            raise too_large(self.name, max(status.st_size, len(data)), self._limits)
        return data


@dataclass(frozen=True, slots=True)
class ImageBytes(EncodedImage):
    """An encoded image held in memory."""

    data: bytes = field(repr=False)
    name: str

    def read(self) -> bytes:
        return self.data


def too_large(name: str, size: int, limits: ImageLimits) -> InputError:
    """The error of an encoded image that is larger than the limit."""
    return InputError(
        f"{name}: the image's {size:,} bytes are more than max_image_bytes={limits.bytes}"
    )


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; a pipe too, without waiting for someone who writes into it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@cache
def _silence_warnings() -> None:
    """Pillow warns of large images; `ImageLimits` decides."""
    from PIL import Image

    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def _to_rgb(image: Image) -> Image:
    from PIL import Image

    # Older versions of Pillow read grey images of 16 bits into 32.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        import numpy as np

        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are 32-bit numbers of unknown range; save it with 8 or 16")
    image.info.pop("transparency", None)  # of which Pillow would warn
    return image.convert("RGB")
