"""The vision tower: patches of images to features.

Layers and weights are the model's own. transformers' forward pass calls the attention once for each
image, or for each of an image's windows, in every layer. Here all segments of equal length take one
call, the patch embedding is a matrix product (its convolution's stride equals its kernel), and the
indices that a pass needs are made on the CPU once and copied to the device together.

Shapes: N patches of all images, D numbers of a patch, W width of the tower, A attention heads, d
size of a head, M merged patches (one token each), H hidden size of the language model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pointer_rl_qwen2vl.transfer import to_device

Grid = tuple[int, int, int]
"""Number of patches of an image in time (1), height and width."""


class VisionTower:
    """The vision tower of a Qwen2-VL, Qwen2.5-VL or Qwen3-VL model."""

    def __init__(self, model: Any) -> None:
        self._visual = model.model.visual
        config = self._visual.config
        self._merge: int = config.spatial_merge_size
        self._window: int | None = None
        if hasattr(config, "window_size"):
            self._window = config.window_size // config.patch_size // self._merge
        self._whole = frozenset(getattr(config, "fullatt_block_indexes", None) or ())
        self._deepstack: dict[int, Any] = {}
        if hasattr(config, "deepstack_visual_indexes"):
            mergers = self._visual.deepstack_merger_list
            self._deepstack = dict(zip(config.deepstack_visual_indexes, mergers, strict=True))
        self._mlps = [_aligned(block.mlp) for block in self._visual.blocks]

    @torch.inference_mode()
    def encode(
        self, pixels: Tensor, grids: Sequence[Grid]
    ) -> list[tuple[Tensor, tuple[Tensor, ...]]]:
        """Encode images, given their patches [N, D] one image after the other.

        Returns for each image its features [M, H], and those [M, H] that Qwen3-VL adds after its
        first layers (empty for other models). They are views of tensors of all images.
        """
        visual, device = self._visual, pixels.device
        layouts = [_layout(height, width, self._merge, self._window) for _, height, width in grids]
        sizes = [len(layout.order) for layout in layouts]
        unit = self._merge**2
        places = np.concatenate([np.vstack((x.rows, x.columns)) for x in layouts], axis=1)
        hidden = self._embed(pixels)
        if hasattr(visual, "pos_embed"):
            hidden = hidden + self._learned_positions(grids, device).to(hidden.dtype)
        segments = whole = _Segments.of([unit * size for size in sizes], device)
        back = None
        if self._window is not None:
            firsts = np.cumsum([0, *sizes[:-1]])
            order = np.concatenate([firsts[n] + each.order for n, each in enumerate(layouts)])
            back = to_device(np.argsort(order), device)
            hidden = hidden.view(len(order), -1)[to_device(order, device)].view(len(hidden), -1)
            segments = _Segments.of([n for x in layouts for n in x.windows], device)
        rotation = _Rotation(visual.rotary_pos_emb.inv_freq, to_device(places, device))
        added = []
        for number, (block, mlp) in enumerate(zip(visual.blocks, self._mlps, strict=True)):
            seen = whole if number in self._whole else segments
            hidden = hidden + _attend(block.attn, _normalise(block.norm1, hidden), rotation, seen)
            hidden = hidden + mlp(_normalise(block.norm2, hidden))
            if number in self._deepstack:
                added.append(self._deepstack[number](hidden))
        merged = visual.merger(hidden)
        if back is not None:
            merged = merged[back]
        features = [each.split(sizes) for each in (merged, *added)]
        return [(first, tuple(rest)) for first, *rest in zip(*features, strict=True)]

    def _embed(self, pixels: Tensor) -> Tensor:
        """[N, D] → [N, W]"""
        projection = self._visual.patch_embed.proj
        if type(projection) is not torch.nn.Conv3d:  # An adapter's layer.
            embedded: Tensor = self._visual.patch_embed(pixels)
            return embedded
        weight = projection.weight.flatten(1)
        return functional.linear(pixels.to(weight.dtype), weight, projection.bias)

    def _learned_positions(self, grids: Sequence[Grid], device: torch.device) -> Tensor:
        """Qwen3-VL's position embeddings [N, W], interpolated from a square grid of them."""
        table = self._visual.pos_embed
        side = round(table.num_embeddings**0.5)
        each = [_interpolation(height, width, self._merge, side) for _, height, width in grids]
        corners = to_device(np.concatenate([corners for corners, _ in each]), device)
        weights = to_device(np.concatenate([weights for _, weights in each]), device)
        found: Tensor = (table(corners) * weights[..., None]).sum(1)
        return found


def _attend(attention: Any, hidden: Tensor, rotation: _Rotation, segments: _Segments) -> Tensor:
    """A layer's attention [N, W] → [N, W], within each segment."""
    qkv = attention.qkv(hidden).view(len(hidden), 3, attention.num_heads, -1)
    query, key = rotation.apply(qkv[:, :2]).unbind(1)
    found = segments.attend(query, key, qkv[:, 2], attention.scaling)
    out: Tensor = attention.proj(found.flatten(1))
    return out


def _normalise(norm: Any, hidden: Tensor) -> Tensor:
    """The result of a layer's norm, for Qwen2.5-VL in one operation instead of seven."""
    if hasattr(norm, "variance_epsilon"):
        return functional.rms_norm(hidden, hidden.shape[-1:], norm.weight, norm.variance_epsilon)
    normalised: Tensor = norm(hidden)
    return normalised


