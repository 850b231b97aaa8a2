"""RL data and beam data for training, as compact arrays in which a query's candidates are adjacent.

A file is read once, record by record; older layouts are upgraded on the way. A candidate takes a
few bytes and no Python object.

Shapes: Q queries, C candidates of all queries, N candidates of one query, S_max longest pointer.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from pointer_rl.errors import InputError
from pointer_rl.records.candidate_arrays import COLUMNS, CandidateReader, Rows
from pointer_rl.records.formats import stream_records
from pointer_rl.registry import registry
from pointer_rl.types import NO_ROW

if TYPE_CHECKING:
    from pointer_rl.datasets.embeddings import Embeddings

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Group:
    """One query and its candidates. The arrays are views of the dataset's arrays."""

    id: str
    pointers: Rows
    """[N, S_max] rows in the order shown, padded with NO_ROW."""
    rewards: Floats
    """[N]"""
    accuracies: Floats
    """[N]; NaN if unknown."""
    methods: npt.NDArray[np.uint8]
    """[N] indices into the dataset's `method_names`."""
    logprobs: Floats
    """[N]; NaN if none is recorded."""
    pool: Rows | None
    """The rows that this query could choose from; None: the whole pool."""
    excluded: Rows | None
    """The rows that it may not choose; None if the file does not say."""
    query_embedding: Floats | None = None
    """[d]; None in a dataset without embeddings."""


