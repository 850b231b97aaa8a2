"""The input and output of an engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from pointer_rl.local.batching import Result
from pointer_rl.types import Decoding, ImageRef


@dataclass(frozen=True)
class TokenisedRequest:
    """A request whose texts have been tokenised."""

    index: int
    """Index of the request."""
    token_ids: list[int]
    """The prompt, with one <|image_pad|> per image."""
    images: tuple[tuple[str, ImageRef], ...]
    """The prompt's images with their keys."""
    answers: list[list[int]]
    """Answers to be scored, without the token that ends them."""


class Engine(Protocol):
    """Runs requests through the model."""

    def run(
        self, requests: Sequence[TokenisedRequest], decoding: Decoding | None
    ) -> Iterator[tuple[int, Result]]:
        """Generate (unless `decoding` is None) and score: each request's index and result, once."""
        ...
