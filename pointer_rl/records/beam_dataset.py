"""RL data and beam data for training, as compact arrays in which a query's candidates are adjacent.

A file is read once, record by record; older layouts are upgraded on the way. A candidate takes a
few bytes and no Python object.

Shapes: Q queries, C candidates of all queries, N candidates of one query, S_max longest pointer.
"""

from __future__ import annotations

import functools
import math
import operator
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from pointer_rl.errors import InputError
from pointer_rl.files import sha256
from pointer_rl.records.beams import read_beams
from pointer_rl.records.fields import CANDIDATE, FAILED, OUTCOME_KEYS, QUERY, has_failed
from pointer_rl.records.formats import stream_records
from pointer_rl.records.layouts import BEAM_LAYOUTS, detect_layout, read_rows, upgrade_record
from pointer_rl.records.records import Judged, Record, read_candidate
from pointer_rl.registry import registry
from pointer_rl.types import NO_ROW, Candidate, Outcome, Reward
from pointer_rl.validate.report import json_pointer
from pointer_rl.validate.schema import SchemaChecker

if TYPE_CHECKING:
    from pointer_rl.datasets.embeddings import Embeddings

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int32]
Indices = npt.NDArray[np.int64]
Kind = Literal["rl", "beam"]

_COLUMNS = {
    "rewards": "f",
    "accuracies": "f",
    "methods": "B",
    "logprobs": "f",
    "temperatures": "f",
    "top_ps": "f",
}
"""The arrays with a number per candidate, and their types as codes of the module `array`."""
_MAX_ROW = 2**31 - 1
_MAX_FLOAT = float(np.finfo(np.float32).max)
_NUMBERS = tuple(
    field.key
    for field in CANDIDATE.values()
    if field.attribute is not None and {"number", "integer"} & set(field.type.json)
    if not field.type.is_list
)
"""Fields of a candidate that hold a number, which must be finite."""
_JUDGEMENT = ("vqa_correct", "vqa_acc_score", "vqa_gt_prob")
"""Fields of which a judged candidate has at least one that is not null."""
_SCHEMAS: dict[Kind, str] = {"rl": "pointer_candidates", "beam": "beams"}
_UNREAD = {
    *(("query", key) for key in QUERY if key not in ("row", "image_id")),
    *(
        ("pointer_candidates", field.key)
        for field in CANDIDATE.values()
        if field.attribute is None and field.key != FAILED
    ),
}
"""Fields of a query and of a candidate that no reward and no training reads."""
_UNUSED = ("beam-fields", "sample-fields", "random-fields", "retrieval-fields")
"""Rules about what else a generator records of its candidates, which training can do without."""


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

    `len` is the number of queries and `dataset[i]` a `Group`, so a torch DataLoader accepts it:
    `DataLoader(dataset, batch_size=32, collate_fn=collate_groups)`. Candidates without a reward are
    left out and counted, and so are queries that have no candidate left.

    `reward_mode` names the reward and `reward_options` are its options (`pointer-rl plugins`). In
    beam data the scores are the rewards, whatever the mode.
    Raises InputError, naming the query, for a record that is neither kind of data or does not
    follow the JSON Schema in what is read of it; for a query that occurs twice; and if no candidate
    has a reward.
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
    pools: RowLists
    """For each query the rows that it could choose from; None: the whole pool."""
    excluded: RowLists
    """For each query the rows that it may not choose; None if the file does not say."""

    method_names: tuple[str, ...]
    kind: Kind
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
    trials: int | None
    """Number of trials that made the file, failed ones too; None for beams that do not say."""

    def __init__(
        self,
        path: Path | str,
        reward_mode: str = "hard_plus_soft",
        reward_options: Mapping[str, object] | None = None,
    ) -> None:
        self.path = Path(path)
        reader = _Reader(registry().create("reward", reward_mode, reward_options))
        for key, record in stream_records(self.path):
            try:
                reader.add(key, record)
            except InputError as error:
                raise InputError(f"{self.path}: query {key!r}: {error}") from error
        if not reader.ids:
            raise InputError(
                f"{self.path}: no candidate with a reward in it (failed: {reader.failed:,}, "
                f"without an outcome: {reader.without_reward:,})"
            )
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
        self.sha256 = sha256(self.path)
        self.failed, self.without_reward = reader.failed, reader.without_reward
        self.empty, self.trials = reader.empty, reader.trials

    @property
    def shots(self) -> tuple[int, ...]:
        """The different lengths of the pointers, ascending."""
        return tuple(np.unique((self.pointers != NO_ROW).sum(axis=1)).tolist())

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({str(self.path)!r}: {len(self):,} queries, "
            f"{len(self.rewards):,} candidates)"
        )

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
        for name in ("pointers", *_COLUMNS):
            setattr(self, name, getattr(self, name)[candidates])
        self.recorded_rows = self.recorded_rows[queries]
        self.ids = [self.ids[query] for query in queries]
        self.image_ids = [self.image_ids[query] for query in queries]
        self.pools, self.excluded = (
            RowLists(each[query] for query in queries) for each in (self.pools, self.excluded)
        )


