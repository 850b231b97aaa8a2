"""Run pieces of prompts through the language model, each after its prefix's keys and values.

This calls the language model inside the model directly, with embeddings, image features, positions
and mask computed here. The mask is additive and 4D, and transformers passes it to the attention
unchanged. It is 0 where a token may attend and the dtype's lowest number elsewhere. After the
softmax that is a weight of exactly 0, so padding and old content of a row's memory do not affect a
result. (It is not -inf, which would make the output of a padding token that sees nothing NaN.)

Shapes: B rows, P columns of the prefixes, S tokens of the longest piece with its tree (both rounded
up on a GPU), H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pointer_rl_qwen2vl.attention import InPlaceAttention
from pointer_rl_qwen2vl.checkpoint import Checkpoint
from pointer_rl_qwen2vl.keyvalues import PrefixStore, RowCache
from pointer_rl_qwen2vl.planning import NO_ANSWERS, AnswerTree, Layout
from pointer_rl_qwen2vl.shapes import Shapes
from pointer_rl_qwen2vl.transfer import to_device

OVERFLOWED = -1
"""Stands for a token if the logits are not finite."""

_LOGITS_BYTES = 128 * 2**20
"""Most bytes of logits at a time; a vocabulary has 150,000 tokens."""


@dataclass(frozen=True)
class Piece:
    """A row of a batch: tokens after a shared prefix, and the answers that follow them."""

    layout: Layout
    prefix: NDArray[np.int64]
    """[P] places of its prefix in the `PrefixStore`."""
    tree: AnswerTree = NO_ANSWERS

    @cached_property
    def length(self) -> int:
        """Number of tokens of the piece and its tree."""
        return len(self.layout.token_ids) + len(self.tree.token_ids)


@dataclass(frozen=True)
class Prediction:
    """What follows some hidden states. It is still on the device, for which reading it waits."""

    best: Tensor
    """[N] the likeliest token after each, or OVERFLOWED if the logits are not finite."""
    found: Tensor | None
    """Log-probabilities of the wanted tokens, by their row; None if none were wanted."""
    order: Sequence[int]
    """Index of each of them among those that were wanted."""

    def likeliest(self) -> list[int]:
        """`best` as a list."""
        found: list[int] = self.best.tolist()
        return found

    def logprobs(self) -> list[float]:
        """Natural log-probabilities of the wanted tokens."""
        logprobs = [0.0] * len(self.order)
        if self.found is not None:
            for index, value in zip(self.order, self.found.tolist(), strict=True):
                logprobs[index] = value
        return logprobs


class LanguageModel:
    """A checkpoint's language model."""

    def __init__(self, checkpoint: Checkpoint, shapes: Shapes) -> None:
        self._shapes = shapes
        self._model = checkpoint.model.model.language_model
        self._head = checkpoint.model.lm_head
        self._embed = checkpoint.model.get_input_embeddings()
        self._attention = InPlaceAttention(checkpoint.model)
        self._pad_id = checkpoint.pad_id
        self.device: torch.device = checkpoint.model.device
        self.dtype: torch.dtype = checkpoint.model.dtype
        self._lowest = torch.finfo(self.dtype).min
        self._part = max(
            1, _LOGITS_BYTES // (4 * checkpoint.model.config.get_text_config().vocab_size)
        )

    def prefill(
        self, pieces: Sequence[Piece], store: PrefixStore | None, cache: RowCache
    ) -> Tensor:
        """Compute the hidden states [B, S, H] of pieces, and put keys and values into the cache.

        In the cache, prefixes start at column 0, and pieces after the columns of the prefixes. The
        number of these columns and S are `Shapes.of(pieces)`.
        """
        longest, length = self._shapes.of(pieces)
        if longest:
            assert store is not None
            places = np.full((len(pieces), longest), PrefixStore.NOWHERE, dtype=np.int64)
            for row, piece in enumerate(pieces):
                places[row, : len(piece.prefix)] = piece.prefix
            store.read(cache, self._tensor(places))
        cache.places = longest
        token_ids = np.full((len(pieces), length), self._pad_id, dtype=np.int64)
        positions = np.zeros((3, len(pieces), length), dtype=np.int64)
        for row, piece in enumerate(pieces):
            end = len(piece.layout.token_ids)
            token_ids[row, :end] = piece.layout.token_ids
            positions[:, row, :end] = piece.layout.positions
            if piece.tree.token_ids:
                following = slice(end, piece.length)
                token_ids[row, following] = piece.tree.token_ids
                positions[:, row, following] = piece.layout.next_position + piece.tree.depths
        embeds = self._embed(self._tensor(token_ids))
        deepstack = self._insert_images(pieces, embeds)
        hidden = self._forward(
            inputs_embeds=embeds,
            position_ids=self._tensor(positions),
            attention_mask=self._prefill_mask(pieces, longest, length),
            past_key_values=cache,
            **deepstack,
        )
        cache.places += length
        return hidden

    def step(self, token_ids: Tensor, positions: Tensor, mask: Tensor, cache: RowCache) -> Tensor:
        """One token per row: ids [B], positions [B], additive mask [B, 1, 1, places] → [B, H]."""
        hidden = self._forward(
            inputs_embeds=self._embed(token_ids[:, None]),
            position_ids=positions[None, :, None].expand(3, -1, -1),
            attention_mask=mask,
            past_key_values=cache,
        )
        cache.places += 1
        return hidden[:, 0]

    def _forward(self, **arguments: object) -> Tensor:
        with self._attention():
            hidden: Tensor = self._model(use_cache=True, **arguments).last_hidden_state
        return hidden

    def _prefill_mask(self, pieces: Sequence[Piece], longest: int, length: int) -> Tensor:
        """[B, 1, S, P + S], made on the device.

        A token sees its whole prefix and the tokens of its piece up to itself. A token of an answer
        sees only those of the tokens before it that belong to its answer.
        """
        columns = longest + length
        visible = torch.ones(len(pieces), length, columns, dtype=torch.bool, device=self.device)
        visible[:, :, longest:].tril_()
        if longest:
            lengths = self._tensor(np.array([len(piece.prefix) for piece in pieces]))
            places = torch.arange(longest, device=self.device)
            visible[:, :, :longest] = (places < lengths[:, None])[:, None]
        unseen = []
        for row, piece in enumerate(pieces):
            end = len(piece.layout.token_ids)
            token, other = piece.tree.unrelated
            unseen.append((row * length + end + token) * columns + longest + end + other)
        visible.view(-1)[self._tensor(np.concatenate(unseen))] = False
        return self.mask(visible)[:, None]

    def mask(self, visible: Tensor) -> Tensor:
        """Turn a boolean mask into an additive one."""
        mask = torch.zeros(visible.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(~visible, self._lowest)

    def predict(self, hidden: Tensor, wanted: Sequence[tuple[int, int]] = ()) -> Prediction:
        """Predict the token after each of the hidden states [N, H].

        `wanted` are pairs (row of `hidden`, token) whose log-probabilities are needed.
        """
        best: list[Tensor] = []
        found: list[Tensor] = []
        order = sorted(range(len(wanted)), key=lambda index: wanted[index][0])
        rows = np.array([wanted[index][0] for index in order], dtype=np.int64)
        tokens = np.array([wanted[index][1] for index in order], dtype=np.int64)
        for start in range(0, len(hidden), self._part):
            logits = self._head(hidden[start : start + self._part]).float()
            highest = logits.max(dim=-1)
            best.append(highest.indices.where(highest.values.isfinite(), OVERFLOWED))
            mine = slice(*np.searchsorted(rows, (start, start + self._part)))
            if len(rows[mine]):
                row_W, token_W = self._tensor(rows[mine] - start), self._tensor(tokens[mine])
                found.append(logits[row_W, token_W] - logits.logsumexp(dim=-1)[row_W])
        return Prediction(torch.cat(best), torch.cat(found) if found else None, order)

    def _insert_images(self, pieces: Sequence[Piece], embeds: Tensor) -> dict[str, object]:
        """Write the images' features into `embeds`; return arguments for the deepstack layers."""
        rows, length, _ = embeds.shape
        images = [
            (row * length + place, features)
            for row, piece in enumerate(pieces)
            for place, features in piece.layout.images
        ]
        if not images:
            return {}
        places = np.concatenate(
            [place + np.arange(len(features.embeds)) for place, features in images]
        )
        index = self._tensor(places)
        flat = embeds.view(rows * length, -1)
        flat[index] = torch.cat([features.embeds for _, features in images])
        if not images[0][1].deepstack:
            return {}
        is_image = torch.zeros(rows * length, dtype=torch.bool, device=self.device)
        is_image[index] = True
        layers = zip(*(features.deepstack for _, features in images), strict=True)
        return {
            "visual_pos_masks": is_image.view(rows, length),
            "deepstack_visual_embeds": [torch.cat(layer) for layer in layers],
        }

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        return to_device(array, self.device)
