"""The datasets: pool and queries, each example drawn from the seed, the split and its row."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pointer_rl.types import Companions, Dataset, Example
from pointer_rl_glyphs.images import GlyphImage
from pointer_rl_glyphs.lexicon import DATASET_WORDS, Key, Lexicon, random_key, random_pair
from pointer_rl_glyphs.options import GlyphsOptions
from pointer_rl_glyphs.questions import ask

MODEL_DIR = Path(__file__).parent / "model"
"""The trained checkpoint, part of the package."""
SPLITS = ("pool", "train", "validation", "test")
GLYPHS, PAIRS = "glyphs", "glyphs-pairs"


class Asked(NamedTuple):
    """What an example asks for."""

    keys: tuple[Key, ...]
    english: bool = False


def _ask_glyphs(rng: random.Random) -> Asked:
    return Asked((random_key(rng),))


def _ask_pairs(rng: random.Random) -> Asked:
    """Two attributes in half of the cases, one in a fifth, one in English in the others."""
    kind = rng.random()
    if kind < 0.5:
        return Asked(random_pair(rng))
    return Asked((random_key(rng),), english=kind >= 0.7)


_ASK: dict[str, Callable[[random.Random], Asked]] = {GLYPHS: _ask_glyphs, PAIRS: _ask_pairs}
"""Dataset → draws what a query asks for. Examples of the pool ask as in glyphs."""


def draw_split(options: GlyphsOptions, split: str, name: str = GLYPHS) -> tuple[Example, ...]:
    """The examples of one split. The first n examples do not depend on the split's size."""
    lexicon = Lexicon.draw(random.Random(f"lexicon/{options.lexicon_seed}"), DATASET_WORDS)
    return tuple(
        _draw(name, options.seed, lexicon, split, row) for row in range(options.size(split))
    )


def _draw(name: str, seed: int, lexicon: Lexicon, split: str, row: int) -> Example:
    rng, (keys, english) = _begin(name, seed, split, row)
    image = GlyphImage.draw_for(keys, rng)
    number = 1_000_000 * (SPLITS.index(split) + 1) + row
    return Example(
        id=str(number),
        row=row,
        image=image,
        question=ask([key.attribute for key in keys], rng, english),
        answers=(keys[0].value,) * 10 if english else lexicon.annotate(keys, rng),
        question_id=number,
        image_id=number,
    )


def load_glyphs(options: GlyphsOptions) -> Dataset:
    """The queries of the chosen split and the pool."""
    return _load(GLYPHS, options)


def load_pairs(options: GlyphsOptions) -> Dataset:
    """The queries of the chosen split, and the pool of `glyphs`."""
    return _load(PAIRS, options)


def _load(name: str, options: GlyphsOptions) -> Dataset:
    rows_of: dict[Key, list[int]] = {}
    for row in range(options.size("pool")):
        (key,) = _begin(GLYPHS, options.seed, "pool", row)[1].keys
        rows_of.setdefault(key, []).append(row)
    split = options.split
    asked = [_begin(name, options.seed, split, row)[1] for row in range(options.size(split))]
    return Dataset(
        name=name,
        queries=draw_split(options, split, name),
        pool=draw_split(options, "pool"),
        companions=Companions(model=str(MODEL_DIR), encoder="glyphs"),
        relevant=[
            [] if english else [rows_of.get(key, []) for key in keys] for keys, english in asked
        ],
    )


def _begin(name: str, seed: int, split: str, row: int) -> tuple[random.Random, Asked]:
    """The source of an example, and what it asks for, which is drawn first."""
    rng = random.Random(f"{name}/{seed}/{split}/{row}")
    return rng, _ASK[name](rng)