def _aligned(mlp: Any) -> Any:
    """A gated MLP, or for a GPU a copy whose inner width is padded with zeros.

    Qwen2.5-VL's inner width is 3,420 numbers. GPUs have fast kernels only for matrices whose rows
    are a multiple of 16 bytes. The padding adds 0 to the result.
    """
    layers = [getattr(mlp, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(type(layer) is torch.nn.Linear for layer in layers):  # None, or with an adapter.
        return mlp
    width = mlp.gate_proj.out_features
    if width % 8 == 0 or mlp.gate_proj.weight.device.type == "cpu":
        return mlp
    return _padded(mlp, -width % 64)


def _padded(mlp: Any, more: int) -> Any:
    padded = copy.deepcopy(mlp)
    for layer in (padded.gate_proj, padded.up_proj):
        layer.out_features += more
        layer.weight = torch.nn.Parameter(functional.pad(layer.weight, (0, 0, 0, more)), False)
        if layer.bias is not None:
            layer.bias = torch.nn.Parameter(functional.pad(layer.bias, (0, more)), False)
    down = padded.down_proj
    down.in_features += more
    down.weight = torch.nn.Parameter(functional.pad(down.weight, (0, more)), False)
    return padded


class _Rotation:
    """Rotary position embeddings, in float32 as in transformers."""

    def __init__(self, frequencies: Tensor, places: Tensor) -> None:
        """`places` [2, N] are the patches' rows and columns."""
        angles = places[..., None] * frequencies.to(places.device, torch.float32)
        halves = angles.transpose(0, 1).flatten(1)[:, None, None]
        self._cos, self._sin = halves.cos(), halves.sin()  # [N, 1, 1, d / 2]

    def apply(self, vectors: Tensor) -> Tensor:
        """Rotate queries and keys [N, 2, A, d]."""
        half = vectors.shape[-1] // 2
        one, other = vectors[..., :half].float(), vectors[..., half:].float()
        rotated = torch.empty_like(vectors, memory_format=torch.contiguous_format)
        rotated[..., :half] = (one * self._cos).addcmul_(other, self._sin, value=-1)
        rotated[..., half:] = (other * self._cos).addcmul_(one, self._sin)
        return rotated


class _Segments:
    """The segments within which patches attend to each other: images, or windows of images.

    Segments are grouped by length.
    """

    def __init__(self, groups: Sequence[Tensor]) -> None:
        """`groups` are the places of the patches [n, L] of the n segments of each length L."""
        self._groups = groups

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> _Segments:
        """Segments of these lengths, one after the other."""
        starts: dict[int, list[int]] = {}
        start = 0
        for length in lengths:
            starts.setdefault(length, []).append(start)
            start += length
        return cls(
            [
                to_device(np.array(each)[:, None] + np.arange(length), device)
                for length, each in starts.items()
            ]
        )

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention within each segment, [N, A, d] each → [N, A, d]."""
        if len(self._groups) == 1:  # The segments of one length are all patches in order.
            [places] = self._groups
            shape = (*places.shape, *query.shape[1:])
            query, key, value = (each.view(shape) for each in (query, key, value))
            return _attention(query, key, value, scale).flatten(0, 1)
        found = torch.empty_like(query)
        for places in self._groups:
            found[places] = _attention(query[places], key[places], value[places], scale)
        return found


def _attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attention within each of n segments of L patches, [n, L, A, d] each → [n, L, A, d]."""
    query, key, value = (each.transpose(1, 2) for each in (query, key, value))
    found = functional.scaled_dot_product_attention(query, key, value, scale=scale)
    return found.transpose(1, 2)


@dataclass(frozen=True)
class _Layout:
    """The patches of an image of one size."""

    order: NDArray[np.int64]
    """[M] the merged patches in the order in which the tower has them."""
    rows: NDArray[np.int64]
    """[N] row of each patch in that order. Patches that are merged are adjacent."""
    columns: NDArray[np.int64]
    """[N] likewise"""
    windows: tuple[int, ...]
    """Number of patches of each window."""


@lru_cache(maxsize=1024)
def _layout(height: int, width: int, merge: int, window: int | None) -> _Layout:
    """The layout of an image of height x width patches; `window` is in merged patches."""
    down, across = np.divmod(np.arange(height // merge * (width // merge)), width // merge)
    order = np.arange(len(down))
    windows: tuple[int, ...] = (height * width,)
    if window is not None:
        numbers = down // window * width + across // window
        order = np.argsort(numbers, kind="stable")
        windows = tuple(merge**2 * np.unique(numbers, return_counts=True)[1])
    inside_row, inside_column = np.divmod(np.arange(merge**2), merge)
    rows = (down[order, None] * merge + inside_row).ravel()
    columns = (across[order, None] * merge + inside_column).ravel()
    return _Layout(order, rows, columns, windows)


@lru_cache(maxsize=1024)
def _interpolation(
    height: int, width: int, merge: int, side: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each patch, the four nearest of side x side points [N, 4] and their weights [N, 4].

    The corners of both grids coincide.
    """
    layout = _layout(height, width, merge, None)
    axes = []
    for places, length in ((layout.rows, height), (layout.columns, width)):
        exact = (places * (side - 1)).astype(np.float32) / np.float32(max(length - 1, 1))
        low = np.floor(exact)
        share = exact - low
        taps = np.stack([low, np.minimum(low + 1, side - 1)], axis=1).astype(np.int64)
        axes.append((taps, np.stack([1 - share, share], axis=1)))
    (down, down_weights), (across, across_weights) = axes
    corners = (down[:, :, None] * side + across[:, None, :]).reshape(-1, 4)
    weights = (down_weights[:, :, None] * across_weights[:, None, :]).reshape(-1, 4)
    return corners, weights
