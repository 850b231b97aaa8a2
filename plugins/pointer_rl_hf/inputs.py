"""Join what a processor made of single prompts into batches, as the processor would.

Shapes: B rows, L tokens of the longest row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_PER_TOKEN = {
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "mm_token_type_ids",
    "cross_attention_mask",
}
"""Tensors of shape [1, tokens, …]. All others describe images."""


@dataclass(frozen=True)
class HFPrompt:
    """A prompt in the model's own format."""

    tensors: Mapping[str, Tensor]
    """The processor's output for this prompt alone, on the CPU."""

    @property
    def tokens(self) -> int:
        """Number of positions in a row."""
        return self.tensors["input_ids"].shape[1]


def join(
    rows: Sequence[tuple[HFPrompt, Sequence[int]]], pad_id: int, following_type: int = 0
) -> dict[str, Tensor]:
    """Join rows of (prompt, tokens that follow it) into one batch.

    All prompts must have tensors of the same names. Tensors per token are padded on the left, so
    that rows end together. Tensors of images are padded with zeros to the largest and concatenated
    prompt by prompt. `following_type` is the `token_type_ids` of the tokens that follow a prompt.
    """
    joined = {}
    for name in rows[0][0].tensors:
        tensors = [prompt.tensors[name] for prompt, _ in rows]
        if name in _PER_TOKEN:
            tensors = [
                _append(name, tensor, following, following_type)
                for tensor, (_, following) in zip(tensors, rows, strict=True)
            ]
            length = max(tensor.shape[1] for tensor in tensors)
            value = pad_id if name == "input_ids" else 0
            tensors = [_pad(tensor, 1, length, value, left=True) for tensor in tensors]
        for dim in range(1, tensors[0].ndim):
            size = max(tensor.shape[dim] for tensor in tensors)
            tensors = [_pad(tensor, dim, size, 0, left=False) for tensor in tensors]
        joined[name] = torch.cat(tensors)
    return joined


def _append(name: str, tensor: Tensor, following: Sequence[int], following_type: int) -> Tensor:
    """Extend a prompt's tensor for the text tokens that follow the prompt."""
    if not following:
        return tensor
    if name == "input_ids":
        more = torch.tensor([following], dtype=tensor.dtype)
    elif name.endswith("attention_mask"):  # The new text sees what the prompt's last token sees.
        more = tensor[:, -1:].expand(-1, len(following), *tensor.shape[2:])
    else:
        kind = following_type if name == "token_type_ids" else 0  # mm_token_type_ids: 0 is text.
        more = tensor.new_full((1, len(following)), kind)
    return torch.cat([tensor, more], dim=1)


def _pad(tensor: Tensor, dim: int, size: int, value: int, *, left: bool) -> Tensor:
    missing = size - tensor.shape[dim]
    if not missing:
        return tensor
    ends = (missing, 0) if left else (0, missing)
    return functional.pad(tensor, (0, 0) * (tensor.ndim - 1 - dim) + ends, value=value)
