"""Greedy decoding of prefilled rows.

Prefill also computes the answers to score. While the likeliest token follows a path of their tree,
the prediction after it is already known, as in speculative decoding. After the first token outside
the tree, each token takes a forward pass of all rows together. Its tokens are moved to the CPU, to
see which rows have ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from pointer_rl.local.decoding import text_of
from pointer_rl.local.stop_strings import find_stop
from pointer_rl.types import Decoding
from pointer_rl_qwen2vl.checkpoint import Checkpoint
from pointer_rl_qwen2vl.keyvalues import RowCache
from pointer_rl_qwen2vl.language import OVERFLOWED, LanguageModel
from pointer_rl_qwen2vl.planning import AnswerTree
from pointer_rl_qwen2vl.steps import Steps
from pointer_rl_qwen2vl.transfer import to_device


class StopCriterion:
    """Whether a row's generation ends with its last token."""

    def __init__(self, checkpoint: Checkpoint, decoding: Decoding) -> None:
        self._checkpoint = checkpoint
        self._stop_ids = frozenset(checkpoint.stop_ids)
        self.decoding = decoding

    def __call__(self, tokens: Sequence[int]) -> bool:
        if tokens[-1] in self._stop_ids or len(tokens) == self.decoding.max_new_tokens:
            return True
        stop = self.decoding.stop
        return bool(stop) and find_stop(text_of(tokens, self._checkpoint), stop) is not None


@dataclass
class DecodingRow:
    """A row that is being decoded."""

    visible: NDArray[np.int64]
    """Columns of the row's cache that its next token attends to."""
    next_position: int
    """Position of its next token."""
    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    overflows: bool = False
    """The model's output was not finite."""

    def add(self, token: int, stop: StopCriterion) -> None:
        """Add the next token."""
        if token == OVERFLOWED:
            self.overflows = self.ended = True
            return
        self.tokens.append(token)
        self.ended = stop(self.tokens)

    def follow(
        self,
        tree: AnswerTree,
        best: Sequence[int],
        columns: range,
        stop: StopCriterion,
    ) -> None:
        """Add tokens as far as the answer tree predicts them.

        `best` has the likeliest token after each place of the tree, and `columns` the columns of
        the tree's tokens in the row's cache.
        """
        place = 0
        path = []
        while True:
            self.add(best[place], stop)
            following = tree.children.get((place, best[place]))
            if self.ended or following is None:
                break
            place = following
            path.append(columns[place - 1])
        self.visible = np.concatenate([self.visible, np.array(path, dtype=np.int64)])
        self.next_position += len(path)


@torch.inference_mode()
def decode(
    model: LanguageModel,
    steps: Steps,
    cache: RowCache,
    rows: Sequence[DecodingRow],
    stop: StopCriterion,
) -> None:
    """Decode every row to its end, in place. A row's last token is the next model input.

    The first rows of the cache are those of `rows`, in order, with free columns for the new tokens.
    Masked columns may hold any finite value.
    """
    rows = list(rows)
    columns = cache.tensors[0].shape[1]
    visible = np.zeros((len(rows), columns), dtype=np.bool_)
    for number, row in enumerate(rows):
        visible[number, row.visible] = True
    mask = model.mask(to_device(visible, model.device))
    positions = to_device(np.array([row.next_position for row in rows]), model.device)
    while active := [number for number, row in enumerate(rows) if not row.ended]:
        # Ended rows are removed only once they are half of all: copying the others is expensive.
        if 2 * len(active) <= len(rows):
            numbers = to_device(np.array(active), model.device)
            cache.keep(numbers)
            mask, positions = mask[numbers], positions[numbers]
            rows = [rows[number] for number in active]
        mask[:, cache.places] = 0.0
        # For a row that has ended, any token will do; one that overflowed may have none.
        last = [row.tokens[-1] if row.tokens else 0 for row in rows]
        best = steps.run(to_device(np.array(last), model.device), positions, mask, cache)
        positions += 1
        for row, token in zip(rows, best, strict=True):
            if not row.ended:
                row.add(token, stop)
