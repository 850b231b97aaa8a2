"""The options of the datasets `glyphs` and `glyphs-pairs` and of the encoder `glyphs`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class GlyphsOptions:
    """Everything in a glyph dataset is determined by these."""

    split: Literal["train", "validation", "test"] = "train"
    """Split of the queries; all have the same pool."""
    seed: int = 0
    """Seed of images, questions and annotators."""
    lexicon_seed: int = 0
    """Seed of the two communities' words."""
    pool_size: int = 512
    """Examples that may be demonstrations."""
    train_size: int = 2000
    """Queries of the split train."""
    validation_size: int = 500
    """Queries of the split validation."""
    test_size: int = 1000
    """Queries of the split test."""

    def __post_init__(self) -> None:
        sizes = (self.pool_size, self.train_size, self.validation_size, self.test_size)
        if min(sizes) < 1:
            raise ValueError("pool_size, train_size, validation_size and test_size start at 1")

    def size(self, split: str) -> int:
        """Number of examples in a split, or in the pool (`pool`)."""
        size: int = getattr(self, f"{split}_size")
        return size


@dataclass(frozen=True, kw_only=True)
class GlyphsEncoderOptions:
    """Options of the encoder `glyphs`."""

    mode: Literal["image", "text", "both"] = "both"
    """Mean image tokens of the vision tower, mean token embedding of the question, or both."""
