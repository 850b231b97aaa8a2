"""The layers of OpenFlamingo's own: the perceiver resampler and gated cross-attention.

The resampler turns any number of patches into a fixed number of latents. Through gated
cross-attention the layers of a language model see them. A token attends to one image: an <image>
token to its own, any other token to the last image before it. Text before the first image attends
to none. Attention adds nothing there, but the gated feed-forward layer after it still applies.
Parameter names are those of a published checkpoint.

Shapes: N images, P patches, B rows, L tokens, W the language model's width, T images of a row at
most, n latents per image, D the vision tower's width, h heads, d head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


def feed_forward(width: int) -> nn.Sequential:
    """LayerNorm and a hidden layer of four times the width, without biases."""
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, 4 * width, bias=False),
        nn.GELU(),
        nn.Linear(4 * width, width, bias=False),
    )


class _Attention(nn.Module):
    """The projections of multi-head attention, without biases."""

    def __init__(self, width: int, seen_width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self._heads = heads
        self.to_q = nn.Linear(width, heads * head_dim, bias=False)
        self.to_kv = nn.Linear(seen_width, 2 * heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, width, bias=False)

    def attend(self, hidden: Tensor, projected: Tensor, visible: Tensor | None = None) -> Tensor:
        """Attend to keys and values that `to_kv` made: [N, L, W], [N, S, 2·h·d] → [N, L, W]."""
        keys, values = projected.chunk(2, dim=-1)
        queries, keys, values = (
            each.view(*each.shape[:2], self._heads, -1).transpose(1, 2)
            for each in (self.to_q(hidden), keys, values)
        )
        attended = scaled_dot_product_attention(queries, keys, values, visible)
        out: Tensor = self.to_out(attended.transpose(1, 2).flatten(2))
        return out


class _PerceiverAttention(_Attention):
    """The latents attend to the patches and to themselves."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__(width, width, heads, head_dim)
        self.norm_media = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)

    def forward(self, patches: Tensor, latents: Tensor) -> Tensor:
        latents = self.norm_latents(latents)
        seen = torch.cat([self.norm_media(patches), latents], dim=1)
        return self.attend(latents, self.to_kv(seen))


class PerceiverResampler(nn.Module):
    """Learned latents that attend to the patches in each layer."""

    def __init__(
        self, width: int, *, depth: int, num_latents: int, heads: int, head_dim: int
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(num_latents, width))
        self.layers = nn.ModuleList(
            nn.ModuleList([_PerceiverAttention(width, heads, head_dim), feed_forward(width)])
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, patches: Tensor) -> Tensor:
        """[N, P, D] → [N, n, D]"""
        latents = self.latents.expand(len(patches), -1, -1)
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleList)
            attention, forward = layer
            latents = attention(patches, latents) + latents
            latents = forward(latents) + latents
        out: Tensor = self.norm(latents)
        return out


class _MaskedCrossAttention(_Attention):
    def __init__(self, width: int, media_width: int, heads: int, head_dim: int) -> None:
        super().__init__(width, media_width, heads, head_dim)
        self.norm = nn.LayerNorm(width)

    def forward(self, hidden: Tensor, media: Tensor, image_number: Tensor) -> Tensor:
        row_images, latents = media.shape[1:3]
        numbers = torch.arange(1, row_images + 1, device=media.device).repeat_interleave(latents)
        sees_one = (image_number > 0)[:, :, None]
        # A token without an image attends to all of them and its result is dropped, since a softmax
        # over nothing is NaN.
        visible = (image_number[:, :, None] == numbers) | ~sees_one
        return self.attend(self.norm(hidden), media.flatten(1, 2), visible[:, None]) * sees_one


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
