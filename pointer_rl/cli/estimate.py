"""How far a run is, and how long the rest of it takes, from what its observer hears.

    seconds left = trials still to be asked × seconds per asked trial
    trials still to be asked = those of the open window + queries after it × asked trials per query

Trials that the response cache answers take almost no time, and say nothing about those that are
asked. Both figures therefore come only from windows in which the backend was asked; they include
the time for proposing and judging.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

ENOUGH_ASKED, ENOUGH_SECONDS = 10, 5.0
"""Asked trials, and seconds, below which nothing is said of the rest."""


@dataclass
class _Totals:
    """Of the finished windows in which the backend was asked, or that ran in other processes."""

    queries: int = 0
    trials: int = 0
    asked: int = 0
    seconds: float = 0.0


class Estimate:
    """Counts a run's queries and trials; estimates what is left."""

    def __init__(
        self,
        total: int | None,
        done: int,
        asked: Callable[[], int],
        left: Callable[[], int | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """See `Observer.start`."""
        self.total = total
        self.done = done
        self.trials = 0
        """Trials of this run that have a result, asked or cached."""
        self.most = left()
        """The most trials that the run may have, if that is limited."""
        self._left, self._asked, self._clock = left, asked, clock
        self._asked_before = self._asked_at_start = asked()
        self._totals = _Totals()
        self._idle()

    def _idle(self) -> None:
        """No window is under way."""
        self._began = self._clock()
        self._queries = self._here = self._due = self._more = 0
        self._asked_before = self._asked()

    @property
    def asked(self) -> int:
        """Trials that this run has put to the backend."""
        return self._asked() - self._asked_at_start

    @property
    def spent(self) -> int | None:
        """Of a limited number of trials, those that the run has had; None without a limit."""
        left = self._left()
        return None if self.most is None or left is None else self.most - left

    # --- hearing ---

    def window(self, queries: int, trials: int, more: int) -> None:
        """See `Observer.window`."""
        self._queries, self._due, self._more = queries, trials, more

    def trial(self) -> None:
        """A trial has its result."""
        self.trials += 1
        self._here += 1
        self._due = max(0, self._due - 1)

    def finish(self, queries: int) -> None:
        """A window is done."""
        asked = self._asked() - self._asked_before
        if asked or not self._here:
            self._totals.queries += queries
            self._totals.trials += self._here
            self._totals.asked += asked
            self._totals.seconds += self._clock() - self._began
        self.done += queries
        self._idle()

    def pause(self) -> None:
        """What was done since the last window is not part of asking."""
        if not self._queries:
            self._idle()

    # --- saying ---

    @property
    def fraction(self) -> float:
        """The part of the run that is done, from 0 to 1."""
        if self.total is None:
            return (self.spent or 0) / self.most if self.most else 0.0
        expected = self._here + self._due + self._further()
        open_ = self._queries * self._here / expected if expected else 0.0
        return min(1.0, (self.done + open_) / self.total) if self.total else 1.0

    @property
    def rate(self) -> float | None:
        """Asked trials per second; None if none has been asked."""
        asked, seconds = self._measured()
        return asked / seconds if asked and seconds else None

    def seconds_left(self) -> tuple[float, bool] | None:
        """Seconds, and whether that is the most rather than about right; None: not known yet."""
        totals = self._totals
        asked, seconds = self._measured()
        if not asked and totals.queries and not totals.trials and self.total is not None:
            # The windows run in other processes, which report whole ones.
            return (self.total - self.done) * totals.seconds / totals.queries, False
        if asked < ENOUGH_ASKED or seconds < ENOUGH_SECONDS:
            return None
        trials, limit = self._to_ask(), self._left()
        if trials is None or (limit is not None and limit < trials):
            trials = limit
        if trials is None:
            return None
        each = seconds / asked
        left = trials * each
        if not self._here and self._due:
            # Many backends answer a whole window at once: the time that it has taken counts.
            waited = self._clock() - self._began
            if waited > self._due * each:
                each = (seconds + waited) / (asked + self._due)
                waited = self._due * each
                left = trials * each
            left = max(0.0, left - waited)
        return left, bool(self._more and not totals.trials)

    def _measured(self) -> tuple[int, float]:
        """Asked trials and the seconds that they took."""
        here = self._asked() - self._asked_before
        seconds = self._clock() - self._began if here else 0.0
        return self._totals.asked + here, self._totals.seconds + seconds

    def _further(self) -> float:
        """Trials of the open window after those that it has now: the likely, or the most."""
        totals = self._totals
        if not totals.trials:
            return self._more
        likely = totals.trials / totals.queries * self._queries - self._here - self._due
        return min(max(0.0, likely), self._more)

    def _to_ask(self) -> float | None:
        """Trials still to be asked; None if the number of queries is not known."""
        if self.total is None:
            return None
        totals, here = self._totals, self._asked() - self._asked_before
        queries = self._queries  # once: another thread may set it to 0
        share = totals.asked / totals.trials if totals.trials else 1.0
        # The cache answers first: once the backend is asked, all that is due goes to the backend.
        in_window = self._due * (1.0 if here else share) + self._further() * share
        if totals.trials:
            per_query = totals.asked / totals.queries
        else:
            per_query = (here + in_window) / queries if queries else 0.0
        return in_window + (self.total - self.done - queries) * per_query
