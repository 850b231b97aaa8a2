"""An image that cannot be read: what a failing request, example or picture is made with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pointer_rl.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["UnreadableImage"]


@dataclass
class UnreadableImage:
    """Has a key, as any image, and counts how often it was opened in vain."""

    key: str = "unreadable"
    opened: int = 0

    def open(self) -> Image:
        """Raises InputError."""
        self.opened += 1
        raise InputError("unreadable.png: not a readable image")
