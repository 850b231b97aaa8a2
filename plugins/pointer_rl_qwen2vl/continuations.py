"""The answers to score after a prompt, merged into a tree of tokens to compute common tokens once.

The tree follows the prompt in the same forward pass. Place 0 is the prompt's last token, and place
1 + n is token n of the tree. An answer's first token is predicted at place 0, and the token that
ends it at the place of its last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class AnswerTree:
    """Answers merged into a tree, parents before children. It is empty without answers."""

    token_ids: tuple[int, ...]
    depths: NDArray[np.int64]
    """[n] number of ancestors of each token in the tree."""
    visible: NDArray[np.bool_]
    """[n, n] the tokens of the tree that each token attends to: its ancestors and itself."""
    children: dict[tuple[int, int], int]
    """(place, token) → the place of this token after that place."""
    predicted: tuple[tuple[tuple[int, int], ...], ...]
    """For each answer, (place of the prediction, token) of its tokens and of its end."""

    @classmethod
    def merge(cls, answers: Sequence[Sequence[int]], end: int) -> AnswerTree:
        """Merge answers. The token `end` closes each; it is predicted but not in the tree."""
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