class BeamDataset:
    """The candidates of a file of RL data or beam data and their rewards, grouped by query.

    `len` is the number of queries and `dataset[i]` a `Group`, so a torch DataLoader accepts it with
    a `collate_fn`. Candidates without a reward are left out and counted, and so are queries that
    have no candidate left.

    `reward_mode` names the reward and `reward_options` are its options (`pointer-rl plugins`). In
    beam data the scores are the rewards, whatever the mode.
    Raises InputError, naming the query, for a record that is neither kind of data or is malformed;
    for a query that occurs twice; and if no candidate has a reward.
    """

    ids: list[str]
    """The queries, in the file's order."""
    image_ids: list[str | None]
    recorded_rows: Indices
    """[Q] the queries' own rows (`query.row`), NO_ROW if the file does not say."""
    offsets: Indices
    """[Q+1]: the candidates of query i are offsets[i]:offsets[i+1]."""
    pointers: Rows
    """[C, S_max] pool rows in the order shown, padded with NO_ROW."""
    rewards: Floats
    """[C], all finite."""
    accuracies: Floats
    """[C]; NaN if unknown, as in all beam data."""
    methods: npt.NDArray[np.uint8]
    """[C] indices into `method_names`."""
    logprobs: Floats
    """[C] recorded log-probability under the distribution that drew it; NaN if there is none."""
    temperatures: Floats
    """[C]; NaN if there is none."""
    top_ps: Floats
    """[C]; NaN if there is none."""
    pools: list[Rows | None]
    """For each query the rows that it could choose from; None: the whole pool."""
    excluded: list[Rows | None]
    """For each query the rows that it may not choose; None if the file does not say."""

    method_names: tuple[str, ...]
    kind: Literal["rl", "beam"]
    meta: dict[str, Any]
    """The file's `_meta`; empty if it has none."""
    sha256: str
    """Hash of the file."""
    failed: int
    """Number of candidates left out because their evaluation failed."""
    without_reward: int
    """Number of other candidates left out: never judged, or with a reward that is not finite."""
    empty: int
    """Number of queries left out because they have no candidate left."""

    def __init__(
        self,
        path: Path | str,
        reward_mode: str = "hard_plus_soft",
        reward_options: Mapping[str, object] | None = None,
    ) -> None:
        self.path = Path(path)
        reader = CandidateReader(registry().create("reward", reward_mode, reward_options))
        for key, record in stream_records(self.path):
            try:
                reader.add(key, record)
            except InputError as error:
                raise InputError(f"{self.path}: query {key!r}: {error}") from error
        if not reader.ids:
            raise InputError(f"{self.path}: no candidate with a reward in it ({reader.left_out()})")
        assert reader.kind is not None
        self.ids, self.image_ids = reader.ids, reader.image_ids
        self.recorded_rows = np.asarray(reader.recorded_rows, dtype=np.int64)
        self.offsets = np.asarray(reader.offsets, dtype=np.int64)
        self.pointers = reader.pointers()
        for name, column in reader.columns.items():
            setattr(self, name, np.asarray(column))
        self.pools, self.excluded = reader.pools, reader.excluded()
        self.method_names = tuple(reader.method_of)
        self.kind, self.meta = reader.kind, reader.meta
        self.sha256 = _sha256(self.path)
        self.failed, self.without_reward = reader.failed, reader.without_reward
        self.empty = reader.empty

    @property
    def shots(self) -> tuple[int, ...]:
        """The different lengths of the pointers, ascending."""
        return tuple(np.unique((self.pointers != NO_ROW).sum(axis=1)).tolist())

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Group]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> Group:
        """The group of query `index`. Raises IndexError."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"query {index} of {len(self)}")
        index %= len(self)
        own = slice(*self.offsets[index : index + 2].tolist())
        return Group(
            id=self.ids[index],
            pointers=self.pointers[own],
            rewards=self.rewards[own],
            accuracies=self.accuracies[own],
            methods=self.methods[own],
            logprobs=self.logprobs[own],
            pool=self.pools[index],
            excluded=self.excluded[index],
            query_embedding=self._query_embedding(index),
        )

    def _query_embedding(self, index: int) -> Floats | None:
        return None

    def select(self, indices: Sequence[int] | Indices) -> BeamDataset:
        """The queries at these indices, in this order. Counts and `meta` stay those of the file."""
        chosen = copy(self)
        # operator.index refuses a boolean mask, which would pass for the indices 0 and 1.
        chosen._keep(np.array(list(map(operator.index, indices)), dtype=np.int64))
        return chosen

    def _keep(self, queries: Indices) -> None:
        starts, sizes = self.offsets[:-1][queries], np.diff(self.offsets)[queries]
        self.offsets = np.concatenate([[0], sizes.cumsum()]).astype(np.int64)
        shift = np.repeat(starts - self.offsets[:-1], sizes)
        candidates = np.arange(self.offsets[-1]) + shift
        for name in ("pointers", *COLUMNS):
            setattr(self, name, getattr(self, name)[candidates])
        self.recorded_rows = self.recorded_rows[queries]
        for name in ("ids", "image_ids", "pools", "excluded"):
            values = getattr(self, name)
            setattr(self, name, [values[query] for query in queries])


class BeamDatasetWithEmbedding(BeamDataset):
    """A `BeamDataset` with the embeddings of its queries and its pool.

    Queries are found by id or, in embeddings without ids, by `query.row`. If the file has no rows
    and all ids are numbers, as in Lever-LM's files, the ids are the rows. Also raises InputError
    for embeddings of other queries or of another pool than the file's.
    """

    query_rows: Indices
    """[Q] rows of `query_embeddings`."""

    def __init__(
        self,
        path: Path | str,
        query_embeddings: Embeddings,
        candidate_embeddings: Embeddings,
        reward_mode: str = "hard_plus_soft",
        reward_options: Mapping[str, object] | None = None,
    ) -> None:
        from pointer_rl.datasets.embeddings import check_dims

        super().__init__(path, reward_mode, reward_options)
        check_dims(query_embeddings.vectors, candidate_embeddings.vectors)
        self.query_embeddings = query_embeddings
        self.candidate_embeddings = candidate_embeddings
        self.query_rows = self._find_queries(query_embeddings)
        self._check_pool(candidate_embeddings)

    def _find_queries(self, embeddings: Embeddings) -> Indices:
        if embeddings.ids is not None:
            row_of = {each: row for row, each in enumerate(embeddings.ids)}
            rows = np.array([row_of.get(each, NO_ROW) for each in self.ids], dtype=np.int64)
        elif (self.recorded_rows == NO_ROW).all() and all(map(_is_number, self.ids)):
            rows = np.array(self.ids, dtype=np.int64)
        else:
            rows = self.recorded_rows
        missing = np.flatnonzero((rows < 0) | (rows >= len(embeddings.vectors)))
        if len(missing):
            raise InputError(
                f"{self.path}: the query embeddings have no row for {len(missing):,} of "
                f"{len(self):,} queries, the first {self.ids[missing[0]]!r}: give those of the "
                "dataset that the file was made from"
            )
        return rows

    def _check_pool(self, embeddings: Embeddings) -> None:
        size = len(embeddings.vectors)
        told = self.meta.get("dataset")
        told = told if isinstance(told, dict) else {}
        outside = np.flatnonzero((self.pointers >= size).any(axis=1))
        wrong = None
        if told.get("pool_size", size) != size:
            wrong = f"they have {size:,} rows, and the file's pool {told['pool_size']}"
        elif len(outside):
            query = self.ids[int(self.offsets.searchsorted(outside[0], side="right")) - 1]
            wrong = (
                f"{len(outside):,} of {len(self.pointers):,} pointers have rows beyond their "
                f"{size:,}, the first in query {query!r}"
            )
        elif embeddings.ids is not None and "pool_sha256" in told:
            from pointer_rl.datasets.embed import digest_ids

            if digest_ids(embeddings.ids) != told["pool_sha256"]:
                wrong = "their ids are not those of the file's pool, in its order"
        if wrong is not None:
            raise InputError(f"{self.path}: the candidate embeddings are of another pool: {wrong}")

    def _query_embedding(self, index: int) -> Floats | None:
        vector: Floats = self.query_embeddings.vectors[int(self.query_rows[index])].numpy()
        return vector

    def _keep(self, queries: Indices) -> None:
        super()._keep(queries)
        self.query_rows = self.query_rows[queries]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
