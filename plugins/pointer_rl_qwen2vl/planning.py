"""The plan of a forward pass: shared prefixes, M-RoPE positions, and the tree of answers to score.

An element of a prompt is a token (≥ 0) or an image (< 0). Images are not split: a prefix ends
before or after an image. Prompts are sorted, so the common-prefix lengths of neighbours determine
the trie of prefixes.

M-RoPE gives a text token the same position in time, height and width, one more than the token
before it. An image's tokens share the next position in time and count rows and columns from there.
Text after an image resumes at that position plus max(rows, columns). A piece's positions therefore
depend on what precedes it only through its first position, so a piece after a shared prefix gets
the positions that it has in the whole prompt.

The answers to score after a prompt are merged into a tree of tokens, which follows the prompt in
the same forward pass. Place 0 is the prompt's last token, and place 1 + n is token n of the tree.
An answer's first token is predicted at place 0, and the token that ends it at the place of its last
token.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pointer_rl_qwen2vl.vision import Features


@dataclass(frozen=True)
class Prefix:
    """Elements `start` to `end` of the prompt `row`, which several prompts share."""

    row: int
    start: int
    """The end of its parent; 0 without a parent."""
    end: int
    parent: int | None
    """Index of the prefix before it."""
    depth: int
    """Number of prefixes before it."""


@dataclass(frozen=True)
class Prefixes:
    """The shared prefixes of some prompts, parents before children."""

    nodes: tuple[Prefix, ...]
    parents: tuple[int | None, ...]
    """For each prompt, the index of the longest shared prefix that it begins with."""


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix of two prompts, excluding the last element of each.

    The last element of a prompt is never shared, since its output predicts that prompt's answer.
    """
    longest = min(len(one), len(other)) - 1
    for place in range(longest):
        if one[place] != other[place]:
            return place
    return longest


def find_prefixes(
    prompts: Sequence[Sequence[int]], tokens: Callable[[int], int], min_saving: int
) -> Prefixes:
    """Find the prefixes that each save at least `min_saving` tokens by being computed once.

    A prefix that saves less is computed with each prompt that has it, since every level of prefixes
    takes another forward pass. The prompts must be sorted. `tokens` returns the number of tokens of
    an element.
    """
    shared = [common_length(*pair) for pair in itertools.pairwise(prompts)]
    nodes: list[Prefix] = []
    parents: list[int | None] = [None] * len(prompts)

    def visit(first: int, last: int, parent: int | None) -> None:
        """Split prompts first..last, which share `parent`, where they branch."""
        start = 0 if parent is None else nodes[parent].end
        end = min(shared[first:last])
        branches = [place for place in range(first, last) if shared[place] == end]
        width = sum(map(tokens, prompts[first][start:end]))
        if width and width * len(branches) >= min_saving:
            depth = 0 if parent is None else nodes[parent].depth + 1
            nodes.append(Prefix(first, start, end, parent, depth))
            parent = len(nodes) - 1
        edges = [first, *(place + 1 for place in branches), last + 1]
        for begin, after in itertools.pairwise(edges):
            if after - begin == 1:
                parents[begin] = parent
            else:
                pending.append((begin, after - 1, parent))

    # A stack instead of recursion: a long chat could exceed Python's recursion limit.
    pending: list[tuple[int, int, int | None]] = []
    if len(prompts) > 1:
        pending.append((0, len(prompts) - 1, None))
    while pending:
        visit(*pending.pop())
    return Prefixes(tuple(nodes), tuple(parents))


@dataclass(frozen=True)
class Layout:
    """A piece of a prompt, L tokens long."""

    token_ids: list[int]
    positions: NDArray[np.int64]
    """[3, L] positions in time, height and width."""
    images: tuple[tuple[int, Features], ...]
    """The index of each image's first token, and the image's features."""
    next_position: int
    """Position of the token after the piece."""


def lay_out(
    elements: Sequence[int], first: int, features: Callable[[int], Features], image_token_id: int
) -> Layout:
    """Lay out tokens (≥ 0) and images (< 0); the first one is at position `first`."""
    token_ids: list[int] = []
    images: list[tuple[int, Features]] = []
    parts: list[NDArray[np.int64]] = []
    position = first
    run = 0  # Number of text tokens since the last image.
    for element in elements:
        if element >= 0:
            token_ids.append(element)
            run += 1
            continue
        parts.append(_text(run) + position)
        position += run
        run = 0
        image = features(element)
        images.append((len(token_ids), image))
        rows, columns = image.grid
        token_ids += [image_token_id] * (rows * columns)
        parts.append(_grid(rows, columns) + position)
        position += max(rows, columns)
    parts.append(_text(run) + position)
    return Layout(token_ids, np.concatenate(parts, axis=1), tuple(images), position + run)


@lru_cache(maxsize=1024)
def _text(length: int) -> NDArray[np.int64]:
    return np.broadcast_to(np.arange(length), (3, length))


@lru_cache(maxsize=1024)
def _grid(rows: int, columns: int) -> NDArray[np.int64]:
    """[3, rows · columns]"""
    down, across = np.divmod(np.arange(rows * columns), columns)
    return np.stack([np.zeros_like(down), down, across])


@dataclass(frozen=True)
class AnswerTree:
    """Answers merged into a tree, parents before children. It is empty without answers."""

    token_ids: tuple[int, ...]
    depths: NDArray[np.int64]
    """[n] number of ancestors of each token in the tree."""
    unrelated: NDArray[np.int64]
    """[2, pairs] a token, and an earlier one that is not among its ancestors."""
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
        unrelated = np.argwhere(np.tri(len(token_ids), dtype=np.bool_) & ~visible).T
        return cls(tuple(token_ids), depths, unrelated, children, tuple(predicted))


NO_ANSWERS = AnswerTree.merge((), end=0)
"""The empty tree."""
