"""Choosing demonstrations for new questions with a policy bundle.

Shapes: B queries, K pool rows, S shots, d embedding size.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from pointer_rl.datasets.embed import encode_batch
from pointer_rl.datasets.embeddings import Embeddings
from pointer_rl.devices import resolve_device
from pointer_rl.errors import InputError
from pointer_rl.registry import registry
from pointer_rl.selectors.bundle import Bundle, BundleInfo, load_bundle, pull_bundle
from pointer_rl.types import Encoder, Example, Pointer, Pool, QueryBatch

_ENCODED_TOGETHER = 64
_SCORES = 1 << 22
"""Most queries × hypotheses × pool rows that are scored at once; bounds the memory."""


@dataclass(frozen=True)
class Selection:
    """The demonstrations chosen for one query, in the order in which they are shown."""

    query_id: str
    rows: Pointer
    """Their rows in the pool."""
    ids: tuple[str, ...]
    """Their ids."""
    logprob: float
    """Log-probability of the pointer under the policy."""


class Policy:
    """A trained policy with its pool: `Policy.load(folder).select(queries)`.

    `Policy.from_pretrained(repository)` loads one from the Hugging Face Hub.
    """

    def __init__(
        self,
        folder: Path,
        bundle: Bundle,
        device: str,
        encoder: str | None,
        encoder_options: Mapping[str, object],
    ) -> None:
        self.info: BundleInfo = bundle.info
        self.pool_ids: tuple[str, ...] = bundle.pool_ids
        self._folder = folder
        self._policy = bundle.policy
        self._pool = Pool((), bundle.pool_embeddings)
        self._device = device
        self._encoder_name = encoder
        self._encoder_options = encoder_options

    def __repr__(self) -> str:
        return (
            f"Policy({str(self._folder)!r}: {self.info.shots} shots from a pool of "
            f"{len(self.pool_ids):,})"
        )

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str = "auto",
        *,
        encoder: str | None = None,
        encoder_options: Mapping[str, object] | None = None,
    ) -> Policy:
        """Read a bundle. `device` is used for the policy and, if it has that option, the encoder.

        The encoder is the one that the bundle names; it is loaded when an example is first
        embedded. `encoder` names it for a bundle that does not, and `encoder_options` replace
        recorded options (such as the folder of its model). Raises InputError for a bundle that is
        missing or damaged.
        """
        bundle = load_bundle(folder, resolve_device(device))
        return cls(Path(folder), bundle, device, encoder, encoder_options or {})

    @classmethod
    def from_pretrained(
        cls,
        repository: str,
        device: str = "auto",
        *,
        encoder: str | None = None,
        encoder_options: Mapping[str, object] | None = None,
    ) -> Policy:
        """Load a bundle from the Hugging Face Hub: OWNER/NAME or OWNER/NAME@REVISION.

        It is downloaded once, and checked against the hashes in it. Raises InputError if the
        download fails or the bundle is damaged.
        """
        folder = pull_bundle(repository)
        return cls.load(folder, device, encoder=encoder, encoder_options=encoder_options)

    def select(
        self,
        queries: Sequence[Example] | Embeddings | Tensor,
        shots: int | None = None,
        width: int = 1,
        *,
        excluded: Sequence[Collection[int | str]] | None = None,
    ) -> list[Selection]:
        """The best pointer that a beam of `width` finds (1: greedy), for each query, in order.

        `queries` are examples (their answers are not used), or embeddings [B, d] by the bundle's
        encoder, which then is not loaded. Queries in a tensor have the ids "0", "1", …. `shots`
        defaults to the number that the policy was trained for; a policy that can stop may choose
        fewer demonstrations.

        `excluded[b]`, rows or ids of the pool, is never chosen for query b. A bundle does not
        contain the pool's images, so only the caller can know that a query's own image is in the
        pool.

        Raises InputError for more shots than rows, for embeddings by another encoder or of another
        size, and for an image that cannot be read.
        """
        shots = self.info.shots if shots is None else shots
        size = len(self.pool_ids)
        if shots > size:
            raise InputError(
                f"{shots} shots need a pool of at least as many examples; that of {self._folder} "
                f"has {size}"
            )
        ids, embeddings = self._embedded(queries)
        blocked = self._blocked(excluded, ids, shots)
        together = max(1, _SCORES // (size * width)) if width > 0 else 1
        selections: list[Selection] = []
        for start in range(0, len(ids), together):
            part = slice(start, start + together)
            allowed = torch.ones(len(ids[part]), size, dtype=torch.bool)
            for index, rows in enumerate(blocked[part]):
                allowed[index, rows] = False
            batch = QueryBatch((), embeddings[part], allowed, shots)
            found = self._policy.beam(batch, self._pool, width)
            logprobs = found.logprobs[:, 0].tolist()
            selections += [
                Selection(id, best, tuple(self.pool_ids[row] for row in best), logprob)
                for id, (best, *_), logprob in zip(
                    ids[part], found.pointers(), logprobs, strict=True
                )
            ]
        return selections

    def _embedded(
        self, queries: Sequence[Example] | Embeddings | Tensor
    ) -> tuple[Sequence[str], Tensor]:
        if isinstance(queries, Tensor):
            if queries.ndim != 2:
                raise InputError(
                    f"query embeddings are a matrix [queries, dimensions]; this has the shape "
                    f"{list(queries.shape)}"
                )
            return _numbers(queries), queries
        if isinstance(queries, Embeddings):
            self.info.encoder.check(queries.encoder, self._folder)
            return queries.ids or _numbers(queries.vectors), queries.vectors
        parts = [
            encode_batch(self._encoder, queries[start : start + _ENCODED_TOGETHER])
            for start in range(0, len(queries), _ENCODED_TOGETHER)
        ]
        return [each.id for each in queries], torch.cat(parts) if parts else torch.empty(0, 0)

    @cached_property
    def _encoder(self) -> Encoder:
        recorded = self.info.encoder
        name = self._encoder_name or recorded.name
        if name is None:
            raise InputError(
                f"{self._folder}: the bundle does not name the encoder of its embeddings "
                f"({recorded.fingerprint or 'unknown'}): name it (--encoder), or give embeddings"
            )
        entry = registry().find("encoder", name)
        options = dict(recorded.options) if entry.name == recorded.name else {}
        if entry.has_option("device"):
            options["device"] = self._device
        options |= {**entry.aliases.get(name, {}), **self._encoder_options}
        encoder: Encoder = registry().create("encoder", name, options)
        recorded.check(encoder.fingerprint, self._folder)
        return encoder

    def _blocked(
        self, excluded: Sequence[Collection[int | str]] | None, ids: Sequence[str], shots: int
    ) -> list[list[int]]:
        """The rows that each query may not choose."""
        if excluded is None:
            return [[] for _ in ids]
        if len(excluded) != len(ids):
            raise InputError(f"excluded has {len(excluded)} entries for {len(ids)} queries")
        blocked = [
            [self._row(each, id) for each in given] for id, given in zip(ids, excluded, strict=True)
        ]
        for id, rows in zip(ids, blocked, strict=True):
            left = len(self.pool_ids) - len(set(rows))
            if left < shots:
                raise InputError(
                    f"query {id} may choose {left} of the pool's {len(self.pool_ids)} examples, "
                    f"fewer than {shots} shots: exclude fewer, or lower the shots"
                )
        return blocked

    def _row(self, example: int | str, query_id: str) -> int:
        row = self._row_of.get(example, -1) if isinstance(example, str) else example
        if not 0 <= row < len(self.pool_ids):
            raise InputError(
                f"query {query_id} excludes {example!r}, which is not in the pool of {self._folder}"
            )
        return row

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {id: row for row, id in enumerate(self.pool_ids)}


def _numbers(vectors: Tensor) -> list[str]:
    return [str(row) for row in range(len(vectors))]
