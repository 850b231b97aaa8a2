"""Run a chunk of rows: shared prefixes, then the rest of each row, then decoding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pointer_rl.local.decoding import read_generation
from pointer_rl_qwen2vl.checkpoint import Checkpoint
from pointer_rl_qwen2vl.greedy import DecodingRow, StopCriterion, decode
from pointer_rl_qwen2vl.keyvalues import HeadShape, Memory, PrefixStore, RowCache
from pointer_rl_qwen2vl.language import OVERFLOWED, LanguageModel, Piece
from pointer_rl_qwen2vl.planning import AnswerTree, Layout, find_prefixes, lay_out
from pointer_rl_qwen2vl.rows import Row, RowResult
from pointer_rl_qwen2vl.shapes import EXACT, ROUNDED, Shapes
from pointer_rl_qwen2vl.steps import CUDACapture, FixedSteps, GrowingSteps, Steps
from pointer_rl_qwen2vl.transfer import to_device
from pointer_rl_qwen2vl.vision import Features

MIN_SAVING = 16
"""Tokens that a shared prefix has to save to be computed separately."""


@dataclass
class Limits:
    """How much is processed at a time. Lowered when memory runs out."""

    batch: int
    """Most tokens of a forward pass, padding included."""
    cache: int
    """Most tokens, padding included, in the key-value cache of the rows that are decoded together.
    A single row may exceed it."""


@dataclass(frozen=True)
class Attempt:
    """The last thing tried, which tells what to reduce if memory ran out."""

    what: Literal["batch", "cache"]
    rows: int
    tokens: int


@dataclass(frozen=True)
class _Prefix:
    """A shared prefix whose keys and values are in the `PrefixStore`."""

    places: NDArray[np.int64]
    """Places of all its tokens, including those of the prefixes before it."""
    next_position: int


_NO_PREFIX = _Prefix(np.zeros(0, dtype=np.int64), 0)


class ChunkModel:
    """Runs chunks of rows through the model."""

    def __init__(self, checkpoint: Checkpoint, limits: Limits, *, graphs: bool) -> None:
        """`limits` may be lowered between runs. With `graphs`, a GPU decodes with CUDA graphs."""
        self._checkpoint = checkpoint
        self._limits = limits
        on_gpu = checkpoint.model.device.type == "cuda"
        self._shapes = ROUNDED if on_gpu else EXACT
        self._model = LanguageModel(checkpoint, self._shapes)
        self._steps: Steps = GrowingSteps(self._model)
        if on_gpu:
            device = self._model.device
            # Which expert gets which tokens may be decided on the CPU, where a graph cannot follow.
            experts = getattr(checkpoint.model.config.get_text_config(), "num_experts", None)
            capturing = partial(CUDACapture, device) if graphs and not experts else None
            self._steps = FixedSteps(self._model, self._shapes, capturing)
        shape = HeadShape.of(checkpoint.model)
        self._row_memory = Memory(shape, limits.cache)
        self._prefix_memory = Memory(shape, limits.cache)
        self.attempt = Attempt("cache", 0, 0)
        self._trees: dict[tuple[tuple[int, ...], ...], AnswerTree] = {}

    @torch.inference_mode()
    def run(
        self,
        rows: Sequence[Row],
        features: Callable[[int], Features],
        stop: StopCriterion | None,
    ) -> Iterator[RowResult]:
        """Score and, with `stop`, generate. `rows` are sorted by their elements.

        Raises torch.OutOfMemoryError. `attempt` then says what did not fit, and results that were
        yielded before remain valid.
        """
        self._trees.clear()
        store, pieces = self._prefill_prefixes(rows, features)
        room = 0 if stop is None else stop.decoding.max_new_tokens
        for group in _groups(pieces, room, self._limits, self._shapes):
            yield from self._finish(rows, pieces, group, room, store, stop)

    def drop_memory(self) -> None:
        """Release the memory of keys and values, and the graphs that are bound to it."""
        self._steps.forget()
        self._row_memory.drop()
        self._prefix_memory.drop()

    # --- shared prefixes ---

    def _prefill_prefixes(
        self, rows: Sequence[Row], features: Callable[[int], Features]
    ) -> tuple[PrefixStore, list[Piece]]:
        """Compute the shared prefixes. Returns them, and the piece of each row that remains."""

        def width(element: int) -> int:
            return 1 if element >= 0 else len(features(element).embeds)

        def layout(row: int, start: int, end: int | None, first: int) -> Layout:
            elements = rows[row].elements[start:end]
            return lay_out(elements, first, features, self._checkpoint.image_token_id)

        plan = find_prefixes([row.elements for row in rows], width, MIN_SAVING)
        tokens = [sum(map(width, rows[n.row].elements[n.start : n.end])) for n in plan.nodes]
        firsts = np.cumsum([1, *tokens]).tolist()
        self.attempt = Attempt("cache", len(rows), self._limits.cache)
        store = PrefixStore(self._prefix_memory.take(firsts[-1]))
        done: list[_Prefix] = [_NO_PREFIX] * len(plan.nodes)
        depths = sorted({node.depth for node in plan.nodes})
        for depth in depths:
            level = [index for index, node in enumerate(plan.nodes) if node.depth == depth]
            pieces = {}
            for index in level:
                node = plan.nodes[index]
                before = _NO_PREFIX if node.parent is None else done[node.parent]
                piece = Piece(
                    layout(node.row, node.start, node.end, before.next_position), before.places
                )
                own = np.arange(firsts[index], firsts[index + 1])
                done[index] = _Prefix(
                    np.concatenate([before.places, own]), piece.layout.next_position
                )
                pieces[index] = piece
            for batch in _batches(pieces, self._limits, self._shapes):
                mine = [pieces[index] for index in batch]
                self._note_batch(mine)
                self._prefill_into_store(mine, store, [done[index].places for index in batch])
        own_pieces = []
        for index, (row, parent) in enumerate(zip(rows, plan.parents, strict=True)):
            before = _NO_PREFIX if parent is None else done[parent]
            start = 0 if parent is None else plan.nodes[parent].end
            tree = self._tree(row.answer_tokens)
            own_pieces.append(
                Piece(layout(index, start, None, before.next_position), before.places, tree)
            )
        return store, own_pieces

    def _prefill_into_store(
        self, pieces: Sequence[Piece], store: PrefixStore, places: Sequence[NDArray[np.int64]]
    ) -> None:
        longest, length = self._shapes.of(pieces)
        cache = RowCache(self._row_memory.take(len(pieces), longest + length))
        self._model.prefill(pieces, store, cache)
        from_rows = [np.full(piece.length, row) for row, piece in enumerate(pieces)]
        from_columns = [longest + np.arange(piece.length) for piece in pieces]
        own = [all_[len(piece.prefix) :] for all_, piece in zip(places, pieces, strict=True)]
        device = self._model.device
        to = (to_device(np.concatenate(each), device) for each in (from_rows, from_columns, own))
        store.write(cache, *to)

    def _note_batch(self, pieces: Sequence[Piece]) -> None:
        _, length = self._shapes.of(pieces)
        self.attempt = Attempt("batch", len(pieces), len(pieces) * length)

    def _tree(self, answers: list[list[int]]) -> AnswerTree:
        key = tuple(map(tuple, answers))
        if key not in self._trees:
            self._trees[key] = AnswerTree.merge(answers, self._checkpoint.turn_end_id)
        return self._trees[key]

    # --- the rest of each row ---

    def _finish(
        self,
        rows: Sequence[Row],
        pieces: Sequence[Piece],
        group: Sequence[Sequence[int]],
        room: int,
        store: PrefixStore,
        stop: StopCriterion | None,
    ) -> Iterator[RowResult]:
        """Prefill a group of rows and its answers, batch by batch; then decode the group."""
        numbers = [index for batch in group for index in batch]
        cache_rows, columns = _cache_size(pieces, group, room, self._shapes)
        whole = Attempt("cache", len(numbers), cache_rows * columns)
        self.attempt = whole
        cache = RowCache(self._row_memory.take(cache_rows, columns))
        predictions = []
        first = 0
        for batch in group:
            mine = [pieces[index] for index in batch]
            self._note_batch(mine)
            part = cache.rows(first, first + len(batch))
            predictions.append(self._predict(mine, self._model.prefill(mine, store, part)))
            cache.places = max(cache.places, part.places)
            first += len(batch)
        # Predictions are read only now, so that the device need not wait between batches.
        decoding_rows: list[DecodingRow] = []
        scores: list[list[float]] = []
        for batch, read in zip(group, predictions, strict=True):
            best, found = read()
            scores += found
            longest, _ = self._shapes.of([pieces[index] for index in batch])
            for index, after in zip(batch, best, strict=True):
                decoding_rows.append(self._begin(rows[index], pieces[index], longest, after, stop))
        if stop is not None:
            self.attempt = whole
            decode(self._model, self._steps, cache, decoding_rows, stop)
        if any(each.overflows for each in decoding_rows):
            self.drop_memory()  # NaN would spread to later rows, even from masked places.
        for index, each, values in zip(numbers, decoding_rows, scores, strict=True):
            piece, row = pieces[index], rows[index]
            generation = None
            if stop is not None and row.generates:
                generation = read_generation(each.tokens, self._checkpoint, stop.decoding.stop)
            tokens = len(piece.prefix) + len(piece.layout.token_ids)
            yield RowResult(row, tokens, generation, values, each.overflows)

    def _predict(
        self, pieces: Sequence[Piece], hidden: Tensor
    ) -> Callable[[], tuple[list[list[int]], list[list[float]]]]:
        """For each piece, the likeliest token at each place and the scores of its answers.

        They are read when the function that is returned is called. Until then, the device may work
        on other pieces.
        """
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
        index = to_device(np.array(places), self._model.device)
        prediction = self._model.predict(hidden.flatten(0, 1)[index], wanted)

        def read() -> tuple[list[list[int]], list[list[float]]]:
            likeliest, values = iter(prediction.likeliest()), iter(prediction.logprobs())
            return (
                [[next(likeliest) for _ in range(count)] for count in counts],
                # Summed in Python: in double precision and in the same order on every device.
                [
                    [sum(next(values) for _ in answer) for answer in piece.tree.predicted]
                    for piece in pieces
                ],
            )

        return read

    def _begin(
        self,
        row: Row,
        piece: Piece,
        longest: int,
        best: Sequence[int],
        stop: StopCriterion | None,
    ) -> DecodingRow:
        """Begin to decode a prefilled row, with as many tokens as its answer tree predicts."""
        end = longest + len(piece.layout.token_ids)
        columns = [np.arange(len(piece.prefix)), np.arange(longest, end)]
        decoding_row = DecodingRow(np.concatenate(columns), piece.layout.next_position)
        decoding_row.overflows = OVERFLOWED in best
        if stop is None or not row.generates or decoding_row.overflows:
            decoding_row.ended = True
        else:
            decoding_row.follow(piece.tree, best, range(end, longest + piece.length), stop)
        return decoding_row


def _batches(pieces: Mapping[int, Piece], limits: Limits, shapes: Shapes) -> list[list[int]]:
    """Batches of keys of pieces of similar length, within the limits.

    Padding counts. A batch has at least one piece.
    """
    order = sorted(pieces, key=lambda key: (pieces[key].length, len(pieces[key].prefix), key))
    batches: list[list[int]] = []
    prefix = 0
    for key in order:
        piece = pieces[key]
        prefix = max(prefix, len(piece.prefix))
        length = shapes.length(piece.length)
        rows = len(batches[-1]) + 1 if batches else 1
        fits = rows * length <= limits.batch
        if batches and fits and rows * shapes.columns(prefix + length) <= limits.cache:
            batches[-1].append(key)
        else:
            batches.append([key])
            prefix = len(piece.prefix)
    return batches


def _groups(
    pieces: Sequence[Piece], room: int, limits: Limits, shapes: Shapes
) -> list[list[list[int]]]:
    """Group batches to be decoded together, within the limit of the cache."""
    groups: list[list[list[int]]] = []
    for whole in _batches(dict(enumerate(pieces)), limits, shapes):
        _, columns = _cache_size(pieces, [whole], room, shapes)
        rows = max(1, limits.cache // columns)
        while rows > 1 and shapes.rows(rows) * columns > limits.cache:
            rows -= 1
        for batch in (whole[start : start + rows] for start in range(0, len(whole), rows)):
            joined = [*(groups[-1] if groups else []), batch]
            if groups and math.prod(_cache_size(pieces, joined, room, shapes)) <= limits.cache:
                groups[-1].append(batch)
            else:
                groups.append([batch])
    return groups


def _cache_size(
    pieces: Sequence[Piece], group: Sequence[Sequence[int]], room: int, shapes: Shapes
) -> tuple[int, int]:
    """Number of rows and columns of a group's cache."""
    columns = room + max(sum(shapes.of([pieces[index] for index in batch])) for batch in group)
    return shapes.rows(sum(map(len, group))), shapes.columns(columns)