class BeamDatasetWithEmbedding(BeamDataset):
    """A `BeamDataset` with the embeddings of its queries and its pool, or the files of these.

    Queries are found by id or, in embeddings without ids, by `query.row`. If the file has no rows
    and all ids are numbers, as in Lever-LM's files, the ids are the rows. Also raises InputError
    for embeddings of other queries or of another pool than the file's.
    """

    query_rows: Indices
    """[Q] rows of `query_embeddings`."""

    def __init__(
        self,
        path: Path | str,
        query_embeddings: Embeddings | Path | str,
        candidate_embeddings: Embeddings | Path | str,
        reward_mode: str = "hard_plus_soft",
        reward_options: Mapping[str, object] | None = None,
    ) -> None:
        from pointer_rl.datasets.embeddings import check_dims, load_embeddings

        queries, candidates = (
            load_embeddings(each) if isinstance(each, (str, Path)) else each
            for each in (query_embeddings, candidate_embeddings)
        )
        super().__init__(path, reward_mode, reward_options)
        check_dims(queries.vectors, candidates.vectors)
        self.query_embeddings, self.candidate_embeddings = queries, candidates
        self.query_rows = self._find_queries(queries)
        self._check_pool(candidates)

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
            from pointer_rl.datasets.identity import digest_ids

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


