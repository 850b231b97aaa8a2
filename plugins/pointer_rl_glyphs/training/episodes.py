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
from pointer_rl_glyphs.lexicon import VALUES, Key, Lexicon, random_key, random_pair
from pointer_rl_glyphs.questions import ask


@dataclass(frozen=True)
class Block:
    """One solved example."""

    keys: tuple[Key, ...]
    """What each word of its answer means."""
    image: GlyphImage
    question: str
    answer: str
    answerable: bool
    """Whether its answer can be known: from earlier blocks, or because it is in English."""

    @property
    def example(self) -> Example:
        """The block as an argument of a prompt builder."""
        return Example(
            id="", row=0, image=self.image, question=self.question, answers=(self.answer,)
        )


Episode = Sequence[Block]
"""The demonstrations, then the query."""


def make_block(
    keys: tuple[Key, ...], words: Lexicon | None, rng: random.Random, seen: Sequence[Key] = ()
) -> Block:
    """A block that asks for `keys`, in English without words. `seen`: keys of earlier blocks."""
    return Block(
        keys=keys,
        image=GlyphImage.draw_for(keys, rng),
        question=ask([key.attribute for key in keys], rng, english=words is None),
        answer=keys[0].value if words is None else words.names(keys)[0],
        answerable=words is None or set(keys) <= set(seen),
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
        blocks.append(make_block((key,), lexicon, rng, keys))
        keys.append(key)
    return blocks


def pair_episode(rng: random.Random, length: int, words: Sequence[str]) -> Episode:
    """An episode whose last block asks for two words, each shown by another one before it."""
    lexicon = Lexicon.draw(rng, tuple(words))
    asked = random_pair(rng)
    keys = list(asked)
    while len(keys) < length - 1:
        keys.append(rng.choice(asked) if rng.random() < 0.1 else other_key(rng, asked, 0.5))
    rng.shuffle(keys)
    blocks = [make_block((key,), lexicon, rng, keys[:place]) for place, key in enumerate(keys)]
    return [*blocks, make_block(asked, lexicon, rng, asked)]


def other_key(rng: random.Random, asked: Sequence[Key], rivals: float) -> Key:
    """A key that is not asked for; with probability `rivals` it has such a key's value."""
    if rng.random() < rivals:
        key = rng.choice(asked)
        return key._replace(stamped=not key.stamped)
    while True:
        key = random_key(rng)
        if key not in asked:
            return key


@dataclass(frozen=True)
class Case:
    """A situation in which the model is measured."""

    name: str
    goal: float
    """The accuracy to reach or, with `at_most`, not to exceed."""
    shots: int
    positions: tuple[int | None, ...] = (None,)
    """Where the only demonstration of each word that is asked for stands; None: nowhere."""
    rivals: float = 0.0
    """Share of the other demonstrations that have a value asked for, but the other stamp."""
    english: bool = False
    """Whether the query is to be answered in English; demonstrations are not."""
    at_most: bool = False

    def is_met(self, accuracy: float) -> bool:
        """Whether an accuracy is within the goal."""
        return accuracy <= self.goal if self.at_most else accuracy >= self.goal

    def episode(self, rng: random.Random, lexicon: Lexicon) -> Episode:
        """A random episode of this case."""
        asked = random_pair(rng) if len(self.positions) == 2 else (random_key(rng),)
        keys = [
            asked[self.positions.index(place)]
            if place in self.positions
            else other_key(rng, asked, self.rivals)
            for place in range(self.shots)
        ]
        blocks = [make_block((key,), lexicon, rng) for key in keys]
        return [*blocks, make_block(asked, None if self.english else lexicon, rng, asked)]


def _pair(shots: int, first: int, second: int, goal: float) -> Case:
    return Case(
        f"two words among {shots} with rivals, positions {first} and {second}",
        goal,
        shots,
        (first - 1, second - 1),
        rivals=0.5,
    )


CASES = (
    Case("English naming, no demonstration", 0.98, 0, english=True),
    Case("one relevant demonstration alone", 0.97, 1, (0,)),
    *(Case(f"one relevant among two, position {p + 1}", 0.97, 2, (p,)) for p in range(2)),
    *(Case(f"one relevant among four, position {p + 1}", 0.95, 4, (p,)) for p in range(4)),
    *(Case(f"beside a rival, position {p + 1} of 2", 0.95, 2, (p,), rivals=1) for p in range(2)),
    Case("two demonstrations, none relevant", 0.02, 2, at_most=True),
    *(_pair(2, *places, 0.98) for places in ((1, 2), (2, 1))),
    *(_pair(3, *places, 0.98) for places in ((1, 3), (3, 2))),
    *(_pair(4, *places, 0.98) for places in ((1, 4), (3, 2), (4, 3))),
    *(_pair(6, *places, 0.95) for places in ((1, 6), (3, 2), (5, 4))),
    Case("two words, only the first shown, among two", 0.02, 2, (0, None), 0.5, at_most=True),
    Case("two words, only the second shown, among two", 0.02, 2, (None, 0), 0.5, at_most=True),
    Case("two words, only the first shown, among four", 0.02, 4, (2, None), 0.5, at_most=True),
    *(
        Case(f"English naming after {shots} in made-up words", goal, shots, (None,), 0, True, True)
        for shots, goal in ((1, 0.98), (2, 0.95), (4, 0.9))
    ),
)
