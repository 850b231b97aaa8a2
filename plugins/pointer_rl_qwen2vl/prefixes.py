"""Find common prefixes of prompts, to compute them once.

An element of a prompt is a token (≥ 0) or an image (< 0). Images are not split: a prefix ends
before or after an image. Prompts are sorted, so that prompts with a common prefix are neighbours,
and the lengths that neighbours share determine the trie of prefixes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass


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
    """The number of elements that two prompts share at the start, without their last elements.

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
    if len(prompts) == 1:
        return Prefixes((), (None,))
    if prompts:
        pending.append((0, len(prompts) - 1, None))
    while pending:
        visit(*pending.pop())
    return Prefixes(tuple(nodes), tuple(parents))
