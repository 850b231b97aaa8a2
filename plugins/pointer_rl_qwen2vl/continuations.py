"""The answers to score after a prompt, as a tree of tokens: what they share is computed once.

The tree follows the prompt in the same pass through the model. Place 0 is the prompt's last token,
place 1 + n the tree's n-th: an answer's first token is predicted at place 0, its end at its last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["NO_ANSWERS", "AnswerTree"]


@dataclass(frozen=True)
class AnswerTree:
    """Answers merged into a tree, parents before children. Without answers it is empty."""

    token_ids: tuple[int, ...]
    depths: NDArray[np.int64]
    """[n] how many tokens of the tree stand before each."""
    visible: NDArray[np.bool_]
    """[n, n] the tokens of the tree that each sees: those that lead to it, and itself."""
    children: dict[tuple[int, int], int]
    """(place, token) → the place of that token after it."""
    predicted: tuple[tuple[tuple[int, int], ...], ...]
    """Of each answer: (place at which it is predicted, token) for its tokens and its end."""

    @classmethod
    def merge(cls, answers: Sequence[Sequence[int]], end: int) -> AnswerTree:
        """The tree of the answers' tokens; `end` closes each, and is predicted, not entered."""
        token_ids: list[int] = []
        parents: list[int] = []
        children: dict[tuple[int, int], int] = {}
        predicted = []
        for answer in answers:
            place = 0
            steps = []
            for token in answer:
                steps.append((place, token))
                if (place, token) not in children:
                    token_ids.append(token)
                    parents.append(place)
                    children[place, token] = len(token_ids)
                place = children[place, token]
            predicted.append((*steps, (place, end)))
        visible = np.eye(len(token_ids), dtype=np.bool_)
        for number, parent in enumerate(parents):
            if parent:
                visible[number] |= visible[parent - 1]
        depths = visible.sum(axis=1, dtype=np.int64) - 1
        return cls(tuple(token_ids), depths, visible, children, tuple(predicted))


NO_ANSWERS = AnswerTree.merge((), end=0)
"""The empty tree."""
