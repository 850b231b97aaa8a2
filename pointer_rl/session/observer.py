"""What a run reports while it works: one object for every command, in place of callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pointer_rl.types import Outcome


class Observer:
    """Hears of a run's progress. Every method does nothing here: override those of interest.

    Trials are reported by the process that asks them, everything else by the one that leads.
    """

    def start(self, total: int, done: int = 0) -> None:
        """The run has `total` queries, `done` of them from an earlier run."""

    def trial(self, outcome: Outcome | None) -> None:
        """A trial has its result; None if it was scored and not judged."""

    def finish(self, queries: int) -> None:
        """So many more queries are done."""

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        """A training epoch has ended, with these metrics."""

    def say(self, sentence: str) -> None:
        """Something that the user should read."""
