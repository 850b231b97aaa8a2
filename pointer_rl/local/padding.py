"""Token rows of different lengths as one left-padded batch.

Shapes: B rows, L tokens of the longest row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic

import torch
from torch import Tensor

from pointer_rl.errors import InputError
from pointer_rl.local.batching import P
from pointer_rl.local.decoding import Generation, generate_batch, score_batch
from pointer_rl.types import Decoding


def left_pad(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, [B, L] int64 each. Rows end together."""
    length = max(map(len, rows))
    padding = [length - len(row) for row in rows]
    pairs = list(zip(padding, rows, strict=True))
    input_ids = [[pad_id] * pads + list(row) for pads, row in pairs]
    attention_mask = [[0] * pads + [1] * len(row) for pads, row in pairs]
    return {
        "input_ids": torch.tensor(input_ids, device=device),
        "attention_mask": torch.tensor(attention_mask, device=device),
    }


class PaddedModel(ABC, Generic[P]):
    """Implements `BatchModel` for a transformers model. A subclass makes the model's arguments.

    It is a `TextModel`: a subclass sets `model`, `tokenizer` and `stop_ids`.
    """

    model: Any
    tokenizer: Any
    stop_ids: Sequence[int]
    max_tokens: int | None = None
    """Longest row that the model can read; None if it has no limit."""

    @abstractmethod
    def arguments(self, rows: Sequence[tuple[P, Sequence[int]]]) -> dict[str, Tensor]:
        """The model's arguments for rows of (prompt, tokens that follow it), on its device."""

    def generate(self, prompts: Sequence[P], decoding: Decoding) -> Sequence[Generation]:
        """See `BatchModel`. Raises InputError for a prompt that is too long."""
        self._check_length(max(prompt.tokens for prompt in prompts) + decoding.max_new_tokens)
        return generate_batch(self, self.arguments([(each, ()) for each in prompts]), decoding)

    def score(self, rows: Sequence[tuple[P, Sequence[int]]]) -> Sequence[float]:
        """See `BatchModel`. Raises InputError for a row that is too long."""
        self._check_length(max(prompt.tokens + len(answer) for prompt, answer in rows))
        return score_batch(self, self.arguments(rows), [len(answer) for _, answer in rows])

    def _check_length(self, tokens: int) -> None:
        if self.max_tokens is not None and tokens > self.max_tokens:
            raise InputError(
                f"the prompt with its answer has {tokens} tokens, and the model reads"
                f" {self.max_tokens} at most; show fewer demonstrations"
            )
