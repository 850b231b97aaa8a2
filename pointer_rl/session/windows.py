"""The loop that every run is: windows of queries through an executor, into a journal.

A window depends only on the job and its queries, so windows may be run anywhere, more than once,
in any order. Window boundaries are multiples of the window size, whatever has been done or spent
before: which requests share a batch, and with it the last digits of a log-probability, follows from
the queries alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pointer_rl.errors import InputError
from pointer_rl.records.shards import windows
from pointer_rl.session.journal import Journal
from pointer_rl.types import Job, Window

if TYPE_CHECKING:
    from pointer_rl.session.session import Session


class InProcess:
    """The executor `in-process`: one window after the other, here."""

    def run(self, job: Job, windows: Iterable[Window]) -> Iterator[tuple[Window, Any]]:
        """See `pointer_rl.types.Executor`."""
        for window in windows:
            yield window, job.run(window)


def windows_of(queries: range, size: int) -> Iterator[Window]:
    """These indices of queries, in windows of `size`."""
    for window in windows(queries, size):
        yield Window(window, tuple(window))


def due_windows(
    journal: Journal, size: int, *, cached: bool, queries: range | None = None
) -> Iterator[Window]:
    """The windows that have queries which are not done, of these (default: of the whole journal).

    cached: whether a response cache answers what was asked before. Without one, a window that was
    interrupted is repeated whole, so that its requests share the same batches.
    """
    for window in windows_of(range(len(journal.ids)) if queries is None else queries, size):
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
        """No window is started after `max_seconds`, or if it could exceed `max_calls`.

        calls: requests put to the backend so far (cache hits are free); most_calls: those that a
        window could add; advice: what else to do if even the first could exceed it.
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

    def left(self) -> int | None:
        """The most trials that may still be put to the backend; None: any number."""
        return None if self._max_calls is None else max(0, self._max_calls - self._calls())

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
    size: int,
    session: Session,
    journal: Journal | None = None,
    *,
    queries: range | None = None,
    budget: Budget | None = None,
) -> Generator[Mapping[int, dict[str, Any]], None, None]:
    """Run these queries (default: all in the journal) that are not done, in windows of `size`.

    Without a journal, none is done, and `queries` must be given. Yields the records of each window,
    by the query's index, once the journal has them.
    """
    if journal is not None:
        cached = session.cache is not None
        wanted = due_windows(journal, size, cached=cached, queries=queries)
    else:
        assert queries is not None
        wanted = windows_of(queries, size)
    budget = budget or Budget()
    results = session.executor.run(job, budget.admit(wanted))
    try:
        for window, records in results:
            if journal is not None:
                journal.append(records)
            budget.release(window)
            session.observer.finish(len(records))
            yield records
    finally:
        # At once, whoever holds on to this generator: workers must not go on with the windows.
        if (close := getattr(results, "close", None)) is not None:
            close()


def affordable(journal: Journal, trials: int, most: int) -> Iterator[range]:
    """The queries that so many trials suffice for, in order, if one may take `most`.

    Each range must be done before the next is asked for: the trials that its queries did not take
    go to further ones. Cached trials count, so that the queries do not depend on the cache.
    """
    wave = range(min(trials // most, len(journal.ids)))
    spent = 0
    while wave:
        yield wave
        which = np.isin(np.arange(len(journal.ids)), wave)
        spent += sum(len(each["pointer_candidates"]) for each in journal.records(which))
        more = (trials - spent) // most
        wave = range(wave.stop, min(wave.stop + more, len(journal.ids)))


@dataclass
class RunSummary:
    """What a run of `generate` or `beams` did, whatever it wrote."""

    queries: int = 0
    left: int = 0
    """Queries that are not done."""
    unchanged: bool = False
    """Whether the run was finished before, and nothing was left to do."""
    stopped_by: str | None = None
    """The option that ended the run early."""
    asked: int = 0
    """Trials that this run put to the backend, each once."""
    from_cache: int = 0
    """Trials answered from the response cache."""
    first_failure: str | None = None
    """Why the first failed trial failed."""

    def add(self, record: Mapping[str, Any]) -> None:
        """Count the record of a query."""
        raise NotImplementedError


def complete(
    summary: RunSummary,
    job: Job,
    size: int,
    session: Session,
    journal: Journal,
    budget: Budget,
    waves: Iterable[range] | None = None,
    left: Callable[[], int] | None = None,
) -> Iterator[None]:
    """Run what the journal lacks and, if all is done, write the finished file.

    waves: the queries of the file, some at a time (default: all in the journal); left: the most
    trials that they may still have.
    Every record, old and new, is added to the summary. Yields after each window.
    """
    session.observer.start(
        len(journal.ids),
        len(journal),
        asked=lambda: session.backend.asked,
        left=left or budget.left,
    )
    counted = np.zeros(len(journal.ids), dtype=bool)
    for wave in waves or [range(len(journal.ids))]:
        run = run_windows(job, size, session, journal, queries=wave, budget=budget)
        with closing(run):
            for records in run:
                for record in records.values():
                    summary.add(record)
                counted[list(records)] = True
                yield
    for record in journal.records(~counted):
        summary.add(record)
    summary.unchanged = not journal.changed
    summary.left = 0 if waves else journal.left
    if not summary.left:
        journal.finish()
    summary.stopped_by = budget.stopped_by
    summary.asked, summary.from_cache = session.backend.asked, session.backend.hits
