"""The backend: hands requests to an engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Literal

from pointer_rl.local.batching import LocalBackend, Result, by_decoding, default_batch_tokens
from pointer_rl.local.threads import choose_threads, run_in_threads
from pointer_rl.types import Count, Request
from pointer_rl_qwen2vl.checkpoint import Checkpoint
from pointer_rl_qwen2vl.inputs import PromptEncoder
from pointer_rl_qwen2vl.memory import check_cache_gib, choose_cache_gib
from pointer_rl_qwen2vl.patches import PatchCache
from pointer_rl_qwen2vl.plain import PlainModel
from pointer_rl_qwen2vl.shared import SharedEngine, count_tokens


class Qwen2VLBackend:
    """A loaded Qwen-VL checkpoint as a `VQABackend`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        engine: Literal["shared", "plain"] = "shared",
        batch_tokens: int | None = None,
        cache_gib: float | None = None,
        cuda_graphs: bool = True,
        threads: int | None = None,
    ) -> None:
        """For the arguments see `Qwen2VLOptions`.

        Raises InputError for a model that the engine cannot run.
        """
        self.fingerprint = checkpoint.fingerprint
        self._threads = choose_threads(checkpoint.model, threads)
        self._image_token_id = checkpoint.image_token_id
        self._encoder = PromptEncoder(checkpoint)
        self._patches = PatchCache(checkpoint)
        if batch_tokens is None:
            batch_tokens = default_batch_tokens(checkpoint.model.device)
        self._plain = LocalBackend(
            PlainModel(checkpoint, self._encoder, self._patches),
            fingerprint=checkpoint.fingerprint,
            batch_tokens=batch_tokens,
            advice="use a smaller max_pixels, fewer demonstrations or fewer beams",
        )
        self._shared: SharedEngine | None = None
        self.chosen: dict[str, int | float | str] = {}
        if engine == "shared":
            device = checkpoint.model.device
            if cache_gib is None:
                cache_gib = choose_cache_gib(device)
                if device.type != "cpu":
                    self.chosen["cache_gib"] = cache_gib
            else:
                check_cache_gib(cache_gib, device)
            self._shared = SharedEngine(
                checkpoint,
                self._patches,
                batch_tokens=batch_tokens,
                cache_gib=cache_gib,
                graphs=cuda_graphs,
            )

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, Result]]:
        """Answer each request once as (its index, its result), one decoding after the other."""
        return run_in_threads(self._run(requests), self._threads)

    def _run(self, requests: Sequence[Request]) -> Iterator[tuple[int, Result]]:
        for decoding, indices in by_decoding(requests).items():
            chosen = [requests[index] for index in indices]
            # Rows of beam search split and merge, which transformers implements.
            if self._shared is None or (decoding is not None and decoding.num_beams > 1):
                results = self._plain.run(chosen)
            else:
                tokenised, failed = self._encoder.tokenise(chosen)
                results = chain(failed, self._shared.run(tokenised, decoding))
            yield from ((indices[place], result) for place, result in results)

    def count(self, requests: Sequence[Request]) -> Count:
        """Count the tokens of whole prompts, and the tokens that the engine computes for them."""
        tokenised, _ = self._encoder.tokenise(requests)
        count = count_tokens(tokenised, self._patches, self._image_token_id)
        if self._shared is None:
            return Count(count.prompt_tokens, count.prompt_tokens)
        return count
