"""engine=plain: padded batches of whole prompts through the model's own `generate` and `forward`.

Nothing is shared between prompts but preprocessed images. The simple way: what the other engine is
measured against, and the way out for a model that it cannot run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pointer_rl.local.batching import Job as PaddedJob
from pointer_rl.local.batching import PaddedBatches, Result
from pointer_rl.local.decoding import Generation
from pointer_rl.types import BackendError, Decoding
from pointer_rl_qwen2vl import padded
from pointer_rl_qwen2vl.checkpoint import Checkpoint
from pointer_rl_qwen2vl.inputs import expand
from pointer_rl_qwen2vl.jobs import Job
from pointer_rl_qwen2vl.padded import EncodedPrompt
from pointer_rl_qwen2vl.patches import PatchStore

__all__ = ["PlainEngine"]


class PlainEngine:
    """Takes jobs through the model in padded batches."""

    def __init__(self, checkpoint: Checkpoint, patches: PatchStore, batch_tokens: int) -> None:
        self._checkpoint = checkpoint
        self._patches = patches
        self._batches = PaddedBatches(
            self, batch_tokens, "use a smaller max_pixels, fewer demonstrations or fewer beams"
        )

    def run(self, jobs: Sequence[Job], decoding: Decoding | None) -> Iterator[tuple[int, Result]]:
        """Generate (unless `decoding` is None) and score: each job's index and result, once."""
        return self._batches.run(((job.index, self._encode(job)) for job in jobs), decoding)

    def generate(
        self, prompts: Sequence[EncodedPrompt], decoding: Decoding
    ) -> Sequence[Generation]:
        """See `BatchModel`."""
        return padded.generate(self._checkpoint, prompts, decoding)

    def score(self, rows: Sequence[tuple[EncodedPrompt, Sequence[int]]]) -> Sequence[float]:
        """See `BatchModel`."""
        return padded.score(self._checkpoint, rows)

    def _encode(self, job: Job) -> PaddedJob[EncodedPrompt] | BackendError:
        images = []
        for patches in self._patches.find(job.images):
            if isinstance(patches, str):
                return BackendError(patches)
            images.append(patches)
        pad = self._checkpoint.image_token_id
        pads = ([pad] * image.tokens for image in images)
        prompt = EncodedPrompt(expand(job.token_ids, pad, pads), tuple(images))
        ended = [[*answer, self._checkpoint.turn_end_id] for answer in job.answers]
        return PaddedJob(prompt, len(images), ended)
