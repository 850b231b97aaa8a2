"""Gated cross-attention: what lets a layer of the language model see images.

A token attends to one image: the last that stands before it, or the one that it stands for. Text
before the first image attends to none: the attention adds nothing there, while the feed-forward
that follows it, gated too, still applies. Parameter names are those of a published checkpoint.

Shapes: B rows, L tokens, W the language model's width, T images of a row at most, n latents an
image, D their width, h heads, d head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from pointer_rl_flamingo.resampler import feed_forward, split_heads

__all__ = ["FlamingoLayer", "GatedCrossAttention", "Seen"]


class _MaskedCrossAttention(nn.Module):
    def __init__(self, width: int, media_width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self._heads = heads
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, heads * head_dim, bias=False)
        self.to_kv = nn.Linear(media_width, 2 * heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, width, bias=False)

    def forward(self, hidden: Tensor, media: Tensor, image_number: Tensor) -> Tensor:
        row_images, latents = media.shape[1:3]
        keys, values = media.flatten(1, 2).chunk(2, dim=-1)
        queries, keys, values = (
            split_heads(each, self._heads) for each in (self.to_q(self.norm(hidden)), keys, values)
        )
        numbers = torch.arange(1, row_images + 1, device=media.device).repeat_interleave(latents)
        sees_one = (image_number > 0)[:, :, None]
        # A token that sees no image is let see all, and what comes of it is dropped: a softmax
        # over nothing would be no number.
        visible = (image_number[:, :, None] == numbers) | ~sees_one
        attended = scaled_dot_product_attention(queries, keys, values, visible[:, None])
        out: Tensor = self.to_out(attended.transpose(1, 2).flatten(2)) * sees_one
        return out


class GatedCrossAttention(nn.Module):
    """Cross-attention, then feed-forward, each added times the tanh of its gate (0 at first)."""

    def __init__(self, width: int, media_width: int, *, heads: int, head_dim: int) -> None:
        super().__init__()
        self.attn = _MaskedCrossAttention(width, media_width, heads, head_dim)
        self.attn_gate = nn.Parameter(torch.zeros(1))
        self.ff = feed_forward(width)
        self.ff_gate = nn.Parameter(torch.zeros(1))

    def project(self, latents: Tensor) -> Tensor:
        """Keys and values of images, for `forward`: [B, T, n, D] → [B, T, n, 2·h·d]"""
        projected: Tensor = self.attn.to_kv(latents)
        return projected

    def forward(self, hidden: Tensor, media: Tensor | None, image_number: Tensor) -> Tensor:
        """[B, L, W] → [B, L, W]

        media: from `project`; None where no row has an image. image_number: [B, L] which image
        each token sees, from 1; 0 for none.
        """
        if media is not None:
            attended = self.attn(hidden, media, image_number)
            hidden = attended * self.attn_gate.tanh() + hidden
        out: Tensor = self.ff(hidden) * self.ff_gate.tanh() + hidden
        return out


@dataclass
class Seen:
    """What the layers of a model see during one pass. Set by the model, read by its layers.

    The language model's own code calls its layers, and has no argument for images.
    """

    media: Tensor | None = None
    """[B, gated layers, T, n, 2·h·d]"""
    image_number: Tensor | None = None
    """[B, L]; None between passes."""


class FlamingoLayer(nn.Module):
    """A layer of the language model, behind gated cross-attention."""

    def __init__(
        self, decoder_layer: nn.Module, gated: GatedCrossAttention, number: int, seen: Seen
    ) -> None:
        super().__init__()
        self.gated_cross_attn_layer = gated
        self.decoder_layer = decoder_layer
        self._number = number
        self._seen = seen

    def forward(self, hidden: Tensor, *arguments: Any, **named: Any) -> Any:
        """As the language model's layer, whatever it is given beside the hidden states."""
        seen = self._seen
        assert seen.image_number is not None, "called outside a pass of the model"
        media = None if seen.media is None else seen.media[:, self._number]
        hidden = self.gated_cross_attn_layer(hidden, media, seen.image_number)
        return self.decoder_layer(hidden, *arguments, **named)
