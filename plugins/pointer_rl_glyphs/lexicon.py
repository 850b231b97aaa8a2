"""Made-up words: which exist, who may use them, and what they mean in one lexicon.

A word is two of 48 syllables. The words are split once and for all: TRAINING_WORDS are what the
embedded model was trained on, DATASET_WORDS are all that any dataset, whatever its seed, can use.
So nobody can answer a dataset's question without having seen the word used in a demonstration.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "cyan")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
PATTERNS = ("solid", "striped", "dotted", "outline")
VALUES = {"color": COLORS, "shape": SHAPES, "pattern": PATTERNS}
"""Attribute → its values, by their English names."""

SYLLABLES = tuple(consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeio")


class Key(NamedTuple):
    """What an answer word names: a value, in the community that stamps its pictures or not."""

    attribute: str
    value: str
    stamped: bool


KEYS = tuple(
    Key(attribute, value, stamped)
    for attribute, values in VALUES.items()
    for value in values
    for stamped in (False, True)
)


def _split_words() -> tuple[tuple[str, ...], tuple[str, ...]]:
    english = [value for values in VALUES.values() for value in values]
    words = [
        word
        for word in (first + second for first in SYLLABLES for second in SYLLABLES)
        if not any(word in value for value in english)
    ]
    random.Random("glyph words").shuffle(words)
    return tuple(words[:1536]), tuple(words[1536:])


TRAINING_WORDS, DATASET_WORDS = _split_words()


@dataclass(frozen=True)
class Lexicon:
    """For each key the usual word and a rarer synonym; no word means two things."""

    words: dict[Key, tuple[str, str]]

    @classmethod
    def draw(cls, rng: random.Random, words: tuple[str, ...]) -> Lexicon:
        """A lexicon of words drawn from `words`."""
        drawn = rng.sample(words, 2 * len(KEYS))
        return cls(dict(zip(KEYS, zip(drawn[::2], drawn[1::2], strict=True), strict=True)))

    def annotate(self, key: Key, rng: random.Random, annotators: int = 10) -> tuple[str, ...]:
        """What the annotators answer: each the usual word, or with chance 0.15 its synonym.

        The usual word keeps the majority: it is what a demonstration shows.
        """
        usual, synonym = self.words[key]
        rare = min(sum(rng.random() < 0.15 for _ in range(annotators)), (annotators - 1) // 2)
        answers = [usual] * (annotators - rare) + [synonym] * rare
        rng.shuffle(answers)
        return tuple(answers)
