"""Normalise answers as the official VQA evaluation does before it compares them.

Source: VQAEval of https://github.com/GT-Vision-Lab/VQA (Antol et al., 2015; Goyal et al., 2017).
Its tables and rules are reproduced exactly, oddities included, so that accuracies can be compared
with published ones.
"""

from __future__ import annotations

import re
from functools import lru_cache

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't
    mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll
    you're you've
"""
# A word without one of its apostrophes → the word. The official table spells this rule out, and has
# one entry in the other direction. Its entries without effect are left out, such as "Im": answers
# are lower-cased first.
CONTRACTIONS = {
    word[: mark.start()] + word[mark.end() :]: word
    for word in CONTRACTED.split()
    for mark in re.finditer("'", word)
} | {"somebody'd": "somebodyd"}

_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD_NOT_BEFORE_DIGIT = re.compile(r"\.(?!\d)")
# The official code passes the flag re.UNICODE where re.sub expects the number of replacements.
_MOST_PERIODS = int(re.UNICODE)


def clean_whitespace(answer: str) -> str:
    """Turn newlines and tabs into spaces, and strip the ends. The evaluation always does this."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=2**16)
def normalise(answer: str) -> str:
    """Remove punctuation, case and articles; write numbers as digits; restore apostrophes.

    The official evaluation does this only if the annotators do not all agree.
    """
    words = _strip_punctuation(clean_whitespace(answer)).lower().split()
    digits = (NUMBERS.get(word, word) for word in words)
    return " ".join(CONTRACTIONS.get(word, word) for word in digits if word not in ARTICLES)


def _strip_punctuation(answer: str) -> str:
    """Remove marks that touch a space, or all if the answer has a number like 1,000; turn the
    others into spaces. Remove periods, except before a digit.
    """
    stripped = answer
    has_number = _COMMA_IN_NUMBER.search(answer)
    for mark in PUNCTUATION:
        if mark in answer:
            remove = has_number or f"{mark} " in answer or f" {mark}" in answer
            stripped = stripped.replace(mark, "" if remove else " ")
    return _PERIOD_NOT_BEFORE_DIGIT.sub("", stripped, count=_MOST_PERIODS)
