"""Token rows of different lengths as one batch that ends together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["left_pad"]


def left_pad(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> dict[str, Tensor]:
    """input_ids, attention_mask: [rows, tokens of the longest] int64."""
    length = max(map(len, rows))
    padding = [length - len(row) for row in rows]
    pairs = list(zip(padding, rows, strict=True))
    input_ids = [[pad_id] * pads + list(row) for pads, row in pairs]
    attention_mask = [[0] * pads + [1] * len(row) for pads, row in pairs]
    return {
        "input_ids": torch.tensor(input_ids, device=device),
        "attention_mask": torch.tensor(attention_mask, device=device),
    }
