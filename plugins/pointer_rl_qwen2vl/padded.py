"""Padded batches through a model: generation, and the log-probability of given answers.

Shapes: B rows, L tokens of the longest row, P patches of all images, D numbers a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pointer_rl.local import decoding as generation
from pointer_rl.local.decoding import Generation
from pointer_rl.types import Decoding
from pointer_rl_qwen2vl.checkpoint import Checkpoint
from pointer_rl_qwen2vl.patches import ImagePatches

__all__ = ["EncodedPrompt", "generate", "left_pad", "score"]


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the model sees it, images in the order of their places."""

    token_ids: list[int]
    """An <|image_pad|> for every merged patch."""
    images: tuple[ImagePatches, ...]

    @property
    def tokens(self) -> int:
        """Places in a row."""
        return len(self.token_ids)


def left_pad(
    rows: Sequence[tuple[EncodedPrompt, Sequence[int]]], checkpoint: Checkpoint
) -> dict[str, Tensor]:
    """The model's arguments for rows of (prompt, tokens that follow it), on its device.

    input_ids, attention_mask, mm_token_type_ids (1 at images, else 0): [B, L] int64, rows end
    together. Where there are images also pixel_values [P, D] and image_grid_thw [images, 3].
    """
    token_ids = [[*prompt.token_ids, *following] for prompt, following in rows]
    length = max(map(len, token_ids))
    input_ids = torch.tensor([[checkpoint.pad_id] * (length - len(row)) + row for row in token_ids])
    attention_mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in token_ids])
    arguments = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "mm_token_type_ids": (input_ids == checkpoint.image_token_id).long(),
    }
    images = [image for prompt, _ in rows for image in prompt.images]
    if images:
        arguments["pixel_values"] = torch.cat([image.pixels for image in images])
        arguments["image_grid_thw"] = torch.tensor([image.grid for image in images])
    device = checkpoint.model.device
    return {name: tensor.to(device) for name, tensor in arguments.items()}


def generate(
    checkpoint: Checkpoint, prompts: Sequence[EncodedPrompt], decoding: Decoding
) -> list[Generation]:
    """Decode a batch of prompts: greedily, or the best beam.

    Raises torch.OutOfMemoryError.
    """
    arguments = left_pad([(prompt, ()) for prompt in prompts], checkpoint)
    return generation.generate(checkpoint, arguments, decoding)


def score(
    checkpoint: Checkpoint, rows: Sequence[tuple[EncodedPrompt, Sequence[int]]]
) -> list[float]:
    """log p(answer | prompt) of each (prompt, tokens of the answer with its end).

    Natural logarithm, summed over the tokens. Raises torch.OutOfMemoryError.
    """
    lengths = [len(answer) for _, answer in rows]
    return generation.score(checkpoint, left_pad(rows, checkpoint), lengths)
