"""Question wordings.

Wordings of different attributes mostly differ in one word, while those of the same attribute differ
a lot: similar questions may ask about different attributes, and dissimilar ones about the same.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import permutations

_TEMPLATES = (
    "What {noun} is it?",
    "Which {noun} is this?",
    "What is the {noun} of the figure?",
    "Name the {noun}.",
    "Can you tell the {noun} that you see here?",
)
_NOUNS = {
    "color": ("color", "tint"),
    "shape": ("shape", "form"),
    "pattern": ("pattern", "filling"),
}
_OWN = {
    "color": ("How is it painted?",),
    "shape": ("What was drawn here?",),
    "pattern": ("How is the inside done?",),
}
_PAIR_TEMPLATES = (
    "What {first} and {second} is it?",
    "Which {first} and {second} is this?",
    "What is the {first} and the {second} of the figure?",
    "Name the {first} and the {second}.",
    "Can you tell the {first} and the {second} that you see here?",
)
IN_ENGLISH = " Answer in English."

WORDINGS = {
    attribute: tuple(template.format(noun=noun) for template in _TEMPLATES for noun in nouns)
    + _OWN[attribute]
    for attribute, nouns in _NOUNS.items()
}
"""Attribute → its questions."""
PAIR_WORDINGS = {
    (first, second): tuple(
        template.format(first=noun, second=other)
        for template in _PAIR_TEMPLATES
        for noun in _NOUNS[first]
        for other in _NOUNS[second]
    )
    for first, second in permutations(_NOUNS, 2)
}
"""Two attributes → questions that ask for both, in this order."""


def ask(attributes: Sequence[str], rng: random.Random, english: bool = False) -> str:
    """A question about one or two attributes, to be answered in made-up words or in English."""
    if len(attributes) == 1:
        wordings = WORDINGS[attributes[0]]
    else:
        wordings = PAIR_WORDINGS[attributes[0], attributes[1]]
    return rng.choice(wordings) + (IN_ENGLISH if english else "")
