"""The loop that every run is: windows of queries through an executor, into a journal.

A window depends only on the job and its queries, so windows may be run anywhere, more than once,
in any order. Window boundaries are multiples of the window size, whatever has been done or spent
before: which requests share a batch, and with it the last digits of a log-probability, follows from
the queries alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pointer_rl.errors import InputError
from pointer_rl.records.shards import windows
from pointer_rl.session.journal import Journal
from pointer_rl.session.observer import Observer
from pointer_rl.types import Executor, Job, Window


class InProcess:
    """The executor `in-process`: one window after the other, here."""

    def run(self, job: Job, windows: Iterable[Window]) -> Iterator[tuple[Window, Any]]:
        """See `pointer_rl.types.Executor`."""
        for window in windows:
            yield window, job.run(window)


def windows_of(queries: int, size: int) -> Iterator[Window]:
    """All of so many queries, in windows of `size`."""
    for window in windows(queries, size):
        yield Window(window, tuple(window))


def due_windows(journal: Journal, size: int, *, cached: bool) -> Iterator[Window]:
    """The windows with queries that are not done.

    cached: whether a response cache answers what was asked before. Without one, a window that was
    interrupted is repeated whole, so that its requests share the same batches.
    """
    for window in windows_of(len(journal.ids), size):
        todo = tuple(index for index in window.todo if not journal.is_done(index))
        if todo and not cached and not all(map(journal.has, window.queries)):
            yield window
        elif todo:
            yield Window(window.queries, todo)


class Budget:
    """Admits windows until a limit is reached; the same command continues the run later."""

    def __init__(
        self,
        *,
        max_calls: int | None = None,
        max_seconds: float | None = None,
        calls: Callable[[], int] = lambda: 0,
        most_calls: Callable[[Window], int] = lambda window: 0,
        advice: str = "",
    ) -> None:
        """No window begins after `max_seconds`, or if it could exceed `max_calls`.

        calls: requests put to the backend so far (cache hits are free); most_calls: those that a
        window could add; advice: what else to do if not even one window fits.
        """
        self.stopped_by: str | None = None
        """The option that ended the run, if any."""
        self._max_calls = max_calls
        self._max_seconds = max_seconds
        self._calls = calls
        self._most_calls = most_calls
        self._advice = advice
        self._reserved: dict[Window, int] = {}
        """Calls of the windows that are under way."""

    def admit(self, wanted: Iterable[Window]) -> Iterator[Window]:
        """These windows, as far as the limits allow.

        Raises InputError if not even the first one is allowed.
        """
        begun = time.monotonic()
        for number, window in enumerate(wanted):
            if self._max_seconds is not None and time.monotonic() - begun >= self._max_seconds:
                self.stopped_by = "--max-seconds"
                return
            if self._max_calls is not None:
                needed = self._most_calls(window)
                if self._calls() + sum(self._reserved.values()) + needed > self._max_calls:
                    if not number:
                        raise self._too_small(window, needed)
                    self.stopped_by = "--max-calls"
                    return
                self._reserved[window] = needed
            yield window

    def check(self, window: Window) -> None:
        """Raise InputError if a window would not be admitted even as the first."""
        if self._max_calls is not None:
            needed = self._most_calls(window)
            if needed > self._max_calls:
                raise self._too_small(window, needed)

    def _too_small(self, window: Window, needed: int) -> InputError:
        return InputError(
            f"--max-calls {self._max_calls}: a window of {len(window.queries)} queries may take "
            f"{needed:,} trials: allow that many{self._advice}"
        )

    def release(self, window: Window) -> None:
        """The window is done: its calls are counted."""
        self._reserved.pop(window, None)


def run_windows(
    job: Job,
    wanted: Iterable[Window],
    executor: Executor,
    journal: Journal | None,
    observer: Observer,
    budget: Budget | None = None,
) -> Iterator[Mapping[int, dict[str, Any]]]:
    """The records of each window, by the query's index, once the journal has them."""
    budget = budget or Budget()
    for window, records in executor.run(job, budget.admit(wanted)):
        if journal is not None:
            journal.append(records)
        budget.release(window)
        observer.finish(len(records))
        yield records
