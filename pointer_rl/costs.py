"""What a backend may know of its costs, besides answering. A leaf: it imports `types` alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from pointer_rl.types import Request, Usage

__all__ = ["Count", "CountingBackend", "PricedBackend"]


@dataclass(frozen=True)
class Count:
    """What requests would cost. None: it cannot be known before they run."""

    prompt_tokens: int | None = None
    """Each prompt taken whole, with the answers to be scored."""
    unique_tokens: int | None = None
    """Computed: what prompts have in common counts once."""


@runtime_checkable
class CountingBackend(Protocol):
    """A `VQABackend` that knows its tokens, for `generate --plan`."""

    def count(self, requests: Sequence[Request]) -> Count:
        """What `run(requests)` would compute; runs nothing."""
        ...


@runtime_checkable
class PricedBackend(Protocol):
    """What a backend may have beside: it knows what its answers cost."""

    def cost(self, usage: Usage) -> float | None:
        """The price of what was used, in the user's currency; None where no price is known."""
        ...
