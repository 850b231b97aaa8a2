"""The dataset: pool and queries, drawn example by example from a seed."""

from __future__ import annotations

import random

from pointer_rl.types import Companions, Dataset, Example
from pointer_rl_glyphs.checkpoint import MODEL_DIR
from pointer_rl_glyphs.episodes import random_key
from pointer_rl_glyphs.lexicon import DATASET_WORDS, Lexicon
from pointer_rl_glyphs.options import GlyphsOptions
from pointer_rl_glyphs.pictures import Picture
from pointer_rl_glyphs.questions import ask

SPLITS = ("pool", "train", "validation", "test")


def draw_split(options: GlyphsOptions, split: str) -> tuple[Example, ...]:
    """The examples of one split. The first n are the same whatever the split's size."""
    lexicon = Lexicon.draw(random.Random(f"lexicon/{options.lexicon_seed}"), DATASET_WORDS)
    return tuple(_draw(options.seed, lexicon, split, row) for row in range(options.size(split)))


def _draw(seed: int, lexicon: Lexicon, split: str, row: int) -> Example:
    rng = random.Random(f"glyphs/{seed}/{split}/{row}")
    key = random_key(rng)
    picture = Picture.draw_for(key, rng)
    number = 1_000_000 * (SPLITS.index(split) + 1) + row
    return Example(
        id=str(number),
        row=row,
        image=picture,
        question=ask(key.attribute, rng),
        answers=lexicon.annotate(key, rng),
        question_id=number,
        image_id=number,
    )


def load_glyphs(options: GlyphsOptions) -> Dataset:
    """The queries of the chosen split, and the pool."""
    return Dataset(
        name="glyphs",
        queries=draw_split(options, options.split),
        pool=draw_split(options, "pool"),
        companions=Companions(model=str(MODEL_DIR), encoder="glyphs"),
    )
