"""A selector, frozen, as generators and evaluations see it: `pointer_rl.types.Policy`."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pointer_rl.selectors import decoding
from pointer_rl.selectors.pointer import (
    EncodedPool,
    PointerSelector,
    SelectorConfig,
    SelectorState,
)
from pointer_rl.types import Decoded, Pool, QueryBatch

__all__ = ["SelectorPolicy"]


class SelectorPolicy:
    """A copy of the selector in evaluation mode: training it further does not change this one.

    What is proposed in turn for the same queries (beams, then samples) is encoded once, and so is
    the pool of queries that follow each other: the last are kept, and recognised by their tensors.
    Do not change embeddings or masks in place.
    Results come back on the CPU.
    """

    config: SelectorConfig

    def __init__(self, selector: PointerSelector, device: str | torch.device = "cpu") -> None:
        self._device = torch.device(device)
        if self._device.type == "mps":  # has no float64, in which decoding sums
            self._device = torch.device("cpu")
        self._selector = copy.deepcopy(selector).to(self._device).eval().requires_grad_(False)
        self.config = selector.config
        self._encoded: tuple[tuple[Tensor, Tensor, Tensor], SelectorState] | None = None
        self._pool: tuple[Tensor, EncodedPool] | None = None

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the configuration and the weights."""
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self.config)).encode())
        for name, tensor in sorted(self._selector.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def greedy(self, queries: QueryBatch, pool: Pool) -> Decoded:
        """The likeliest row at each step: rows [B, 1, S]."""
        return self.beam(queries, pool, width=1)

    @torch.no_grad()
    def beam(self, queries: QueryBatch, pool: Pool, width: int) -> Decoded:
        """The `width` best pointers that beam search finds, best first."""
        state = self._encode(queries, pool)
        found = decoding.beam_search(self._selector, state, shots=queries.shots, width=width)
        return Decoded(found.rows.cpu(), found.logprobs.cpu())

    @torch.no_grad()
    def sample(
        self,
        queries: QueryBatch,
        pool: Pool,
        num_samples: int,
        rngs: Sequence[np.random.Generator],
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> Decoded:
        """Independent draws; query b's depend on its own logits and rngs[b] alone."""
        drawn = decoding.sample(
            self._selector,
            self._encode(queries, pool),
            shots=queries.shots,
            num_samples=num_samples,
            rngs=rngs,
            temperature=temperature,
            top_p=top_p,
        )
        return Decoded(drawn.rows.cpu(), drawn.logprobs.cpu())

    @torch.no_grad()
    def log_prob(
        self,
        queries: QueryBatch,
        pool: Pool,
        rows: Tensor,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> Tensor:
        """[B, N] log-probability of the pointers `rows` [B, N, S]."""
        return decoding.log_prob(
            self._selector,
            self._encode(queries, pool),
            rows.to(self._device),
            temperature=temperature,
            top_p=top_p,
        ).cpu()

    def _encode(self, queries: QueryBatch, pool: Pool) -> SelectorState:
        source = (queries.embeddings, pool.embeddings, queries.allowed)
        if self._encoded is None or any(
            new is not old for new, old in zip(source, self._encoded[0], strict=True)
        ):
            state = self._selector.encode(
                self._place(queries.embeddings),
                self._encode_pool(pool.embeddings),
                queries.allowed.to(self._device),
            )
            self._encoded = (source, state)
        return self._encoded[1]

    def _encode_pool(self, embeddings: Tensor) -> EncodedPool:
        if self._pool is None or self._pool[0] is not embeddings:
            self._pool = (embeddings, self._selector.encode_pool(self._place(embeddings)))
        return self._pool[1]

    def _place(self, embeddings: Tensor) -> Tensor:
        return embeddings.to(self._device, self._selector.query_proj.weight.dtype)
