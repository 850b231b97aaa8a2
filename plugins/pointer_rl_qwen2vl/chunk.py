"""A chunk of rows through the model: shared prefixes, then each row's own, then decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pointer_rl.local.decoding import read
from pointer_rl_qwen2vl.checkpoint import Checkpoint
from pointer_rl_qwen2vl.continuations import AnswerTree
from pointer_rl_qwen2vl.greedy import Ending, Writer, decode
from pointer_rl_qwen2vl.keyvalues import HeadShape, Memory, PrefixStore, RowCache
from pointer_rl_qwen2vl.language import OVERFLOWED, LanguageModel, Piece
from pointer_rl_qwen2vl.layout import Layout, lay_out
from pointer_rl_qwen2vl.prefixes import find_prefixes
from pointer_rl_qwen2vl.vision import Features
from pointer_rl_qwen2vl.window import Outcome, Row

__all__ = ["WORTH", "Attempt", "ChunkModel", "Limits"]

WORTH = 16
"""Tokens that a shared prefix has to save."""


@dataclass
class Limits:
    """How much is taken at a time. Lowered where memory runs out."""

    batch: int
    """Tokens of one pass, padding included."""
    cache: int
    """Tokens whose keys and values are held: of the rows decoded together."""


@dataclass(frozen=True)
class Attempt:
    """What was tried last: what to take less of, should memory have run out."""

    what: Literal["batch", "cache"]
    rows: int
    tokens: int


@dataclass(frozen=True)
class _Prefix:
    """A shared prefix whose keys and values are in the store."""

    places: NDArray[np.int64]
    """Of all its tokens, with those of the prefixes before it."""
    next_position: int


_NOTHING = _Prefix(np.zeros(0, dtype=np.int64), 0)


class ChunkModel:
    """The model, for chunks of rows."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._model = LanguageModel(checkpoint)
        self.shape = HeadShape.of(checkpoint.model)
        self._row_memory = Memory(self.shape)
        self._prefix_memory = Memory(self.shape)
        self.attempt = Attempt("cache", 0, 0)
        self._trees: dict[tuple[tuple[int, ...], ...], AnswerTree] = {}

    @torch.inference_mode()
    def run(
        self,
        rows: Sequence[Row],
        features: Callable[[int], Features],
        ends: Ending | None,
        limits: Limits,
    ) -> Iterator[Outcome]:
        """Score and, with `ends`, generate. `rows` are sorted by their elements.

        Raises torch.OutOfMemoryError; `attempt` then says at what, and outcomes that came before
        are good.
        """
        self._trees.clear()
        store, pieces = self._prefill_prefixes(rows, features, limits)
        room = 0 if ends is None else ends.decoding.max_new_tokens
        for group in _groups(pieces, room, limits):
            yield from self._finish(rows, pieces, group, room, store, ends)

    def drop_memory(self) -> None:
        """Give up what is kept of keys and values."""
        self._row_memory.drop()
        self._prefix_memory.drop()

    # --- shared prefixes ---

    def _prefill_prefixes(
        self, rows: Sequence[Row], features: Callable[[int], Features], limits: Limits
    ) -> tuple[PrefixStore, list[Piece]]:
        """The store with what rows share, and each row's own piece."""

        def width(element: int) -> int:
            return 1 if element >= 0 else len(features(element).embeds)

        def layout(row: int, start: int, end: int | None, first: int) -> Layout:
            elements = rows[row].elements[start:end]
            return lay_out(elements, first, features, self._checkpoint.image_token_id)

        plan = find_prefixes([row.elements for row in rows], width, WORTH)
        tokens = [sum(map(width, rows[n.row].elements[n.start : n.end])) for n in plan.nodes]
        firsts = np.cumsum([1, *tokens]).tolist()
        self.attempt = Attempt("cache", len(rows), limits.cache)
        store = PrefixStore(self._prefix_memory.take(firsts[-1]))
        done: list[_Prefix] = [_NOTHING] * len(plan.nodes)
        depths = sorted({node.depth for node in plan.nodes})
        for depth in depths:
            level = [index for index, node in enumerate(plan.nodes) if node.depth == depth]
            pieces = {}
            for index in level:
                node = plan.nodes[index]
                before = _NOTHING if node.parent is None else done[node.parent]
                piece = Piece(
                    layout(node.row, node.start, node.end, before.next_position), before.places
                )
                own = np.arange(firsts[index], firsts[index + 1])
                done[index] = _Prefix(
                    np.concatenate([before.places, own]), piece.layout.next_position
                )
                pieces[index] = piece
            for batch in _batches(pieces, limits.batch):
                mine = [pieces[index] for index in batch]
                self._note_batch(mine)
                self._prefill_into_store(mine, store, [done[index].places for index in batch])
        own_pieces = []
        for index, (row, parent) in enumerate(zip(rows, plan.parents, strict=True)):
            before = _NOTHING if parent is None else done[parent]
            start = 0 if parent is None else plan.nodes[parent].end
            tree = self._tree(row.answer_tokens)
            own_pieces.append(
                Piece(layout(index, start, None, before.next_position), before.places, tree)
            )
        return store, own_pieces

    def _prefill_into_store(
        self, pieces: Sequence[Piece], store: PrefixStore, places: Sequence[NDArray[np.int64]]
    ) -> None:
        longest = max(len(piece.prefix) for piece in pieces)
        columns = longest + max(piece.length for piece in pieces)
        cache = RowCache(self._row_memory.take(len(pieces), columns))
        self._model.prefill(pieces, store, cache)
        from_rows = [np.full(piece.length, row) for row, piece in enumerate(pieces)]
        from_columns = [longest + np.arange(piece.length) for piece in pieces]
        own = [all_[len(piece.prefix) :] for all_, piece in zip(places, pieces, strict=True)]
        to = [torch.from_numpy(np.concatenate(each)) for each in (from_rows, from_columns, own)]
        store.write(cache, *(each.to(self._model.device) for each in to))

    def _note_batch(self, pieces: Sequence[Piece]) -> None:
        tokens = len(pieces) * max(piece.length for piece in pieces)
        self.attempt = Attempt("batch", len(pieces), tokens)

    def _tree(self, answers: list[list[int]]) -> AnswerTree:
        key = tuple(map(tuple, answers))
        if key not in self._trees:
            self._trees[key] = AnswerTree.merge(answers, self._checkpoint.turn_end_id)
        return self._trees[key]

    # --- each row's own ---

    def _finish(
        self,
        rows: Sequence[Row],
        pieces: Sequence[Piece],
        group: Sequence[Sequence[int]],
        room: int,
        store: PrefixStore,
        ends: Ending | None,
    ) -> Iterator[Outcome]:
        """Prefill a group batch by batch, with its answers; then decode it."""
        numbers = [index for batch in group for index in batch]
        columns = _columns(pieces, group, room)
        whole = Attempt("cache", len(numbers), len(numbers) * columns)
        self.attempt = whole
        cache = RowCache(self._row_memory.take(len(numbers), columns))
        writers: list[Writer] = []
        scores: list[list[float]] = []
        for batch in group:
            mine = [pieces[index] for index in batch]
            self._note_batch(mine)
            part = cache.rows(len(writers), len(writers) + len(batch))
            longest = max(len(piece.prefix) for piece in mine)
            best, found = self._predict(mine, self._model.prefill(mine, store, part))
            scores += found
            cache.places = max(cache.places, part.places)
            for index, piece, after in zip(batch, mine, best, strict=True):
                writers.append(self._writer(rows[index], piece, longest, after, ends))
        if ends is not None:
            self.attempt = whole
            decode(self._model, cache, writers, ends)
        if any(writer.overflows for writer in writers):
            self.drop_memory()  # others would take what is no number along, masked or not
        for index, writer, values in zip(numbers, writers, scores, strict=True):
            piece, row = pieces[index], rows[index]
            generation = None
            if ends is not None and row.generates:
                generation = read(writer.tokens, self._checkpoint, ends.decoding.stop)
            tokens = len(piece.prefix) + len(piece.layout.token_ids)
            yield Outcome(row, tokens, generation, values, writer.overflows)

    def _predict(
        self, pieces: Sequence[Piece], hidden: Tensor
    ) -> tuple[list[list[int]], list[list[float]]]:
        """For each piece: the likeliest token at each place, and the scores of its answers."""
        length = hidden.shape[1]
        places: list[int] = []
        wanted: list[tuple[int, int]] = []
        counts = []
        for row, piece in enumerate(pieces):
            first = row * length + len(piece.layout.token_ids) - 1
            for answer in piece.tree.predicted:
                wanted += [(len(places) + place, token) for place, token in answer]
            counts.append(1 + len(piece.tree.token_ids))
            places += range(first, first + counts[-1])
        index = torch.tensor(places, device=self._model.device)
        best, logprobs = self._model.predict(hidden.flatten(0, 1)[index], wanted)
        likeliest, values = iter(best), iter(logprobs)
        return (
            [[next(likeliest) for _ in range(count)] for count in counts],
            # Summed here, in double precision and in the answers' order, whatever the device.
            [
                [sum(next(values) for _ in answer) for answer in piece.tree.predicted]
                for piece in pieces
            ],
        )

    def _writer(
        self, row: Row, piece: Piece, longest: int, best: Sequence[int], ends: Ending | None
    ) -> Writer:
        end = longest + len(piece.layout.token_ids)
        columns = [np.arange(len(piece.prefix)), np.arange(longest, end)]
        writer = Writer(np.concatenate(columns), piece.layout.next_position)
        writer.overflows = OVERFLOWED in best
        if ends is None or not row.generates or writer.overflows:
            writer.ended = True
        else:
            writer.follow(piece.tree, best, range(end, longest + piece.length), ends)
        return writer


