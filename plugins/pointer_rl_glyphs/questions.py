"""Question wordings.

Wordings of different attributes mostly differ in one word, while those of the same attribute differ
a lot: similar questions may ask about different attributes, and dissimilar ones about the same.
"""

from __future__ import annotations

import random

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
IN_ENGLISH = " Answer in English."

WORDINGS = {
    attribute: tuple(template.format(noun=noun) for template in _TEMPLATES for noun in nouns)
    + _OWN[attribute]
    for attribute, nouns in _NOUNS.items()
}
"""Attribute → its questions."""


def ask(attribute: str, rng: random.Random, english: bool = False) -> str:
    """A question about an attribute, to be answered in the made-up language or in English."""
    return rng.choice(WORDINGS[attribute]) + (IN_ENGLISH if english else "")
