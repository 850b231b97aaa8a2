"""What prompts have in common, to be computed once: a trie over tokens and images.

An element is a token (≥ 0) or an image (< 0), which is never cut: a prefix ends before an image or
after it. Prompts come sorted, so that those with a common prefix are neighbours, and the trie is
read off the lengths that neighbours share, without ever being built node by node.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Prefix", "Prefixes", "common_length", "find_prefixes"]


@dataclass(frozen=True)
class Prefix:
    """Elements `start` to `end` of the prompt `row`, shared by several prompts."""

    row: int
    start: int
    """Where its parent ends; 0 without one."""
    end: int
    parent: int | None
    """Index of the prefix that stands before it."""
    depth: int
    """How many stand before it."""


@dataclass(frozen=True)
class Prefixes:
    """The shared prefixes of some prompts, parents before children."""

    nodes: tuple[Prefix, ...]
    parents: tuple[int | None, ...]
    """Of each prompt: the longest shared prefix that it begins with."""


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many elements the two have in common from the first on, but one fewer than either has.

    The last element of a prompt is computed for each anew: what comes after it is its own.
    """
    longest = min(len(one), len(other)) - 1
    for place in range(longest):
        if one[place] != other[place]:
            return place
    return longest


def find_prefixes(
    prompts: Sequence[Sequence[int]], tokens: Callable[[int], int], worth: int
) -> Prefixes:
    """The prefixes that save at least `worth` tokens each by being computed once.

    prompts: sorted; `tokens`: of an element. A prefix that saves less is left to those who share
    it: every prefix is a further pass through the model that others wait for.
    """
    shared = [common_length(*pair) for pair in itertools.pairwise(prompts)]
    nodes: list[Prefix] = []
    parents: list[int | None] = [None] * len(prompts)

    def visit(first: int, last: int, parent: int | None) -> None:
        """Split prompts first..last, which have `parent` in common, where they branch."""
        start = 0 if parent is None else nodes[parent].end
        end = min(shared[first:last])
        branches = [place for place in range(first, last) if shared[place] == end]
        width = sum(map(tokens, prompts[first][start:end]))
        if width and width * len(branches) >= worth:
            depth = 0 if parent is None else nodes[parent].depth + 1
            nodes.append(Prefix(first, start, end, parent, depth))
            parent = len(nodes) - 1
        edges = [first, *(place + 1 for place in branches), last + 1]
        for begin, after in itertools.pairwise(edges):
            if after - begin == 1:
                parents[begin] = parent
            else:
                pending.append((begin, after - 1, parent))

    # A stack, not recursion: a long chat could branch deeper than Python recurses.
    pending: list[tuple[int, int, int | None]] = []
    if len(prompts) == 1:
        return Prefixes((), (None,))
    if prompts:
        pending.append((0, len(prompts) - 1, None))
    while pending:
        visit(*pending.pop())
    return Prefixes(tuple(nodes), tuple(parents))