def _batches(pieces: Mapping[int, Piece], tokens: int) -> list[list[int]]:
    """The pieces' keys, those of like lengths together, in batches of at most so many tokens.

    Padding counts; a batch has at least one piece.
    """
    order = sorted(pieces, key=lambda key: (pieces[key].length, len(pieces[key].prefix), key))
    batches: list[list[int]] = []
    for key in order:
        if batches and (len(batches[-1]) + 1) * pieces[key].length <= tokens:
            batches[-1].append(key)
        else:
            batches.append([key])
    return batches


def _groups(pieces: Sequence[Piece], room: int, limits: Limits) -> list[list[list[int]]]:
    """Batches that are decoded together: their keys and values fit into `limits.cache` tokens."""
    groups: list[list[list[int]]] = []
    for batch in _batches(dict(enumerate(pieces)), limits.batch):
        joined = [*(groups[-1] if groups else []), batch]
        if groups and sum(map(len, joined)) * _columns(pieces, joined, room) <= limits.cache:
            groups[-1].append(batch)
        else:
            groups.append([batch])
    return groups


def _columns(pieces: Sequence[Piece], group: Sequence[Sequence[int]], room: int) -> int:
    """Of a group's rows in the cache."""
    return room + max(
        max(len(pieces[index].prefix) for index in batch)
        + max(pieces[index].length for index in batch)
        for batch in group
    )
