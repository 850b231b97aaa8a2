"""The dataset: pool and queries, each example drawn from the seed, the split and its row."""

from __future__ import annotations

import random
from pathlib import Path

from pointer_rl.types import Companions, Dataset, Example
from pointer_rl_glyphs.images import GlyphImage
from pointer_rl_glyphs.lexicon import DATASET_WORDS, Key, Lexicon, random_key
from pointer_rl_glyphs.options import GlyphsOptions
from pointer_rl_glyphs.questions import ask

MODEL_DIR = Path(__file__).parent / "model"
"""The trained checkpoint, part of the package."""
SPLITS = ("pool", "train", "validation", "test")


def draw_split(options: GlyphsOptions, split: str) -> tuple[Example, ...]:
    """The examples of one split. The first n examples do not depend on the split's size."""
    lexicon = Lexicon.draw(random.Random(f"lexicon/{options.lexicon_seed}"), DATASET_WORDS)
    return tuple(_draw(options.seed, lexicon, split, row) for row in range(options.size(split)))


def _draw(seed: int, lexicon: Lexicon, split: str, row: int) -> Example:
    rng = _rng(seed, split, row)
    key = random_key(rng)
    image = GlyphImage.draw_for(key, rng)
    number = 1_000_000 * (SPLITS.index(split) + 1) + row
    return Example(
        id=str(number),
        row=row,
        image=image,
        question=ask(key.attribute, rng),
        answers=lexicon.annotate(key, rng),
        question_id=number,
        image_id=number,
    )


def load_glyphs(options: GlyphsOptions) -> Dataset:
    """The queries of the chosen split and the pool."""
    rows_of: dict[Key, list[int]] = {}
    for row in range(options.size("pool")):
        rows_of.setdefault(random_key(_rng(options.seed, "pool", row)), []).append(row)
    split = options.split
    keys = (random_key(_rng(options.seed, split, row)) for row in range(options.size(split)))
    return Dataset(
        name="glyphs",
        queries=draw_split(options, split),
        pool=draw_split(options, "pool"),
        companions=Companions(model=str(MODEL_DIR), encoder="glyphs"),
        relevant=[rows_of.get(key, []) for key in keys],
    )


def _rng(seed: int, split: str, row: int) -> random.Random:
    """The source of an example; its key is drawn first."""
    return random.Random(f"glyphs/{seed}/{split}/{row}")
