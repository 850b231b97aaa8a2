"""Gated cross-attention, through which the layers of a language model see images.

A token attends to one image: an <image> token to its own, any other token to the last image before
it. Text before the first image attends to none. Attention adds nothing there, but the gated
feed-forward layer after it still applies. Parameter names are those of a published checkpoint.

Shapes: B rows, L tokens, W the language model's width, T images of a row at most, n latents per
image, D their width, h heads, d head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from pointer_rl_flamingo.resampler import feed_forward, split_heads


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
        # A token without an image attends to all of them and its result is dropped, since a softmax
        # over nothing is NaN.
        visible = (image_number[:, :, None] == numbers) | ~sees_one
        attended = scaled_dot_product_attention(queries, keys, values, visible[:, None])
        out: Tensor = self.to_out(attended.transpose(1, 2).flatten(2)) * sees_one
        return out


class GatedCrossAttention(nn.Module):
    """Cross-attention and feed-forward, each scaled by the tanh of its gate (initially 0)."""

    def __init__(self, width: int, media_width: int, *, heads: int, head_dim: int) -> None:
        super().__init__()
        self.attn = _MaskedCrossAttention(width, media_width, heads, head_dim)
        self.attn_gate = nn.Parameter(torch.zeros(1))
        self.ff = feed_forward(width)
        self.ff_gate = nn.Parameter(torch.zeros(1))

    def project(self, latents: Tensor) -> Tensor:
        """Compute images' keys and values for `forward`: [B, T, n, D] → [B, T, n, 2·h·d]."""
        projected: Tensor = self.attn.to_kv(latents)
        return projected

    def forward(self, hidden: Tensor, media: Tensor | None, image_number: Tensor) -> Tensor:
        """[B, L, W] → [B, L, W]

        `media` are the keys and values from `project`, or None if no row has an image.
        `image_number` [B, L] is the number of the image that each token sees, from 1; 0 for none.
        """
        if media is not None:
            attended = self.attn(hidden, media, image_number)
            hidden = attended * self.attn_gate.tanh() + hidden
        out: Tensor = self.ff(hidden) * self.ff_gate.tanh() + hidden
        return out


@dataclass
class Seen:
    """The images of the current forward pass. Set by the model, read by its layers.

    The language model's own code calls the layers, and it has no argument for images.
    """

    media: Tensor | None = None
    """[B, gated layers, T, n, 2·h·d]"""
    image_number: Tensor | None = None
    """[B, L]; None between forward passes."""


class FlamingoLayer(nn.Module):
    """A layer of the language model, preceded by gated cross-attention."""

    def __init__(
        self, decoder_layer: nn.Module, gated: GatedCrossAttention, number: int, seen: Seen
    ) -> None:
        super().__init__()
        self.gated_cross_attn_layer = gated
        self.decoder_layer = decoder_layer
        self._number = number
        self._seen = seen

    def forward(self, hidden: Tensor, *arguments: Any, **named: Any) -> Any:
        """Takes and returns the same as the language model's layer."""
        seen = self._seen
        assert seen.image_number is not None, "called outside a forward pass of the model"
        media = None if seen.media is None else seen.media[:, self._number]
        hidden = self.gated_cross_attn_layer(hidden, media, seen.image_number)
        return self.decoder_layer(hidden, *arguments, **named)
