"""Attention of the language model on a GPU, without copies of keys and values.

Several heads of a query share one head of keys and values. With a mask, transformers first copies
keys and values for every head: 8 times as much for the published model of 3B. cuDNN's kernel reads
them in place.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface

_NAME = "pointer_rl_in_place"


class InPlaceAttention:
    """Makes a language model read shared keys and values in place, where its device can."""

    def __init__(self, model: Any) -> None:
        self._config = model.config.get_text_config()
        self.usable = (
            model.device.type == "cuda"
            and self._config._attn_implementation == "sdpa"
            and _is_usable(self._config, model.dtype, model.device)
        )

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Forward passes within this context do so. Others use transformers' own attention."""
        before = self._config._attn_implementation
        if self.usable:
            self._config._attn_implementation = _NAME
        try:
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION) if self.usable else nullcontext():
                yield
        finally:
            self._config._attn_implementation = before


def _attention(
    module: object,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """transformers' interface: [B, heads, S, D], two [B, K, C, D] and a mask → [B, S, heads, D]."""
    found = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=True
    )
    return found.transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, _attention)


def _is_usable(config: Any, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether cuDNN has a kernel for this model (it has none for float32), and it is right."""
    heads, shared = config.num_attention_heads, config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    random = torch.Generator().manual_seed(0)
    # In decoding, there is one query; some versions have no kernel for that.
    for length in (1, 3):
        shapes = ((2, length, heads), (2, 40, shared), (2, 40, shared))
        query, key, value = (
            torch.randn(*shape, size, generator=random).to(device, dtype).transpose(1, 2)
            for shape in shapes
        )
        mask = torch.zeros(2, 1, length, 40)
        mask[torch.rand(mask.shape, generator=random) < 0.3] = torch.finfo(dtype).min
        mask = mask.to(device, dtype)
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            warnings.simplefilter("ignore")  # It warns of each reason why it has none.
            try:
                found, _ = _attention(None, query, key, value, mask, size**-0.5)
            except RuntimeError:
                return False
        expected = reference(query, key, value, mask, size**-0.5)
        # Scores, weights and the result are rounded to 8 bits of precision.
        if not (found.double() - expected).norm() < 0.03 * expected.norm():
            return False
    return True


def reference(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """The same attention in float64, by its definition."""
    group = query.shape[1] // key.shape[1]
    key, value = (each.double().repeat_interleave(group, dim=1) for each in (key, value))
    scores = query.double() @ key.transpose(2, 3) * scaling + mask.double()
    return (scores.softmax(dim=-1) @ value).transpose(1, 2)
