"""A frozen selector as generators and arms see it: the `pointer_rl.types.Policy` of the engine."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pointer_rl.selectors import decoding
from pointer_rl.selectors.selector import EncodedPool, Selector, State, check_embeddings
from pointer_rl.types import Decoded, Pool, QueryBatch

_TOGETHER = 2**23
"""Most queries × pool rows to decode at once."""


class SelectorPolicy:
    """A copy of the selector in evaluation mode, which further training does not change.

    The last queries and the last pool stay encoded, so that several generators in turn (beams, then
    samples) encode them once. They are recognised by their tensors: do not change embeddings or
    masks in place.
    Results come back on the CPU. Methods raise InputError for embeddings of another size or with
    values that are not finite, and for queries with fewer allowed rows than shots.
    """

    def __init__(self, selector: Selector, device: str | torch.device = "cpu") -> None:
        self._device = torch.device(device)
        if self._device.type == "mps":  # has no float64, which decoding sums in
            self._device = torch.device("cpu")
        self._selector = copy.deepcopy(selector).to(self._device).eval().requires_grad_(False)
        self._encoded: tuple[tuple[Tensor, Tensor, Tensor], list[tuple[slice, State]]] | None = None
        self._pool: tuple[Tensor, EncodedPool] | None = None

    @property
    def name(self) -> str:
        """The registered name of the selector."""
        return self._selector.name

    @property
    def config(self) -> Any:
        """The selector's configuration."""
        return self._selector.config

    @property
    def can_stop(self) -> bool:
        """Whether its pointers may have fewer rows than shots."""
        return self._selector.can_stop

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the selector's name, configuration and weights."""
        # Bundles record hashes from when there was one selector, which had no option `stop`.
        name = "" if self.name == "pointer" else self.name
        config = dataclasses.asdict(self.config)
        if config.get("stop") is False:
            del config["stop"]
        digest = hashlib.sha256((name + json.dumps(config)).encode())
        for name, tensor in sorted(self._selector.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def greedy(self, queries: QueryBatch, pool: Pool) -> Decoded:
        """The likeliest choice at each step: rows [B, 1, S]."""
        return self.beam(queries, pool, width=1)

    @torch.no_grad()
    def beam(
        self, queries: QueryBatch, pool: Pool, width: int, *, may_stop: bool = True
    ) -> Decoded:
        """The `width` best pointers that beam search finds, best first.

        Without `may_stop` all have `queries.shots` rows: stopping is not among the choices.
        """
        return _joined(
            decoding.beam_search(
                self._selector, state, shots=queries.shots, width=width, may_stop=may_stop
            )
            for _, state in self._encode(queries, pool)
        )

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
        return _joined(
            decoding.sample(
                self._selector,
                state,
                shots=queries.shots,
                num_samples=num_samples,
                rngs=rngs[some],
                temperature=temperature,
                top_p=top_p,
            )
            for some, state in self._encode(queries, pool)
        )

    @torch.no_grad()
    def log_prob(
        self,
        queries: QueryBatch,
        pool: Pool,
        rows: Tensor,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> Tensor:
        """[B, N] log-probability of the pointers `rows` [B, N, S], padded with NO_ROW."""
        found = [
            decoding.log_prob(
                self._selector,
                state,
                rows[some].to(self._device),
                temperature=temperature,
                top_p=top_p,
            ).cpu()
            for some, state in self._encode(queries, pool)
        ]
        return torch.cat(found)

    def _encode(self, queries: QueryBatch, pool: Pool) -> list[tuple[slice, State]]:
        """(slice of the queries, their state), in parts whose logits fit into memory."""
        source = (queries.embeddings, pool.embeddings, queries.allowed)
        if self._encoded is None or any(
            new is not old for new, old in zip(source, self._encoded[0], strict=True)
        ):
            size = max(1, _TOGETHER // len(pool.embeddings))
            encoded = self._encode_pool(pool.embeddings)
            vectors = self._place(queries.embeddings, "query")
            states = []
            for start in range(0, max(1, len(vectors)), size):
                some = slice(start, start + size)
                allowed = queries.allowed[some].to(self._device)
                states.append((some, self._selector.encode(vectors[some], encoded, allowed)))
            self._encoded = (source, states)
        return self._encoded[1]

    def _encode_pool(self, embeddings: Tensor) -> EncodedPool:
        if self._pool is None or self._pool[0] is not embeddings:
            self._pool = (embeddings, self._selector.encode_pool(self._place(embeddings, "pool")))
        return self._pool[1]

    def _place(self, embeddings: Tensor, name: str) -> Tensor:
        placed = embeddings.to(self._device, self._selector.dtype)
        check_embeddings(placed, self.config.d_model, name)
        return placed


def _joined(found: Iterable[Decoded]) -> Decoded:
    """Concatenate the parts, on the CPU."""
    parts = list(found)
    rows = torch.cat([each.rows.cpu() for each in parts])
    return Decoded(rows, torch.cat([each.logprobs.cpu() for each in parts]))
