"""Images as URLs: their content, or the path at which a server finds them."""

from __future__ import annotations

import base64
import io
import threading
from typing import Literal

from pointer_rl.datasets.images import EncodedImage, ImageFile
from pointer_rl.errors import InputError
from pointer_rl.local.lru import LRUCache
from pointer_rl.types import ImageRef

_ORIENTATION = 0x0112
"""The EXIF tag; 1 is upright."""
_CAPACITY = 256 * 2**20
"""Size of the cache of URLs, in characters."""


class ImageUrls:
    """URLs of images, with a cache. Thread-safe.

    Mode `data` sends the file's own bytes if every decoder reads them as `ImageRef.open` does (a
    JPEG or PNG in RGB or grey, upright, opaque), else the opened image as PNG. Mode `file` sends a
    `file://` URL with the path.
    """

    def __init__(self, mode: Literal["data", "file"]) -> None:
        self._mode = mode
        self._cache: LRUCache[str, str] = LRUCache(_CAPACITY, len)
        self._lock = threading.Lock()

    def url(self, image: ImageRef) -> str:
        """Raises InputError for an unreadable image and, in mode `file`, for one without a file."""
        if self._mode == "file":
            if not isinstance(image, ImageFile):
                raise InputError("images=file: an image of this dataset is in no file: images=data")
            return image.path.absolute().as_uri()
        with self._lock:
            url = self._cache.get(image.key)
        if url is None:
            url = _data_url(image)
            with self._lock:
                self._cache.put({image.key: url})
        return url


def _data_url(image: ImageRef) -> str:
    opened = image.open()
    kind, data = _own_bytes(image)
    if data is None:
        file = io.BytesIO()
        pixels = opened.copy()
        pixels.info.clear()  # Pillow would write the file's transparent colour.
        pixels.save(file, "PNG")
        kind, data = "png", file.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _own_bytes(image: ImageRef) -> tuple[str, bytes | None]:
    """The file's format and bytes. The bytes are None if decoders may read them differently."""
    from PIL import Image

    if not isinstance(image, EncodedImage):
        return "", None
    data = image.read()
    with Image.open(io.BytesIO(data)) as opened:
        plain = (
            opened.format in ("JPEG", "PNG")
            and opened.mode in ("RGB", "L")
            and "transparency" not in opened.info
            and opened.getexif().get(_ORIENTATION, 1) == 1
        )
        return (opened.format or "").lower(), data if plain else None
