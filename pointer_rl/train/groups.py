"""Training data: groups of judged pointers as tensors, and batches of them.

A run has one `Groups`, whatever files or rounds its data come from; a batch pads the groups that it
holds. Queries with their own pool (`pool` in the data) are batched with queries whose pools have
the same size, so that no padding is ever attended to. A row that several of them share is in the
batch once.

Shapes: Q queries, C candidates of all queries, B queries of a batch, N candidates of the largest
group in it, S shots, K pool rows (M of a query's own pool), d embedding size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pointer_rl.errors import InputError
from pointer_rl.records.beam_dataset import BeamDatasetWithEmbedding
from pointer_rl.train.credit import credited_steps
from pointer_rl.types import NO_ROW

SAMPLED = "sample"
"""The `gen_method` of pointers that a policy drew."""
Rows = npt.NDArray[np.int32]
_CREDITED_TOGETHER = 4096
"""Queries per chunk of `credited`."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Some queries with their candidates, padded, on the device."""

    queries: Tensor
    """[B, d]"""
    pool: Tensor
    """[K, d] the rows that queries attend to"""
    own: Tensor | None
    """[B, M] each query's own pool, as rows of `pool`; None: all queries share `pool`"""
    allowed: Tensor | None
    """[B, K], or [B, M] of own pools, bool; None: every row"""
    pointers: Tensor
    """[B, N, S] int64 rows of `pool`, or of the query's own pool; NO_ROW after the end of a shorter
    pointer, 0 where invalid"""
    rewards: Tensor
    """[B, N] float32; 0 where invalid"""
    valid: Tensor
    """[B, N] bool: the places that hold a candidate"""
    sampled: Tensor
    """[B, N] bool: the candidates that were drawn from a policy"""
    credited: Tensor
    """[B, N, S] bool: the steps at which a candidate is trained (`pointer_rl.train.credit`); False
    where invalid"""
    depth: int
    """Steps up to the last one that is credited for any candidate; at least 1"""
    padded: bool
    """Whether any pointer is shorter than S"""

    def parts(self, logits: int) -> list[Batch]:
        """Split the batch: at most `logits` logits per step, and at least one query, per part."""
        choices = len(self.pool) if self.own is None else self.own.shape[1]
        size = max(1, logits // (choices * self.pointers.shape[1]))
        if size >= len(self.queries):
            return [self]
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        split = {
            name: torch.split(value, size)
            for name, value in values.items()
            if isinstance(value, Tensor) and name != "pool"
        }
        return [
            replace(self, **dict(zip(split, part, strict=True)))
            for part in zip(*split.values(), strict=True)
        ]


@dataclass(frozen=True, eq=False)
class _Lists:
    """A list of rows for each query, concatenated."""

    rows: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    """[Q+1]"""

    @classmethod
    def of(cls, lists: Sequence[Rows | None]) -> _Lists:
        """None is an empty list."""
        given = [rows for rows in lists if rows is not None]
        sizes = [0 if rows is None else len(rows) for rows in lists]
        rows = np.concatenate(given).astype(np.int64) if given else np.empty(0, dtype=np.int64)
        return cls(rows, np.cumsum([0, *sizes], dtype=np.int64))

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """[Q]"""
        return np.diff(self.offsets)

    def take(
        self, queries: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Every row in the lists of these queries: the index of its query, and the row."""
        counts = self.sizes[queries]
        which = np.repeat(np.arange(len(queries)), counts)
        first = self.offsets[queries] - (np.cumsum(counts) - counts)
        return which, self.rows[first[which] + np.arange(len(which))]


@dataclass(frozen=True, eq=False)
class Groups:
    """Judged candidates of Q queries, over one pool."""

    ids: Sequence[str]
    images: Sequence[str]
    """An id of each query's image; equal for queries about the same image."""
    queries: Tensor
    """[Q, d] float32"""
    pool: Tensor
    """[K, d] float32"""
    offsets: npt.NDArray[np.int64]
    """[Q+1]: the candidates of query i are offsets[i]:offsets[i+1]"""
    pointers: npt.NDArray[np.int64]
    """[C, S] rows of the whole pool, padded with NO_ROW"""
    rewards: npt.NDArray[np.float32]
    """[C]"""
    sampled: npt.NDArray[np.bool_]
    """[C]"""
    pools: Sequence[Rows | None]
    """The rows of each query's own pool, ascending as in the data; None: the whole pool"""
    excluded: Sequence[Rows | None]
    """The rows that each query may not choose"""

    @classmethod
    def of(
        cls,
        data: BeamDatasetWithEmbedding,
        shots: int | None,
        *,
        per_query_pool: bool = False,
        demonstration_price: float = 0.0,
    ) -> Groups:
        """The groups of a file, whose pointers have `shots` rows or fewer.

        `shots` defaults to the file's. Each row costs the price: the rewards are those of the file
        less what their pointers cost. Raises InputError for other pointers, and for a pointer
        with a row that its query may not choose.
        """
        excluded = [_union(*each) for each in zip(data.excluded, _own_rows(data), strict=True)]
        _check_choices(data, excluded)
        sample = {name: code for code, name in enumerate(data.method_names)}.get(SAMPLED, -1)
        pointers = _padded(data, shots)
        prices = np.float32(demonstration_price) * (pointers != NO_ROW).sum(axis=1)
        return cls(
            ids=data.ids,
            images=[
                image or f"of query {id_}"
                for image, id_ in zip(data.image_ids, data.ids, strict=True)
            ],
            queries=data.query_embeddings.take(data.query_rows.tolist()).float(),
            pool=data.candidate_embeddings.vectors.float(),
            offsets=data.offsets,
            pointers=pointers,
            rewards=(data.rewards - prices).astype(np.float32),
            sampled=data.methods == sample,
            pools=list(data.pools) if per_query_pool else [None] * len(data),
            excluded=excluded,
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def shots(self) -> int:
        return int(self.pointers.shape[1])

    @cached_property
    def zero_variance(self) -> npt.NDArray[np.bool_]:
        """[Q] whether a query's rewards are all equal, so that there is nothing to compare."""
        starts = self.offsets[:-1]
        highest = np.maximum.reduceat(self.rewards, starts)
        equal: npt.NDArray[np.bool_] = highest == np.minimum.reduceat(self.rewards, starts)
        return equal

    @cached_property
    def credited(self) -> npt.NDArray[np.bool_]:
        """[C, S] the steps at which each candidate is trained."""
        found = np.empty(self.pointers.shape, dtype=bool)
        for start in range(0, len(self), _CREDITED_TOGETHER):
            offsets = self.offsets[start : start + _CREDITED_TOGETHER + 1]
            own = slice(offsets[0], offsets[-1])
            queries = np.arange(len(offsets) - 1).repeat(np.diff(offsets))
            found[own] = credited_steps(self.pointers[own], self.rewards[own], queries)
        return found

    def trainable(self, include_zero_variance: bool) -> npt.NDArray[np.bool_]:
        """[Q] the groups to train on: all, or those that are not zero-variance."""
        return np.ones(len(self), dtype=bool) if include_zero_variance else ~self.zero_variance

    def with_images(self, image_of: Mapping[str, str]) -> Groups:
        """The same groups, with the image ids that the mapping gives for the queries' ids."""
        return replace(self, images=[image_of[id_] for id_ in self.ids])

    def joined(self, other: Groups) -> Groups:
        """These groups and the other's, over the same pool."""
        assert torch.equal(self.pool, other.pool), "one pool"
        return Groups(
            ids=[*self.ids, *other.ids],
            images=[*self.images, *other.images],
            queries=torch.cat([self.queries, other.queries]),
            pool=self.pool,
            offsets=np.concatenate([self.offsets, other.offsets[1:] + self.offsets[-1]]),
            pointers=np.concatenate([self.pointers, other.pointers]),
            rewards=np.concatenate([self.rewards, other.rewards]),
            sampled=np.concatenate([self.sampled, other.sampled]),
            pools=[*self.pools, *other.pools],
            excluded=[*self.excluded, *other.excluded],
        )

    def plan(self, queries: npt.NDArray[np.int64], size: int) -> list[npt.NDArray[np.int64]]:
        """These queries in batches of at most `size`; the pools in a batch have one size."""
        pool_sizes = self._pools.sizes[queries]
        return [
            alike[start : start + size]
            for pool_size in np.unique(pool_sizes)
            for alike in [queries[pool_sizes == pool_size]]
            for start in range(0, len(alike), size)
        ]

    def batches(
        self,
        queries: npt.NDArray[np.int64],
        size: int,
        device: torch.device,
        rng: np.random.Generator | None = None,
    ) -> Iterator[Batch]:
        """These queries, `size` at a time; with `rng`, queries and batches in random order."""
        plan = self.plan(queries if rng is None else rng.permutation(queries), size)
        order = range(len(plan)) if rng is None else rng.permutation(len(plan))
        pool = self.pool.to(device)
        for index in order:
            yield self._batch(plan[index], pool)

    @cached_property
    def _pools(self) -> _Lists:
        return _Lists.of(self.pools)

    @cached_property
    def _blocked(self) -> _Lists:
        return _Lists.of(self.excluded)

    @cached_property
    def _placed(self) -> tuple[npt.NDArray[np.int64], _Lists]:
        """Pointers and excluded rows, as indices into the queries' own pools."""
        own, blocked, every = self._pools, self._blocked, np.arange(len(self))
        # One key per query and row, so that all are looked up at once.
        keys = np.repeat(every, own.sizes) * len(self.pool) + own.rows
        order = np.argsort(keys, kind="stable")

        def look_up(
            queries: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
        ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
            wanted = queries * len(self.pool) + rows
            ranks = np.searchsorted(keys, wanted, sorter=order)
            at = order[np.minimum(ranks, len(keys) - 1)]
            return at - own.offsets[queries], keys[at] == wanted

        of_candidates = np.repeat(every, np.diff(self.offsets))[:, None]
        pointers, _ = look_up(of_candidates, self.pointers)
        pointers = np.where(self.pointers == NO_ROW, NO_ROW, pointers)
        of_blocked = np.repeat(every, blocked.sizes)
        places, inside = look_up(of_blocked, blocked.rows)
        counts = np.bincount(of_blocked[inside], minlength=len(self))
        return pointers, _Lists(places[inside], np.concatenate([[0], np.cumsum(counts)]))

    def _batch(self, queries: npt.NDArray[np.int64], shared: Tensor) -> Batch:
        device = shared.device

        def on_device(array: npt.NDArray[np.generic]) -> Tensor:
            return torch.from_numpy(array).to(device)

        starts, ends = self.offsets[queries], self.offsets[queries + 1]
        counts = ends - starts
        places = np.arange(counts.max(initial=0))
        valid = places < counts[:, None]
        candidates = starts[:, None] + np.where(valid, places, 0)
        pool, own, pointers, blocked = shared, None, self.pointers, self._blocked
        size = int(self._pools.sizes[queries[0]])
        if size:
            pointers, blocked = self._placed
            _, rows = self._pools.take(queries)
            held, own = np.unique(rows, return_inverse=True)
            pool, own = shared[on_device(held)], own.reshape(-1, size)
        pointers = pointers[candidates]
        padded = bool((pointers == NO_ROW).any())
        credited = valid[..., None] & self.credited[candidates]
        return Batch(
            queries=self.queries[torch.from_numpy(queries)].to(device),
            pool=pool,
            own=None if own is None else on_device(own),
            allowed=_mask(len(queries), size or len(pool), *blocked.take(queries), device),
            pointers=on_device(np.where(valid[..., None], pointers, 0)),
            rewards=on_device(np.where(valid, self.rewards[candidates], 0)),
            valid=on_device(valid),
            sampled=on_device(valid & self.sampled[candidates]),
            credited=on_device(credited),
            depth=1 + int(np.flatnonzero(credited.any(axis=(0, 1))).max(initial=0)),
            padded=padded,
        )


def _padded(data: BeamDatasetWithEmbedding, shots: int | None) -> npt.NDArray[np.int64]:
    """The pointers [C, S]. Raises InputError for longer ones, or all of another length."""
    lengths, recorded = data.shots, data.meta.get("max_shots")
    if shots is None:
        shots = max(1, lengths[-1], recorded if isinstance(recorded, int) else 0)
    elif lengths[-1] > shots or (recorded is None and len(lengths) == 1 and lengths[0] < shots):
        raise InputError(
            f"{data.path}: its pointers have {' and '.join(map(str, lengths))} demonstrations "
            f"and --shots {shots} cannot be trained on: give --shots {lengths[-1]}, or none"
        )
    if shots > len(data.candidate_embeddings.vectors):
        raise InputError(
            f"{data.path}: pointers of up to {shots:,} rows, from a pool of "
            f"{len(data.candidate_embeddings.vectors):,}: correct _meta.max_shots, or give --shots"
        )
    pointers = np.full((len(data.pointers), shots), NO_ROW, dtype=np.int64)
    width = min(shots, data.pointers.shape[1])
    pointers[:, :width] = data.pointers[:, :width]
    return pointers


def _own_rows(data: BeamDatasetWithEmbedding) -> Sequence[Rows | None]:
    """Each query's own row, if one matrix embeds queries and pool (the guide's `--img-emb`)."""
    if data.query_embeddings is not data.candidate_embeddings:
        return [None] * len(data)
    return [np.array([row], dtype=np.int32) for row in data.query_rows]


def _check_choices(data: BeamDatasetWithEmbedding, excluded: Sequence[Rows | None]) -> None:
    """Raise InputError for a pointer with a row that its query may not choose."""
    for query, (own, blocked) in enumerate(zip(data.pools, excluded, strict=True)):
        rows = data.pointers[data.offsets[query] : data.offsets[query + 1]]
        wrong = np.zeros_like(rows, dtype=bool)
        if own is not None:
            wrong |= ~np.isin(rows, own)
        if blocked is not None:
            wrong |= np.isin(rows, blocked)
        wrong &= rows != NO_ROW
        if wrong.any():
            raise InputError(
                f"{data.path}: query {data.ids[query]!r} has a pointer with the row "
                f"{rows[wrong][0]}, which it may not choose: it is not in the query's pool, or has "
                "its image; `pointer-rl validate` lists such pointers"
            )


def _union(first: Rows | None, second: Rows | None) -> Rows | None:
    found = [each for each in (first, second) if each is not None]
    return np.unique(np.concatenate(found)) if found else None


def _mask(
    batch: int,
    size: int,
    which: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    device: torch.device,
) -> Tensor | None:
    """[batch, size] bool, False where query `which` may not choose `rows`."""
    if not len(rows):
        return None
    allowed = torch.ones(batch, size, dtype=torch.bool)
    allowed[torch.from_numpy(which), torch.from_numpy(rows)] = False
    return allowed.to(device)
