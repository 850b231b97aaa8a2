"""OpenFlamingo on MPT, written out in float64 with loops, from a checkpoint's own names and shapes.

Independent of the plugin: no module of it is used. One prompt at a time, without padding or cache.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]


def below(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it, in float64."""
    return {
        name.removeprefix(prefix): tensor.double()
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    mean = sum(x) / len(x)
    variance = sum((x - mean) ** 2) / len(x)
    return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def attend(query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], heads: int) -> Tensor:
    """What one query sees, head after head."""
    size = len(query) // heads
    seen = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        weights = [math.exp(float(query[part] @ key[part]) / math.sqrt(size)) for key in keys]
        seen.append(
            sum(w * value[part] for w, value in zip(weights, values, strict=True)) / sum(weights)
        )
    return torch.cat(seen)


def feed_forward(t: Tensors, x: Tensor) -> Tensor:
    hidden = gelu(t["1.weight"] @ layer_norm(x, t["0.weight"], t["0.bias"]))
    return t["3.weight"] @ hidden


def resample(t: Tensors, patches: Tensor, heads: int) -> list[Tensor]:
    """The latents of one image. t: what is under `perceiver.`; patches: [P, D]."""
    latents = list(t["latents"])
    depth = 0
    while f"layers.{depth}.0.to_q.weight" in t:
        a = below(t, f"layers.{depth}.0.")
        normed = [layer_norm(x, a["norm_latents.weight"], a["norm_latents.bias"]) for x in latents]
        media = [layer_norm(x, a["norm_media.weight"], a["norm_media.bias"]) for x in patches]
        projected = [a["to_kv.weight"] @ x for x in (*media, *normed)]
        half = len(projected[0]) // 2
        keys, values = [x[:half] for x in projected], [x[half:] for x in projected]
        latents = [
            old + a["to_out.weight"] @ attend(a["to_q.weight"] @ x, keys, values, heads)
            for old, x in zip(latents, normed, strict=True)
        ]
        f = below(t, f"layers.{depth}.1.")
        latents = [x + feed_forward(f, x) for x in latents]
        depth += 1
    return [layer_norm(x, t["norm.weight"], t["norm.bias"]) for x in latents]


def gated_cross_attention(
    t: Tensors, x: Tensor, image: Sequence[Tensor] | None, heads: int
) -> Tensor:
    """One token. image: the latents that it sees, if any."""
    if image is not None:
        projected = [t["attn.to_kv.weight"] @ latent for latent in image]
        half = len(projected[0]) // 2
        query = t["attn.to_q.weight"] @ layer_norm(x, t["attn.norm.weight"], t["attn.norm.bias"])
        seen = attend(query, [p[:half] for p in projected], [p[half:] for p in projected], heads)
        x = x + torch.tanh(t["attn_gate"]) * (t["attn.to_out.weight"] @ seen)
    return x + torch.tanh(t["ff_gate"]) * feed_forward(below(t, "ff."), x)


def slopes(heads: int) -> list[float]:
    """ALiBi's, for a power of two."""
    return [2 ** (-8 * (head + 1) / heads) for head in range(heads)]


def mpt_layer(
    t: Tensors, hidden: Sequence[Tensor], heads: int, clip: float | None = None
) -> list[Tensor]:
    """A layer by MPT's names. Queries and keys are normalised where it has the norms."""
    width = len(hidden[0])
    size = width // heads
    queries, keys, values = [], [], []
    for x in hidden:
        projected = t["attn.Wqkv.weight"] @ layer_norm(x, t["norm_1.weight"])
        q, k, v = (projected if clip is None else projected.clamp(-clip, clip)).split(width)
        if "attn.q_ln.weight" in t:
            q = layer_norm(q, t["attn.q_ln.weight"])
            k = layer_norm(k, t["attn.k_ln.weight"])
        queries.append(q)
        keys.append(k)
        values.append(v)
    out = []
    for place, x in enumerate(hidden):
        heads_seen = []
        for head, slope in enumerate(slopes(heads)):
            part = slice(head * size, (head + 1) * size)
            weights = [
                math.exp(
                    float(queries[place][part] @ keys[other][part]) / math.sqrt(size)
                    - slope * (place - other)
                )
                for other in range(place + 1)
            ]
            total = sum(weights)
            heads_seen.append(
                sum(w / total * values[other][part] for other, w in enumerate(weights))
            )
        x = x + t["attn.out_proj.weight"] @ torch.cat(heads_seen)
        up = t["ffn.up_proj.weight"] @ layer_norm(x, t["norm_2.weight"])
        out.append(x + t["ffn.down_proj.weight"] @ gelu(up))
    return out


def logits(
    trained: Tensors,
    language: Tensors,
    token_ids: Sequence[int],
    images: Sequence[Sequence[Tensor]],
    *,
    image_id: int,
    media_heads: int,
    text_heads: int,
) -> Tensor:
    """[L, V] of one prompt.

    trained: by a published checkpoint's names; language: by MPT's; images: each one's latents.
    """
    embeddings = trained["lang_encoder.transformer.wte.weight"].double()
    hidden = [embeddings[token] for token in token_ids]
    numbers = [list(token_ids[: place + 1]).count(image_id) for place in range(len(token_ids))]
    layer = 0
    while f"transformer.blocks.{layer}.norm_1.weight" in language:
        prefix = f"lang_encoder.transformer.blocks.{layer}.gated_cross_attn_layer."
        gated = below(trained, prefix)
        if gated:
            hidden = [
                gated_cross_attention(gated, x, images[n - 1] if n else None, media_heads)
                for x, n in zip(hidden, numbers, strict=True)
            ]
        hidden = mpt_layer(below(language, f"transformer.blocks.{layer}."), hidden, text_heads)
        layer += 1
    norm = language["transformer.norm_f.weight"].double()
    return torch.stack([embeddings @ layer_norm(x, norm) for x in hidden])
