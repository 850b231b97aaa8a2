"""Tests of an executor: `pointer_rl.types.Executor`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pointer_rl.errors import InputError, first_line
from pointer_rl.testing.plugin import PluginTests
from pointer_rl.types import Executor, Window

_SIZE = 4
"""Queries in a window."""
_MANY = 1000
"""More windows than any executor may take at once."""


class ExecutorTests(PluginTests[Executor]):
    """Runs windows of a job that squares numbers."""

    kind = "executor"

    def use(self, made: Executor) -> dict[str, Any]:
        """Run several jobs, one after the other; a finished job has no windows left."""
        return {f"a run of {number} windows": _run(made, number) for number in (8, 0, 2)}

    def test_takes_windows_as_it_needs_them(self) -> None:
        """Taking a window commits to running it, so windows are taken only as workers are free."""
        taken = 0

        def windows() -> Iterator[Window]:
            nonlocal taken
            for window in _windows(_MANY):
                taken += 1
                yield window

        _start_and_stop(self.made, windows())
        assert taken < _MANY, (
            f"it took all of {_MANY} windows before it gave a result: take the next one when a "
            "worker is free, or a budget cannot end the run"
        )

    def test_can_be_stopped(self) -> None:
        """Closing the iterator ends the run, and another can begin."""
        _start_and_stop(self.made, iter(_windows(4)))
        _run(self.made, 2)

    def test_passes_on_errors(self) -> None:
        """An error of the job, or of the iterator that gives the windows, ends the run."""
        for error in (InputError("window 2 cannot be run"), ValueError("window 2 is wrong")):
            self._check_error(error, SquareJob(error), iter(_windows(4)))
        error = InputError("window 2 cannot be planned")

        def windows() -> Iterator[Window]:
            yield from _windows(2)
            raise error

        self._check_error(error, SquareJob(), windows())

    def _check_error(self, error: Exception, job: SquareJob, windows: Iterable[Window]) -> None:
        raised: Exception | None = None
        results: list[Any] = []
        try:
            results += self.made.run(job, windows)
        except Exception as caught:
            raised = caught
        assert raised is not None, (
            f"{error!r} of a window was lost, and {len(results)} windows came back: raise it"
        )
        assert type(raised) is type(error) and str(raised) == str(error), (
            f"{error!r} of a window became {type(raised).__name__} ({first_line(raised)}): "
            "raise the same error"
        )


@dataclass(frozen=True)
class SquareJob:
    """A job that can be pickled: the record of a query is the square of its index."""

    error: Exception | None = None
    """What the third window raises."""

    def run(self, window: Window) -> dict[int, dict[str, Any]]:
        """See `pointer_rl.types.Job`."""
        if self.error is not None and 2 * _SIZE in window.queries:
            raise self.error
        return {index: {"square": index**2} for index in window.todo}


def _windows(number: int) -> list[Window]:
    """Windows of four queries; in every other one the first query was done before."""
    spans = [range(start, start + _SIZE) for start in range(0, number * _SIZE, _SIZE)]
    return [Window(span, tuple(span[index % 2 :])) for index, span in enumerate(spans)]


def _run(executor: Executor, number: int) -> dict[Window, Any]:
    """The records of so many windows. Fails unless each comes back once, with its own."""
    windows = _windows(number)
    results = list(executor.run(SquareJob(), iter(windows)))
    came = [window for window, _ in results]
    for window in windows:
        assert came.count(window) == 1, (
            f"window {window.queries} came back {came.count(window)} times: give each once, with "
            "its records"
        )
    assert len(came) == number, f"{len(came) - number} windows came back that none gave"
    for window, records in results:
        assert records == SquareJob().run(window), (
            f"window {window.queries} came back with other records than job.run gave: pair each "
            "window with its own, unchanged"
        )
    return dict(results)


def _start_and_stop(executor: Executor, windows: Iterable[Window]) -> None:
    results = executor.run(SquareJob(), windows)
    next(results)
    close = getattr(results, "close", None)  # a generator has it, another iterator may not
    if close is not None:
        close()