def collate_groups(groups: Sequence[Group]) -> dict[str, Any]:
    """The `collate_fn` of a DataLoader: B groups as one batch, padded to the N of the largest.

    ids: B query ids; pointers: [B, N, S_max] int64, padded with NO_ROW; rewards: [B, N] float32, 0
    where there is no candidate; valid: [B, N] bool, whether there is one; query_embeddings: [B, d]
    float32, if the dataset has them.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    def padded(arrays: Iterable[npt.NDArray[Any]], value: float) -> torch.Tensor:
        return pad_sequence([torch.tensor(each) for each in arrays], True, value)

    batch = {
        "ids": [each.id for each in groups],
        "pointers": padded((each.pointers.astype(np.int64) for each in groups), NO_ROW),
        "rewards": padded((each.rewards for each in groups), 0.0),
        "valid": padded((np.ones(len(each.rewards), dtype=bool) for each in groups), False),
    }
    vectors = [each.query_embedding for each in groups if each.query_embedding is not None]
    return {**batch, "query_embeddings": torch.tensor(np.stack(vectors))} if vectors else batch


class RowLists:
    """Some rows of the pool, or None, for each query, in one array: an array object for each would
    cost 130 bytes a query."""

    def __init__(self, lists: Iterable[Iterable[int] | None] = ()) -> None:
        self._rows, self._ends, self._given = array("i"), array("q", [0]), bytearray()
        for each in lists:
            self.append(each)

    def append(self, rows: Iterable[int] | None) -> None:
        """Add those of the next query."""
        self._rows.extend(() if rows is None else rows)
        self._ends.append(len(self._rows))
        self._given.append(rows is not None)

    def __iter__(self) -> Iterator[Rows | None]:
        return map(self.__getitem__, range(len(self)))

    def __len__(self) -> int:
        return len(self._given)

    def __getitem__(self, query: int) -> Rows | None:
        if not self._given[query]:  # raises IndexError
            return None
        start, end = self._ends[query], self._ends[query + 1]
        return np.array(self._rows[start:end], dtype=np.int32)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


# --- reading a file ---


class _Reader:
    """Takes records one by one and collects the arrays of a dataset, named as there."""

    def __init__(self, reward: Reward) -> None:
        self._reward = reward
        self.kind: Kind | None = None
        self.meta: Record = {}
        self.method_of: dict[str, int] = {}
        """Name → index, as `columns["methods"]` holds it."""
        self.ids: list[str] = []
        self.image_ids: list[str | None] = []
        self.recorded_rows = array("q")
        self.offsets = array("q", [0])
        self.columns: dict[str, array[Any]] = {name: array(code) for name, code in _COLUMNS.items()}
        self.pools = RowLists()
        self.failed = self.without_reward = self.empty = 0
        self.trials: int | None = 0
        self._excluded = RowLists()
        self._rows = array("i")
        self._lengths = array("i")

    def add(self, key: str, record: Any) -> None:
        """Add a member of the file. Raises InputError, which names neither file nor query."""
        if key.startswith("_"):
            if key == "_meta" and isinstance(record, dict):
                self.meta = record
            return
        layout = detect_layout(record)
        kind: Kind = "beam" if layout in BEAM_LAYOUTS else "rl"
        record = upgrade_record(record, layout)
        if self.kind not in (kind, None):
            raise InputError("RL data and beam data in one file; keep one kind")
        self.kind = kind
        _check(record, kind)
        query = record.get("query", {})
        own = query.get("row")
        own_row = NO_ROW if own is None else _rows([own], "query.row")[0]
        pool, excluded = (_optional_rows(record, key) for key in ("pool", "excluded"))
        self._add_candidates(record)
        if kind == "beam":
            self._count(record)
        if len(self._lengths) == self.offsets[-1]:
            self.empty += 1
            return
        image_id = query.get("image_id")
        self.ids.append(key)
        self.image_ids.append(None if image_id is None else str(image_id))
        self.recorded_rows.append(own_row)
        self.offsets.append(len(self._lengths))
        self.pools.append(pool)
        self._excluded.append(excluded)

    def _count(self, record: Record) -> None:
        """Count the trials of a query's beams, of which only the best are in the file."""
        trials = record.get("trials")
        if self.trials is not None:
            self.trials = self.trials + trials if isinstance(trials, int) else None

    def _add_candidates(self, record: Record) -> None:
        judged = _beams(record) if self.kind == "beam" else _candidates(record)
        for candidate, outcome in judged:
            asked = outcome.failure is not None or outcome.correct is not None
            if self.kind == "rl" and asked:
                self.trials = (self.trials or 0) + 1
            if outcome.failure is not None:
                self.failed += 1
                continue
            if self.kind == "beam":
                reward = candidate.beam_score or 0.0
            elif asked:
                reward = float(self._reward(outcome, candidate))
            else:
                reward = math.nan
            if not abs(reward) <= _MAX_FLOAT:  # true of NaN as well
                self.without_reward += 1
                continue
            self._rows.extend(candidate.pointer)
            self._lengths.append(len(candidate.pointer))
            numbers = (
                reward,
                _or_nan(outcome.accuracy),
                self._method(candidate.gen_method),
                _or_nan(candidate.logprob_score),
                _or_nan(candidate.temperature),
                _or_nan(candidate.top_p),
            )
            for column, number in zip(self.columns.values(), numbers, strict=True):
                column.append(number)

    def _method(self, name: str) -> int:
        index = self.method_of.setdefault(name, len(self.method_of))
        if index > 255:
            raise InputError("more than 256 gen_methods in one file: are they names of methods?")
        return index

    def pointers(self) -> Rows:
        """[C, S_max], padded with NO_ROW."""
        lengths, rows = np.asarray(self._lengths), np.asarray(self._rows)
        width = int(lengths.max(initial=0))
        if len(rows) == len(lengths) * width:  # all have the same length: no copy
            return rows.reshape(len(lengths), width)
        padded = np.full((len(lengths), width), NO_ROW, dtype=np.int32)
        padded[np.arange(width) < lengths[:, None]] = rows
        return padded

    def excluded(self) -> RowLists:
        """For each query, the rows its record excludes, and its own if queries and pool are one.

        The rows of a query are ascending.
        """
        dataset = self.meta.get("dataset")
        shared = isinstance(dataset, dict) and dataset.get("shared_pool") is True
        own_rows = self.recorded_rows if shared else [NO_ROW] * len(self.ids)
        return RowLists(map(_union, self._excluded, own_rows))


