"""What a run reports while it works: one object for every command, in place of callbacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pointer_rl.types import Outcome


class Observer:
    """Hears of a run's progress. Every method does nothing here: override those of interest.

    `window` and `trial` are called in the process that asks, everything else in the one that leads.
    """

    @contextmanager
    def activity(self, what: str, total: int | None = None) -> Iterator[Callable[[int], object]]:
        """Something that may take a while, such as "loading a model".

        Yields a function that is called with the number of further steps that are done, of `total`.
        """
        yield lambda steps: None

    def start(
        self,
        total: int | None,
        done: int = 0,
        *,
        asked: Callable[[], int] = lambda: 0,
        left: Callable[[], int | None] = lambda: None,
    ) -> None:
        """The run has `total` queries (None: as many as it needs), `done` from an earlier run.

        asked: trials put to the backend so far, cache hits excluded; left: the most trials that the
        run may still have, if that is limited.
        """

    def window(self, queries: int, trials: int, more: int = 0) -> None:
        """A window of so many queries now has `trials` trials, and at most `more` after them."""

    def trial(self, outcome: Outcome | None, methods: Sequence[str] = ()) -> None:
        """A trial has its result; None if it was scored and not judged.

        methods: the generator, or the arms, that it is for.
        """

    def finish(self, queries: int) -> None:
        """So many more queries are done: a window, in this process or another."""

    def workers(self, describe: Callable[[], Sequence[str]]) -> None:
        """The executor of the run has workers, whose state `describe` returns.

        Its first line is a summary, such as `workers: 4 (1 died)`; then there is a line for each
        worker. It may be called at any time, from any thread.
        """

    def epoch(self, metrics: Mapping[str, Any], of: int) -> None:
        """A training epoch has ended, with these metrics; its stage has `of` epochs."""

    def say(self, sentence: str) -> None:
        """Something that the user should read."""
