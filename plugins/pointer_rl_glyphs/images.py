"""Images: one shape with a colour and a pattern on a pale background, perhaps with a stamp."""

from __future__ import annotations

import hashlib
import io
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pointer_rl_glyphs.lexicon import COLORS, PATTERNS, SHAPES, Key

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

SIZE = 56
"""Width and height in pixels. Images are drawn at twice this size, then reduced to smooth edges."""
_SCALE = 2

_RGB = {
    "red": (214, 39, 40),
    "green": (30, 150, 50),
    "blue": (40, 70, 220),
    "yellow": (238, 205, 20),
    "purple": (140, 50, 175),
    "orange": (250, 125, 15),
    "black": (25, 25, 25),
    "cyan": (30, 195, 210),
}


@dataclass(frozen=True)
class GlyphImage:
    """Everything that determines an image. An `ImageRef`: the image is drawn when opened."""

    shape: str
    color: str
    pattern: str
    stamped: bool
    radius: int
    """In pixels of the drawn size, twice the final one; so is the centre."""
    center: tuple[int, int]
    background: tuple[int, int, int]
    corner: int
    """Corner of the stamp, 0 to 3: top left, top right, bottom left, bottom right."""

    @classmethod
    def draw_at_random(
        cls,
        rng: random.Random,
        *,
        shape: str | None = None,
        color: str | None = None,
        pattern: str | None = None,
        stamped: bool | None = None,
    ) -> GlyphImage:
        """An image with the given features; the others are drawn from `rng`."""
        radius = rng.randint(28, 42)
        low, high = radius + 4, SIZE * _SCALE - radius - 4
        return cls(
            shape=shape or rng.choice(SHAPES),
            color=color or rng.choice(COLORS),
            pattern=pattern or rng.choice(PATTERNS),
            stamped=rng.random() < 0.5 if stamped is None else stamped,
            radius=radius,
            center=(rng.randint(low, high), rng.randint(low, high)),
            background=(rng.randint(215, 245), rng.randint(215, 245), rng.randint(215, 245)),
            corner=rng.randrange(4),
        )

    @classmethod
    def draw_for(cls, keys: Sequence[Key], rng: random.Random) -> GlyphImage:
        """An image that shows all `keys`, which are of one community."""
        values = {key.attribute: key.value for key in keys}
        return cls.draw_at_random(rng, stamped=keys[0].stamped, **values)

    def open(self) -> Image.Image:
        """Draw the image: RGB, 56 × 56."""
        from PIL import Image, ImageDraw, ImageFilter

        side = SIZE * _SCALE
        mask = Image.new("L", (side, side), 0)
        self._outline(ImageDraw.Draw(mask))
        ink = Image.new("L", (side, side), 255)
        if self.pattern != "solid":
            # A pixel of the box blur is 255 only if its whole box is: an erosion, at a fraction of
            # MinFilter's cost.
            edge_width = 6 if self.pattern == "outline" else 4
            blurred = mask.filter(ImageFilter.BoxBlur(edge_width))
            ink.paste(0, mask=blurred.point([0] * 255 + [255]))
            brush = ImageDraw.Draw(ink)
            if self.pattern == "striped":
                for offset in range(-side, side, 14):
                    brush.line((offset, 0, offset + side, side), fill=255, width=5)
            elif self.pattern == "dotted":
                for x in range(3, side, 12):
                    for y in range(3, side, 12):
                        brush.ellipse((x - 3, y - 3, x + 3, y + 3), fill=255)
        image = Image.new("RGB", (side, side), self.background)
        image.paste((255, 255, 255), mask=mask)
        color = Image.new("RGB", (side, side), _RGB[self.color])
        black = Image.new("L", (side, side), 0)
        image.paste(color, mask=Image.composite(ink, black, mask))
        if self.stamped:
            far = side - 15
            x, y = (2, far)[self.corner % 2], (2, far)[self.corner // 2]
            brush = ImageDraw.Draw(image)
            brush.rectangle((x, y, x + 12, y + 12), fill=(255, 255, 255))
            brush.rectangle((x + 2, y + 2, x + 10, y + 10), fill=(90, 60, 30))
        return image.resize((SIZE, SIZE), Image.Resampling.BOX)

    def _outline(self, brush: ImageDraw.ImageDraw) -> None:
        (x, y), r = self.center, self.radius
        box = (x - r, y - r, x + r, y + r)
        if self.shape in ("circle", "ring"):
            brush.ellipse(box, fill=255)
            if self.shape == "ring":
                hole = round(0.42 * r)
                brush.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)
        elif self.shape == "square":
            s = round(0.85 * r)
            brush.rectangle((x - s, y - s, x + s, y + s), fill=255)
        elif self.shape == "cross":
            arm = round(0.38 * r)
            brush.rectangle((x - arm, y - r, x + arm, y + r), fill=255)
            brush.rectangle((x - r, y - arm, x + r, y + arm), fill=255)
        else:
            reaches = [r] * 3 if self.shape == "triangle" else [r, 0.5 * r] * 5
            points = []
            for step, reach in enumerate(reaches):
                angle = step * (2 * math.pi / len(reaches)) - math.pi / 2
                points.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
            brush.polygon(points, fill=255)

    def png(self) -> bytes:
        """The image as a PNG file."""
        buffer = io.BytesIO()
        self.open().save(buffer, "PNG")
        return buffer.getvalue()

    @cached_property
    def key(self) -> str:
        """SHA-256 of what determines the image and of this module, which draws it.

        Drawing takes milliseconds, and other versions of Pillow may give other bytes.
        """
        return hashlib.sha256(f"{_drawn_by()} {self}".encode()).hexdigest()


@cache
def _drawn_by() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
