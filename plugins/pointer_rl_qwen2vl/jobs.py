"""What goes through an engine, and what comes back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from pointer_rl.local.batching import OVERFLOW, Result, response
from pointer_rl.local.decoding import Generation
from pointer_rl.types import Decoding, ImageRef

__all__ = ["OVERFLOW", "Engine", "Job", "Result", "respond"]


@dataclass(frozen=True)
class Job:
    """A request whose text has been tokenised."""

    index: int
    """Of the request."""
    token_ids: list[int]
    """The prompt, with one <|image_pad|> an image."""
    images: tuple[tuple[str, ImageRef], ...]
    """With their keys."""
    answers: list[list[int]]
    """To be scored, without the token that ends them."""


class Engine(Protocol):
    """A way to take jobs through the model."""

    def run(self, jobs: Sequence[Job], decoding: Decoding | None) -> Iterator[tuple[int, Result]]:
        """Generate (unless `decoding` is None) and score: each job's index and result, once."""
        ...


def respond(
    job: Job, prompt_tokens: int, generation: Generation | None, scores: Sequence[float]
) -> tuple[int, Result]:
    """The job's index and result. Scores that are no numbers make it a failure."""
    return job.index, response(
        generation, scores, prompt_tokens=prompt_tokens, images=len(job.images)
    )
