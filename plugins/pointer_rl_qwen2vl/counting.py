"""The tokens of requests, counted without running them: for `generate --plan`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pointer_rl.types import Count
from pointer_rl_qwen2vl import chunk
from pointer_rl_qwen2vl.continuations import AnswerTree
from pointer_rl_qwen2vl.jobs import Job
from pointer_rl_qwen2vl.patches import ImagePatches, PatchStore
from pointer_rl_qwen2vl.prefixes import find_prefixes
from pointer_rl_qwen2vl.window import Window

__all__ = ["count_tokens"]


def count_tokens(jobs: Sequence[Job], patches: PatchStore, image_token_id: int) -> Count:
    """Of the jobs whose images can be opened, as one window of engine=shared takes them.

    Images are opened and cut, for their size decides how many tokens they are.
    """
    window = Window(jobs, generates=True, image_token_id=image_token_id, answer_tokens=sys.maxsize)
    found = list(patches.find(window.images))
    widths = {
        number: each.tokens
        for number, place in window.places.items()
        if isinstance(each := found[place], ImagePatches)
    }

    def width(element: int) -> int:
        return 1 if element >= 0 else widths[element]

    rows = [row for row in window.rows if all(e >= 0 or e in widths for e in row.elements)]
    whole = [sum(map(width, row.elements)) for row in rows]
    plan = find_prefixes([row.elements for row in rows], width, chunk.WORTH)
    shared = sum(sum(map(width, rows[n.row].elements[n.start : n.end])) for n in plan.nodes)
    own = [
        sum(map(width, row.elements[0 if parent is None else plan.nodes[parent].end :]))
        for row, parent in zip(rows, plan.parents, strict=True)
    ]
    trees = [AnswerTree.merge(row.answer_tokens, end=0) for row in rows]
    return Count(
        prompt_tokens=sum(whole) + sum(len(each) for row in rows for each in row.answer_tokens),
        unique_tokens=shared + sum(own) + sum(len(tree.token_ids) for tree in trees),
    )
