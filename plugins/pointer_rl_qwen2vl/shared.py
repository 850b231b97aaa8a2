"""engine=shared: compute shared prompt prefixes only once.

Prompts are sorted and processed in chunks that fit into memory. A chunk first computes the prefixes
that several of its prompts share, level by level. Then, one group of rows at a time, it computes
the rest of each prompt with its answers to score, and decodes the rows that need more tokens.

The plan depends on the requests alone, so the same requests give bit-identical results, until
memory runs out and batches become smaller.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

import torch

from pointer_rl.errors import InputError, first_line
from pointer_rl.local.batching import Result
from pointer_rl.types import Count, Decoding
from pointer_rl_qwen2vl import chunk, memory
from pointer_rl_qwen2vl.checkpoint import Checkpoint
from pointer_rl_qwen2vl.chunk import Attempt, ChunkModel, Limits
from pointer_rl_qwen2vl.greedy import StopCriterion
from pointer_rl_qwen2vl.inputs import TokenisedRequest
from pointer_rl_qwen2vl.keyvalues import HeadShape
from pointer_rl_qwen2vl.patches import PatchCache
from pointer_rl_qwen2vl.planning import AnswerTree, common_length, find_prefixes
from pointer_rl_qwen2vl.rows import ResultAssembler, Row, SortedRows
from pointer_rl_qwen2vl.vision import Features, FeatureStore

logger = logging.getLogger(__name__)


class SharedEngine:
    """Runs requests, computing shared prefixes once."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        patches: PatchCache,
        *,
        batch_tokens: int,
        cache_gib: float,
        graphs: bool,
    ) -> None:
        """For the other arguments see `Qwen2VLOptions`.

        Raises InputError for a model that it cannot run.
        """
        config = checkpoint.model.config.get_text_config()
        if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
            raise InputError(
                "the model uses sliding-window attention, which engine=shared does not support; use"
                " engine=plain"
            )
        self._checkpoint = checkpoint
        cache_bytes = int(cache_gib * 2**30)
        tokens = cache_bytes // HeadShape.of(checkpoint.model).token_bytes
        self._limits = Limits(batch=batch_tokens, cache=max(batch_tokens, tokens))
        self._model = ChunkModel(checkpoint, self._limits, graphs=graphs)
        self._features = FeatureStore(checkpoint, patches, int(cache_bytes * memory.FEATURES_SHARE))

    def run(
        self, requests: Sequence[TokenisedRequest], decoding: Decoding | None
    ) -> Iterator[tuple[int, Result]]:
        """Yield the index and the result of each request, once.

        `decoding` must be greedy; with None, requests are only scored.
        """
        generates = decoding is not None
        sorted_rows = SortedRows(
            requests,
            generates=generates,
            image_token_id=self._checkpoint.image_token_id,
            answer_tokens=max(1, self._limits.batch // 2),
        )
        stop = None if decoding is None else StopCriterion(self._checkpoint, decoding)
        assembler = ResultAssembler(requests, generates=generates)
        self._features.begin(sorted_rows.images)
        try:
            yield from self._run_chunks(sorted_rows, assembler, stop)
        finally:
            self._features.end()

    def _run_chunks(
        self, sorted_rows: SortedRows, assembler: ResultAssembler, stop: StopCriterion | None
    ) -> Iterator[tuple[int, Result]]:
        held: dict[int, Features] = {}
        pending: list[Row] = []
        tokens = 0
        indices = sorted_rows.image_indices
        for row in sorted_rows.rows:
            missing = [e for e in dict.fromkeys(row.elements) if e < 0 and e not in held]
            try:
                held |= {each: self._features.get(indices[each]) for each in missing}
            except InputError as error:
                yield from assembler.fail(row, str(error))
                continue
            shared = common_length(pending[-1].elements, row.elements) if pending else 0
            new = _count_tokens(row.elements[shared:], held)
            if pending and tokens + new > self._limits.cache:
                yield from self._answer(pending, held, stop, assembler)
                held = {each: held[each] for each in row.elements if each < 0}
                pending, tokens, new = [], 0, _count_tokens(row.elements, held)
            pending.append(row)
            tokens += new
        if pending:
            yield from self._answer(pending, held, stop, assembler)

    def _answer(
        self,
        rows: Sequence[Row],
        features: dict[int, Features],
        stop: StopCriterion | None,
        assembler: ResultAssembler,
        before: Limits | None = None,
    ) -> Iterator[tuple[int, Result]]:
        """Answer some rows. If memory runs out, continue with fewer of them at a time.

        `before` are the limits to restore if a row does not fit even alone.
        """
        before = before or replace(self._limits)
        logger.debug("chunk of %d prompts", len(rows))
        waiting = dict.fromkeys(rows)
        try:
            for result in self._model.run(rows, features.__getitem__, stop):
                del waiting[result.row]
                yield from assembler.add(result)
        except torch.OutOfMemoryError as error:
            message = first_line(error)
        else:
            return
        # Not in the `except` block: there the traceback still holds the tensors of the failed pass.
        self._model.drop_memory()
        torch.cuda.empty_cache()
        rows = list(waiting)
        parts: Sequence[Sequence[Row]]
        if len(rows) == 1:
            halves = rows[0].halves()
            if len(halves) == 1:
                # Only this row is too large; keep batches of others.
                self._limits.batch, self._limits.cache = before.batch, before.cache
                yield from assembler.fail(rows[0], _too_long(rows[0], features, message))
                return
            parts = [[half] for half in halves]
        elif self._lower_limits(self._model.attempt):
            parts = [rows]
        else:
            parts = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
        for part in parts:
            yield from self._answer(part, features, stop, assembler, before)

    def _lower_limits(self, attempt: Attempt) -> bool:
        """Halve the limit that a failed attempt ran into.

        Returns True to try the same rows again, False to split them.
        """
        if attempt.rows == 1:
            return False  # A smaller chunk leaves more memory to a single row.
        if attempt.what == "cache":
            self._limits.cache = min(self._limits.cache, attempt.tokens) // 2
            logger.warning(
                "out of memory with %d prompts at a time; continuing with fewer", attempt.rows
            )
            return False
        self._limits.batch = min(self._limits.batch, attempt.tokens) // 2
        logger.warning(
            "out of memory with %d prompts in a pass; continuing with half: set batch_tokens=%d"
            " to avoid the failed passes",
            attempt.rows,
            self._limits.batch,
        )
        return True


def count_tokens(
    requests: Sequence[TokenisedRequest], patches: PatchCache, image_token_id: int
) -> Count:
    """Estimate the tokens that the engine computes for these requests, for `generate --plan`.

    It is a lower bound, as if all requests fitted into one chunk. Images are opened and cut into
    patches, since their size determines their number of tokens. Requests with an image that cannot
    be opened are not counted.
    """
    sorted_rows = SortedRows(
        requests, generates=True, image_token_id=image_token_id, answer_tokens=sys.maxsize
    )
    widths: dict[int, int] = {}
    for number, index in sorted_rows.image_indices.items():
        with suppress(InputError):
            widths[number] = patches.get(*sorted_rows.images[index]).tokens

    def width(element: int) -> int:
        return 1 if element >= 0 else widths[element]

    rows = [row for row in sorted_rows.rows if all(e >= 0 or e in widths for e in row.elements)]
    whole = [sum(map(width, row.elements)) for row in rows]
    plan = find_prefixes([row.elements for row in rows], width, chunk.MIN_SAVING)
    shared = sum(sum(map(width, rows[n.row].elements[n.start : n.end])) for n in plan.nodes)
    own = [
        sum(map(width, row.elements[0 if parent is None else plan.nodes[parent].end :]))
        for row, parent in zip(rows, plan.parents, strict=True)
    ]
    trees = [AnswerTree.merge(row.answer_tokens, end=0) for row in rows]
    return Count(
        prompt_tokens=sum(whole) + sum(len(each) for row in rows for each in row.answer_tokens),
        unique_tokens=shared + sum(own) + sum(len(tree.token_ids) for tree in trees),
    )


def _count_tokens(elements: Sequence[int], features: dict[int, Features]) -> int:
    return sum(1 if each >= 0 else len(features[each].embeds) for each in elements)


def _too_long(row: Row, features: dict[int, Features], message: str) -> str:
    tokens = _count_tokens(row.elements, features)
    return (
        f"out of memory on a single prompt ({tokens} tokens); use a smaller max_pixels or fewer"
        f" demonstrations ({message})"
    )
