"""The perceiver resampler, which turns any number of patches into a fixed number of latents.

Parameter names are those of a published checkpoint (`perceiver.…`).

Shapes: N images, P patches, n latents, D the vision tower's width, h heads, d head size.
"""

from __future__ import annotations

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


def split_heads(rows: Tensor, heads: int) -> Tensor:
    """[N, L, h·d] → [N, h, L, d]"""
    rows_NLhd = rows.view(*rows.shape[:2], heads, -1)
    return rows_NLhd.transpose(1, 2)


class _PerceiverAttention(nn.Module):
    """The latents attend to the patches and to themselves."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self._heads = heads
        self.norm_media = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, heads * head_dim, bias=False)
        self.to_kv = nn.Linear(width, 2 * heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, width, bias=False)

    def forward(self, patches: Tensor, latents: Tensor) -> Tensor:
        latents = self.norm_latents(latents)
        seen = torch.cat([self.norm_media(patches), latents], dim=1)
        keys, values = self.to_kv(seen).chunk(2, dim=-1)
        queries, keys, values = (
            split_heads(each, self._heads) for each in (self.to_q(latents), keys, values)
        )
        attended = scaled_dot_product_attention(queries, keys, values)
        out: Tensor = self.to_out(attended.transpose(1, 2).flatten(2))
        return out


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
