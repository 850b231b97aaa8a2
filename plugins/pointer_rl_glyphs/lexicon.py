"""Made-up words, and what they mean in a lexicon.

A word is two of 48 syllables. The words are split once: the embedded model was trained on
TRAINING_WORDS, and datasets, whatever their seed, only use DATASET_WORDS. So a question of a
dataset cannot be answered without a demonstration that shows the word.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "cyan")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
PATTERNS = ("solid", "striped", "dotted", "outline")
VALUES = {"color": COLORS, "shape": SHAPES, "pattern": PATTERNS}
"""Attribute → its values, by their English names."""

JOINER = "-"
"""Between the words of an answer with several: each keeps its tokens, as after a space it would
not."""
SYLLABLES = tuple(consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeio")


class Key(NamedTuple):
    """What a word means: a value of an attribute, in one of the two communities.

    One community stamps its images, the other does not.
    """

    attribute: str
    value: str
    stamped: bool


KEYS = tuple(
    Key(attribute, value, stamped)
    for attribute, values in VALUES.items()
    for value in values
    for stamped in (False, True)
)


def random_key(rng: random.Random, attribute: str | None = None) -> Key:
    """A key, uniform over attributes (or of the given one), then over values."""
    attribute = attribute or rng.choice(tuple(VALUES))
    return Key(attribute, rng.choice(VALUES[attribute]), rng.random() < 0.5)


def random_pair(rng: random.Random) -> tuple[Key, Key]:
    """Keys of two attributes that one image shows, in random order."""
    attributes = rng.sample(tuple(VALUES), 2)
    stamped = rng.random() < 0.5
    first, second = (Key(each, rng.choice(VALUES[each]), stamped) for each in attributes)
    return first, second


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
    """The usual word and a rarer synonym of each key; no word has two meanings."""

    words: dict[Key, tuple[str, str]]

    @classmethod
    def draw(cls, rng: random.Random, words: tuple[str, ...]) -> Lexicon:
        """A lexicon of words drawn from `words`."""
        drawn = rng.sample(words, 2 * len(KEYS))
        return cls(dict(zip(KEYS, zip(drawn[::2], drawn[1::2], strict=True), strict=True)))

    def names(self, keys: Sequence[Key]) -> tuple[str, str]:
        """The usual words for these keys, joined, and their synonyms, joined."""
        usual, synonyms = zip(*(self.words[key] for key in keys), strict=True)
        return JOINER.join(usual), JOINER.join(synonyms)

    def annotate(
        self, keys: Sequence[Key], rng: random.Random, annotators: int = 10
    ) -> tuple[str, ...]:
        """The annotators' answers: the usual words or, each with probability 0.15, the synonyms.

        The usual ones keep the majority, because a demonstration shows the most frequent answer.
        """
        usual, synonym = self.names(keys)
        rare = min(sum(rng.random() < 0.15 for _ in range(annotators)), (annotators - 1) // 2)
        answers = [usual] * (annotators - rare) + [synonym] * rare
        rng.shuffle(answers)
        return tuple(answers)
