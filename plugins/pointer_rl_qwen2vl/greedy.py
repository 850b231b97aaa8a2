"""Greedy decoding of rows that have been prefilled.

A row's first tokens may be known already: where the likeliest token is one of the answers' that
were scored, the tree has its successor too. A row leaves the tree with the first token that the
tree does not have; from there on each token is a pass through the model, all rows together.

The tokens of a step are brought to the CPU at once: one transfer a step, to see which rows ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from pointer_rl.local.decoding import first_stop, text_of
from pointer_rl.types import Decoding
from pointer_rl_qwen2vl.checkpoint import Checkpoint
from pointer_rl_qwen2vl.continuations import AnswerTree
from pointer_rl_qwen2vl.keyvalues import RowCache
from pointer_rl_qwen2vl.language import OVERFLOWED, LanguageModel

__all__ = ["Ending", "Writer", "decode"]


class Ending:
    """Whether a row's generation ends with its last token."""

    def __init__(self, checkpoint: Checkpoint, decoding: Decoding) -> None:
        self._checkpoint = checkpoint
        self._stop_ids = frozenset(checkpoint.stop_ids)
        self.decoding = decoding

    def __call__(self, tokens: Sequence[int]) -> bool:
        if tokens[-1] in self._stop_ids or len(tokens) == self.decoding.max_new_tokens:
            return True
        stop = self.decoding.stop
        return bool(stop) and first_stop(text_of(tokens, self._checkpoint), stop) is not None


@dataclass
class Writer:
    """A row that is being decoded."""

    visible: NDArray[np.int64]
    """Columns of the row's cache that its next token sees."""
    next_position: int
    """Of its next token."""
    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    overflows: bool = False
    """The model's output was no number."""

    def add(self, token: int, ends: Ending) -> None:
        """The next token."""
        if token == OVERFLOWED:
            self.overflows = self.ended = True
            return
        self.tokens.append(token)
        self.ended = ends(self.tokens)

    def follow(
        self,
        tree: AnswerTree,
        best: Sequence[int],
        columns: range,
        ends: Ending,
    ) -> None:
        """Write as far as the tree goes: best[place] is the likeliest token after that place."""
        place = 0
        path = []
        while True:
            self.add(best[place], ends)
            following = tree.children.get((place, best[place]))
            if self.ended or following is None:
                break
            place = following
            path.append(columns[place - 1])
        self.visible = np.concatenate([self.visible, np.array(path, dtype=np.int64)])
        self.next_position += len(path)


@torch.inference_mode()
def decode(model: LanguageModel, cache: RowCache, writers: Sequence[Writer], ends: Ending) -> None:
    """Write every row to its end: its last token is the next to go through the model.

    cache: a row for each writer, with room for what is to come. Columns in use, other than those
    that a writer sees, may hold anything finite.
    """
    writers = list(writers)
    columns = cache.tensors[0].shape[1]
    visible = np.zeros((len(writers), columns), dtype=np.bool_)
    for row, writer in enumerate(writers):
        visible[row, writer.visible] = True
    mask = model.mask(torch.from_numpy(visible).to(model.device))
    positions = torch.tensor([writer.next_position for writer in writers], device=model.device)
    while going := [row for row, writer in enumerate(writers) if not writer.ended]:
        # Rows that ended are carried along until they are most: moving the others costs more.
        if 2 * len(going) <= len(writers):
            rows = torch.tensor(going, device=model.device)
            cache, mask, positions = cache.keep(rows), mask[rows], positions[rows]
            writers = [writers[row] for row in going]
        mask[:, cache.places] = 0.0
        # (Of a row that ended any token will do, and one that overflowed may have none.)
        last = [writer.tokens[-1] if writer.tokens else 0 for writer in writers]
        tokens = torch.tensor(last, device=model.device)
        seen = mask[:, None, None, : cache.places + 1]
        best, _ = model.predict(model.step(tokens, positions, seen, cache), ())
        positions += 1
        for writer, token in zip(writers, best, strict=True):
            if not writer.ended:
                writer.add(token, ends)
