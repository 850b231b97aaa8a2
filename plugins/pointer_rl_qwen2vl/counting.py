"""Count the tokens of requests without running them, for `generate --plan`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pointer_rl.types import Count
from pointer_rl_qwen2vl import chunk
from pointer_rl_qwen2vl.continuations import AnswerTree
from pointer_rl_qwen2vl.patches import ImagePatches, PatchCache
from pointer_rl_qwen2vl.prefixes import find_prefixes
from pointer_rl_qwen2vl.requests import TokenisedRequest
from pointer_rl_qwen2vl.rows import SortedRows


def count_tokens(
    requests: Sequence[TokenisedRequest], patches: PatchCache, image_token_id: int
) -> Count:
    """Count the tokens that engine=shared computes for these requests in one call.

    Images are opened and cut into patches, since their size determines their number of tokens.
    Requests with an image that cannot be opened are not counted.
    """
    sorted_rows = SortedRows(
        requests, generates=True, image_token_id=image_token_id, answer_tokens=sys.maxsize
    )
    found = list(patches.find(sorted_rows.images))
    widths = {
        number: each.tokens
        for number, index in sorted_rows.image_indices.items()
        if isinstance(each := found[index], ImagePatches)
    }

    def width(element: int) -> int:
        return 1 if element >= 0 else widths[element]

    rows = [row for row in sorted_rows.rows if all(e >= 0 or e in widths for e in row.elements)]
    whole = [sum(map(width, row.elements)) for row in rows]
    plan = find_prefixes([row.elements for row in rows], width, chunk.MIN_SAVING)
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
