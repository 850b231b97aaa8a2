"""Images as URLs: their content, or where a server finds them."""

from __future__ import annotations

import base64
import io
import threading
from pathlib import Path
from typing import Literal

from pointer_rl.datasets.images import ImageBytes, ImageFile
from pointer_rl.errors import InputError
from pointer_rl.types import ImageRef

__all__ = ["ImageUrls"]

_ORIENTATION = 0x0112
"""The EXIF tag; 1 is upright."""
_CAPACITY = 256 * 2**20
"""Characters of URLs that are kept."""


class ImageUrls:
    """URLs of images. An image that many prompts show is encoded once, while there is room.

    data: the file's own bytes where every decoder makes of them what `ImageRef.open` does (a JPEG
    or PNG in RGB or grey, upright, opaque), else that picture as PNG. file: `file://` and the path.
    """

    def __init__(self, mode: Literal["data", "file"]) -> None:
        self._mode = mode
        self._urls: dict[str, str] = {}
        self._size = 0
        self._lock = threading.Lock()

    def url(self, image: ImageRef) -> str:
        """Raises InputError for what is no image and, in mode file, for one that is in no file."""
        if self._mode == "file":
            if not isinstance(image, ImageFile):
                raise InputError("images=file: an image of this dataset is in no file: images=data")
            return image.path.absolute().as_uri()
        with self._lock:
            known = self._urls.get(image.key)
        if known is None:
            known = _data_url(image)
            self._keep(image.key, known)
        return known

    def _keep(self, key: str, url: str) -> None:
        """In place of the oldest, where there is no room."""
        with self._lock:
            if key not in self._urls:  # another thread may have been faster
                self._urls[key] = url
                self._size += len(url)
            while self._size > _CAPACITY:
                self._size -= len(self._urls.pop(next(iter(self._urls))))


def _data_url(image: ImageRef) -> str:
    picture = image.open()
    kind, data = _own_bytes(image)
    if data is None:
        file = io.BytesIO()
        pixels = picture.copy()
        pixels.info.clear()  # Pillow would write a transparent colour of the file's
        pixels.save(file, "PNG")
        kind, data = "png", file.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _own_bytes(image: ImageRef) -> tuple[str, bytes | None]:
    from PIL import Image

    if isinstance(image, ImageBytes):
        data = image.data
    elif isinstance(image, ImageFile):
        data = _read(image.path)
    else:
        return "", None
    with Image.open(io.BytesIO(data)) as picture:
        plain = (
            picture.format in ("JPEG", "PNG")
            and picture.mode in ("RGB", "L")
            and "transparency" not in picture.info
            and picture.getexif().get(_ORIENTATION, 1) == 1
        )
        return (picture.format or "").lower(), data if plain else None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read the image ({error})") from error