# --- one record -------------------------------------------------------------------------------


@functools.cache
def _checker(kind: Kind) -> SchemaChecker:
    return SchemaChecker(_SCHEMAS[kind], "record")


def _check(record: Record, kind: Kind) -> None:
    """Raise InputError if a record breaks the schema, by which `validate` goes, in what is read."""
    checker = _checker(kind)
    if checker.is_valid(record):
        return
    if kind == "rl":
        judged = [_without_empty_outcome(each) for each in record["pointer_candidates"]]
        record = {**record, "pointer_candidates": judged}
    for fault in checker.faults(record, limit=0):
        field = tuple(part for part in fault.path if isinstance(part, str))[:2]
        if field not in _UNREAD and fault.rule not in _UNUSED:
            raise InputError(
                f"{fault.message} ({json_pointer(fault.path)}): {fault.fix}; `pointer-rl validate` "
                "lists everything wrong with a file"
            )


def _without_empty_outcome(candidate: Record) -> Record:
    """A candidate that was never judged, as one whose trial failed: it has no outcome to check.

    One that was never asked is not a wrong one: it is left out, and counted.
    """
    if has_failed(candidate) or any(candidate.get(key) is not None for key in _JUDGEMENT):
        return candidate
    kept = {key: value for key, value in candidate.items() if key not in OUTCOME_KEYS}
    return {**kept, FAILED: True}


def _candidates(record: Record) -> Iterator[Judged]:
    for index, value in enumerate(record["pointer_candidates"]):
        _rows(value["pointer"], f"candidate {index}: pointer")
        for key in _NUMBERS:
            number = value.get(key)
            if number is not None and not abs(number) <= _MAX_FLOAT:
                raise InputError(f"candidate {index}: {key} is too large for training")
        yield read_candidate(value)


def _beams(record: Record) -> Iterator[Judged]:
    for index, beam in enumerate(read_beams(record)):
        _rows(list(beam.pointer), f"beam {index}: pointer")
        yield Candidate(beam.pointer, "beam", beam_rank=index, beam_score=beam.score), Outcome()


def _rows(value: Any, what: str) -> list[int]:
    rows = read_rows(value, what)
    if max(rows, default=0) > _MAX_ROW:
        raise InputError(f"{what} has the row {max(rows)}: no pool is that large")
    return rows


def _optional_rows(record: Record, key: str) -> list[int] | None:
    value = record.get(key)
    return None if value is None else _rows(value, key)


def _union(rows: Rows | None, own: int) -> list[int] | None:
    known = set(() if rows is None else rows.tolist())
    if own != NO_ROW:
        known.add(own)
    return None if rows is None and not known else sorted(known)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
