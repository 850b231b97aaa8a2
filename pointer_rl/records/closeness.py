"""The similarity of an answer to the annotators' answers: vqa_rel_score, as in Lever-Plus.

    closeness(a, G)       = max over g in G of max(F1(a, g), 1 - edits(a, g) / max(|a|, |g|))

F1 compares multisets of words; edits is the Levenshtein distance in characters. All values are in
[0, 1]: 1 for equal strings, 0 if G is empty. Strings are compared as they are, so normalise them
first with the metric that judges.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache


def word_f1(first: str, second: str) -> float:
    """F1 of the words of two answers."""
    if first == second:
        return 1.0
    words, others = first.split(), second.split()
    if not words or not others:
        return float(words == others)
    shared = (Counter(words) & Counter(others)).total()
    return 2 * shared / (len(words) + len(others))


@lru_cache(maxsize=1 << 14)  # the candidates of a query mostly give the same few answers
def edit_similarity(first: str, second: str) -> float:
    """1 for equal answers, 0 if as many characters are edited as the longer one has."""
    if first == second:
        return 1.0
    if not first or not second:
        return 0.0
    row = list(range(len(second) + 1))  # edits from the empty string to each prefix of second
    for length, character in enumerate(first, start=1):
        above_left, row[0] = row[0], length
        for place, other in enumerate(second, start=1):
            replaced = above_left + (character != other)
            above_left = row[place]
            row[place] = min(replaced, above_left + 1, row[place - 1] + 1)
    return 1 - row[-1] / max(len(first), len(second))
