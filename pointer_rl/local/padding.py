"""Token rows of different lengths as one left-padded batch.

Shapes: B rows, L tokens of the longest row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from pointer_rl.errors import InputError
from pointer_rl.local.decoding import Generation, generate_batch, score_batch
from pointer_rl.types import Decoding

I = TypeVar("I")  # noqa: E741  # Images in a model's own format.


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


@dataclass(frozen=True)
class PaddedPrompt(Generic[I]):
    """A prompt as tokens and preprocessed images."""

    token_ids: list[int]
    images: I
    """The images in the model's own format."""

    @property
    def tokens(self) -> int:
        """Number of positions in a row."""
        return len(self.token_ids)


class PaddedModel(ABC, Generic[I]):
    """Generates and scores with a transformers model. A subclass encodes prompts and images.

    It is a `TextModel`: a subclass sets `model`, `tokenizer` and `stop_ids`.
    """

    model: Any
    tokenizer: Any
    stop_ids: Sequence[int]
    pad_id: int
    max_tokens: int | None = None
    """Longest row that the model can read; None if it has no limit."""

    @abstractmethod
    def image_arguments(self, images: Sequence[I], input_ids: Tensor) -> dict[str, Tensor]:
        """The model's arguments, besides the tokens [B, L], for the images of each row."""

    def arguments(self, rows: Sequence[tuple[PaddedPrompt[I], Sequence[int]]]) -> dict[str, Tensor]:
        """The model's arguments for rows of (prompt, tokens that follow it), on its device."""
        token_ids = [[*prompt.token_ids, *following] for prompt, following in rows]
        arguments = left_pad(token_ids, self.pad_id, self.model.device)
        images = [prompt.images for prompt, _ in rows]
        return arguments | self.image_arguments(images, arguments["input_ids"])

    def generate(
        self, prompts: Sequence[PaddedPrompt[I]], decoding: Decoding
    ) -> Sequence[Generation]:
        """See `LocalModel`. Raises InputError for a prompt that is too long."""
        self._check_length(max(prompt.tokens for prompt in prompts) + decoding.max_new_tokens)
        return generate_batch(self, self.arguments([(each, ()) for each in prompts]), decoding)

    def score(self, rows: Sequence[tuple[PaddedPrompt[I], Sequence[int]]]) -> Sequence[float]:
        """See `LocalModel`. Raises InputError for a row that is too long."""
        self._check_length(max(prompt.tokens + len(answer) for prompt, answer in rows))
        return score_batch(self, self.arguments(rows), [len(answer) for _, answer in rows])

    def _check_length(self, tokens: int) -> None:
        if self.max_tokens is not None and tokens > self.max_tokens:
            raise InputError(
                f"the prompt with its answer has {tokens} tokens, and the model reads"
                f" {self.max_tokens} at most; show fewer demonstrations"
            )
