"""Episodes: sequences of solved examples, as a prompt shows them to the model.

The glyph model is trained on episodes with TRAINING_WORDS and measured, case by case, on episodes
with DATASET_WORDS.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from pointer_rl.types import Example
from pointer_rl_glyphs.images import GlyphImage
from pointer_rl_glyphs.lexicon import VALUES, Key, Lexicon, random_key
from pointer_rl_glyphs.questions import ask


@dataclass(frozen=True)
class Block:
    """One solved example."""

    key: Key
    image: GlyphImage
    question: str
    answer: str
    answerable: bool
    """Whether its answer can be known: from an earlier block, or because it is in English."""

    @property
    def example(self) -> Example:
        """The block as an argument of a prompt builder."""
        return Example(
            id="", row=0, image=self.image, question=self.question, answers=(self.answer,)
        )


Episode = Sequence[Block]
"""The demonstrations, then the query."""


def make_block(
    key: Key, words: Lexicon | None, rng: random.Random, seen: Sequence[Key] = ()
) -> Block:
    """A block that asks for `key`, in English without words. `seen`: keys of earlier blocks."""
    return Block(
        key=key,
        image=GlyphImage.draw_for(key, rng),
        question=ask(key.attribute, rng, english=words is None),
        answer=key.value if words is None else words.words[key][0],
        answerable=words is None or key in seen,
    )


def training_episode(
    rng: random.Random,
    length: int,
    words: Sequence[str],
    repeats: float = 0.4,
    english: float = 0.2,
) -> Episode:
    """An episode in which some blocks repeat an earlier key, and some only its value (a rival).

    A rival has the other stamp, so the model must tell the communities apart. `repeats`:
    probability that a block asks for an earlier block's key; `english`: probability that the
    episode is in English.
    """
    lexicon = None if rng.random() < english else Lexicon.draw(rng, tuple(words))
    attribute = None if rng.random() < 0.6 else rng.choice(tuple(VALUES))
    blocks: list[Block] = []
    keys: list[Key] = []
    for _ in range(length):
        kind = rng.random()
        if keys and kind < repeats:
            key = rng.choice(keys)
        elif keys and kind < repeats + 0.15:
            other = rng.choice(keys)
            key = other._replace(stamped=not other.stamped)
        else:
            key = random_key(rng, attribute)
        blocks.append(make_block(key, lexicon, rng, keys))
        keys.append(key)
    return blocks


@dataclass(frozen=True)
class Case:
    """A situation in which the model is measured."""

    name: str
    goal: float
    """The accuracy to reach (for `none relevant`: not to exceed)."""
    shots: int
    relevant: int | None = None
    """Position of the only relevant demonstration."""
    rival: bool = False
    """All other demonstrations have the query's value and the other stamp."""
    english: bool = False

    def episode(self, rng: random.Random, lexicon: Lexicon) -> Episode:
        """A random episode of this case."""
        query = random_key(rng)
        if self.english:
            return [make_block(query, None, rng)]
        blocks = []
        for position in range(self.shots):
            if position == self.relevant:
                key = query
            elif self.rival:
                key = query._replace(stamped=not query.stamped)
            else:
                key = query
                while key == query:
                    key = random_key(rng)
            blocks.append(make_block(key, lexicon, rng))
        return [*blocks, make_block(query, lexicon, rng, [query])]


CASES = (
    Case("English naming, no demonstration", 0.98, 0, english=True),
    Case("one relevant demonstration alone", 0.97, 1, 0),
    *(Case(f"one relevant among two, position {p + 1}", 0.97, 2, p) for p in range(2)),
    *(Case(f"one relevant among four, position {p + 1}", 0.95, 4, p) for p in range(4)),
    *(Case(f"beside a rival, position {p + 1} of 2", 0.95, 2, p, rival=True) for p in range(2)),
    Case("two demonstrations, none relevant", 0.02, 2),
)
