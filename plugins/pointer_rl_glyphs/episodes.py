"""Episodes: solved examples in a row, as the model meets them in a prompt.

Used to train the embedded model (words of TRAINING_WORDS) and, with the words of datasets, to
measure it case by case.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from pointer_rl.types import Example
from pointer_rl_glyphs.lexicon import VALUES, Key, Lexicon
from pointer_rl_glyphs.pictures import Picture
from pointer_rl_glyphs.questions import ask


@dataclass(frozen=True)
class Block:
    """One solved example."""

    key: Key
    picture: Picture
    question: str
    answer: str
    answerable: bool
    """Whether the blocks before it (or plain English) decide its answer."""

    @property
    def example(self) -> Example:
        """The block as a prompt builder takes it."""
        return Example(
            id="", row=0, image=self.picture, question=self.question, answers=(self.answer,)
        )


Episode = Sequence[Block]
"""Demonstrations and, last, the query."""


def make_block(
    key: Key, words: Lexicon | None, rng: random.Random, seen: Sequence[Key] = ()
) -> Block:
    """A block that asks for `key`; without words it is asked and answered in English."""
    return Block(
        key=key,
        picture=Picture.draw_for(key, rng),
        question=ask(key.attribute, rng, english=words is None),
        answer=key.value if words is None else words.words[key][0],
        answerable=words is None or key in seen,
    )


def random_key(rng: random.Random, attribute: str | None = None) -> Key:
    """A key, uniform over attributes, then over values."""
    attribute = attribute or rng.choice(tuple(VALUES))
    return Key(attribute, rng.choice(VALUES[attribute]), rng.random() < 0.5)


def training_episode(
    rng: random.Random,
    length: int,
    words: Sequence[str],
    repeats: float = 0.4,
    english: float = 0.2,
) -> Episode:
    """Blocks of which some repeat a key or stand beside a rival, so that they must be told apart.

    `repeats`: chance that a block asks for an earlier one's key; `english`: that the episode is in
    English.
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
    """The accuracy it is to reach (for `none relevant`: at most)."""
    shots: int
    relevant: int | None = None
    """Position of the one relevant demonstration."""
    rival: bool = False
    """Every other demonstration has the query's value and the other stamp."""
    english: bool = False

    def episode(self, rng: random.Random, lexicon: Lexicon) -> Episode:
        """One drawn at random."""
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
