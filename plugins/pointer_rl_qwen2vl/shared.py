"""engine=shared: what requests have in common is computed once.

A window of prompts is sorted, and worked off in chunks of neighbours that fit into memory: first
the prefixes that several prompts share, level by level; then what is each prompt's own, with the
answers to score behind it, in batches of like lengths; then, for those that are not finished with
that, greedy decoding, all rows of a group together.

Everything is planned from the requests alone, so that the same requests give the same floats
(until memory runs out, which lowers what is taken at a time).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from pointer_rl.errors import InputError
from pointer_rl.types import Decoding
from pointer_rl_qwen2vl.checkpoint import Checkpoint
from pointer_rl_qwen2vl.chunk import Attempt, ChunkModel, Limits
from pointer_rl_qwen2vl.greedy import Ending
from pointer_rl_qwen2vl.jobs import Job, Result
from pointer_rl_qwen2vl.patches import PatchStore
from pointer_rl_qwen2vl.plain import PlainEngine
from pointer_rl_qwen2vl.prefixes import common_length
from pointer_rl_qwen2vl.vision import Features, FeatureStore
from pointer_rl_qwen2vl.window import Gathering, Row, Window

__all__ = ["SharedEngine"]

logger = logging.getLogger(__name__)

_CACHE_BYTES = {"cpu": 256 * 2**20}
_CACHE_BYTES_OTHERWISE = 2 * 2**30
"""Keys and values held at a time, by device: of rows that are decoded together, and as much again
of shared prefixes. Vision features may take as much."""


class SharedEngine:
    """Takes jobs through the model, their common parts once."""

    def __init__(self, checkpoint: Checkpoint, patches: PatchStore, batch_tokens: int) -> None:
        """Raises InputError for a model that it cannot run."""
        _check(checkpoint)
        self._checkpoint = checkpoint
        self._plain = PlainEngine(checkpoint, patches, batch_tokens)
        self._model = ChunkModel(checkpoint)
        device = checkpoint.model.device.type
        cache_bytes = _CACHE_BYTES.get(device, _CACHE_BYTES_OTHERWISE)
        cache = max(batch_tokens, cache_bytes // self._model.shape.token_bytes)
        self._limits = Limits(batch=batch_tokens, cache=cache)
        self._features = FeatureStore(checkpoint, patches, cache_bytes, ahead=device != "cpu")

    def run(self, jobs: Sequence[Job], decoding: Decoding | None) -> Iterator[tuple[int, Result]]:
        """Generate (unless `decoding` is None) and score: each job's index and result, once."""
        if decoding is not None and decoding.num_beams > 1:
            yield from self._plain.run(jobs, decoding)  # beams part and join: transformers' task
            return
        generates = decoding is not None
        window = Window(
            jobs,
            generates=generates,
            image_token_id=self._checkpoint.image_token_id,
            answer_tokens=max(1, self._limits.batch // 2),
        )
        ends = None if decoding is None else Ending(self._checkpoint, decoding)
        self._features.begin(window.images)
        try:
            yield from self._run(window, Gathering(jobs, generates=generates), ends)
        finally:
            self._features.end()

    def _run(
        self, window: Window, gathering: Gathering, ends: Ending | None
    ) -> Iterator[tuple[int, Result]]:
        """Chunk by chunk."""
        held: dict[int, Features] = {}
        chunk: list[Row] = []
        tokens = 0
        for row in window.rows:
            found = self._find_features(row, window, held)
            if isinstance(found, str):
                yield from gathering.fail(row, found)
                continue
            held |= found
            shared = common_length(chunk[-1].elements, row.elements) if chunk else 0
            new = _tokens(row.elements[shared:], held)
            if chunk and tokens + new > self._limits.cache:
                yield from self._answer(chunk, held, ends, gathering)
                held = {each: held[each] for each in row.elements if each < 0}
                chunk, tokens, new = [], 0, _tokens(row.elements, held)
            chunk.append(row)
            tokens += new
        if chunk:
            yield from self._answer(chunk, held, ends, gathering)

    def _find_features(
        self, row: Row, window: Window, held: dict[int, Features]
    ) -> dict[int, Features] | str:
        """Of the row's images those that are not held, or why one has none."""
        found: dict[int, Features] = {}
        for element in dict.fromkeys(each for each in row.elements if each < 0):
            if element not in held:
                features = self._features.get(window.places[element])
                if isinstance(features, str):
                    return features
                found[element] = features
        return found

    def _answer(
        self,
        rows: Sequence[Row],
        features: dict[int, Features],
        ends: Ending | None,
        gathering: Gathering,
        before: Limits | None = None,
    ) -> Iterator[tuple[int, Result]]:
        """Answer some rows; where memory does not suffice, fewer at a time.

        before: the limits as they were when memory first ran out on these rows.
        """
        before = before or replace(self._limits)
        waiting = dict.fromkeys(rows)
        try:
            for outcome in self._model.run(rows, features.__getitem__, ends, self._limits):
                del waiting[outcome.row]
                yield from gathering.add(outcome)
        except torch.OutOfMemoryError as error:
            message = str(error).partition("\n")[0]
        else:
            return
        # Outside the `except`: the traceback holds the tensors of the failed pass.
        self._model.drop_memory()
        torch.cuda.empty_cache()
        rows = list(waiting)
        parts: Sequence[Sequence[Row]] = (rows[: len(rows) // 2], rows[len(rows) // 2 :])
        if len(rows) == 1:
            halves = rows[0].halves()
            if len(halves) == 1:
                self._limits = before  # it was this row: the others need not pay for it
                yield from gathering.fail(rows[0], _too_long(rows[0], features, message))
                return
            parts = [[half] for half in halves]
        elif self._lower(self._model.attempt):
            parts = [rows]
        for part in parts:
            yield from self._answer(part, features, ends, gathering, before)

    def _lower(self, attempt: Attempt) -> bool:
        """Take less at a time from now on; whether that alone may do."""
        if attempt.rows == 1:
            return False  # with fewer rows in memory it may fit
        if attempt.what == "cache":
            self._limits.cache = attempt.tokens // 2
            logger.warning(
                "out of memory with %d prompts at a time; continuing with fewer", attempt.rows
            )
            return False
        self._limits.batch = attempt.tokens // 2
        logger.warning(
            "out of memory with %d prompts in a pass; continuing with half: batch_tokens=%d"
            " avoids the failed passes",
            *(attempt.rows, self._limits.batch),
        )
        return True


def _check(checkpoint: Checkpoint) -> None:
    config = checkpoint.model.config.get_text_config()
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise InputError(
            "the model's attention has sliding windows, which engine=shared cannot run; use"
            " engine=plain"
        )


def _tokens(elements: Sequence[int], features: dict[int, Features]) -> int:
    return sum(1 if each >= 0 else len(features[each].embeds) for each in elements)


def _too_long(row: Row, features: dict[int, Features], message: str) -> str:
    return (
        f"out of memory on a single prompt ({_tokens(row.elements, features)} tokens); use a"
        f" smaller max_pixels or fewer demonstrations ({message})"
    )
