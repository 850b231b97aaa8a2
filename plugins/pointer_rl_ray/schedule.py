"""Decides which window runs next, and what to do after a worker died. Independent of Ray."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pointer_rl.errors import InputError
from pointer_rl.types import Window

PATIENCE = 2
"""Deaths after which a window is split, or a trial given up."""
_EARLY = 20
"""Consecutive deaths before any window starts that end the run."""
_DEATHS = 6
"""Deaths over one query, outside any of its trials, that end the run."""

_CAUSE = "check what killed them, such as the machine's memory"


@dataclass(eq=False)
class Task:
    """A window, or part of one, to be run by one worker."""

    window: Window
    part: Window
    """The same queries; `todo` is what this task covers."""
    deaths: int = 0
    """Workers that died running it, other than during a request that was asked alone."""
    started: bool = False
    """Whether its current worker has started it. Earlier deaths are not its fault."""
    alone: bool = False
    """Whether requests are asked one by one, to find the one that kills workers."""
    asking: bytes | None = None
    """The request under way, if they are asked one by one."""
    killed: Counter[bytes] = field(default_factory=Counter)
    """Deaths by request, of those asked alone."""

    @property
    def given_up(self) -> frozenset[bytes]:
        """Requests that count as failed and are not asked again."""
        return frozenset(key for key, times in self.killed.items() if times >= PATIENCE)

    def __str__(self) -> str:
        queries, todo = self.window.queries, len(self.part.todo)
        part = "" if todo == len(self.window.todo) else f" ({todo} of them)"
        return f"queries {queries.start + 1:,} to {queries.stop:,}{part}"


class Schedule:
    """Hands out windows, and hands out those of dead workers again.

    A window that killed two workers is split in half, repeatedly, down to a single query. The
    requests of that query are then asked one by one; one that kills two workers is given up.
    """

    def __init__(self, windows: Iterable[Window]) -> None:
        self._windows = iter(windows)
        self._again: deque[Task] = deque()
        self._parts: dict[Window, int] = {}
        """Parts that are still missing, by window."""
        self._records: dict[Window, dict[int, Any]] = {}
        self._early = 0
        self.stopped = False
        """Set to start no further window."""

    @property
    def over(self) -> bool:
        """Whether every started window is complete and no other will be started."""
        return self.stopped and not self._parts

    def next(self) -> Task | None:
        """The next task, or None if there is nothing to run now."""
        if self._again:
            return self._again.popleft()
        window = None if self.stopped else next(self._windows, None)
        if window is None:
            self.stopped = True
            return None
        self._parts[window] = 1
        return Task(window, window)

    def done(self, task: Task, records: Mapping[int, Any]) -> Mapping[int, Any] | None:
        """Add a task's records. Returns the window's once its last part is done, else None."""
        self._early = 0
        known = self._records.setdefault(task.window, {})
        known.update(records)
        self._parts[task.window] -= 1
        if self._parts[task.window]:
            return None
        del self._parts[task.window]
        known = self._records.pop(task.window)
        return {index: known[index] for index in task.window.todo}

    def lost(self, task: Task) -> str:
        """Reschedule a task whose worker died. Returns what happens, in words.

        Raises InputError after too many deaths.
        """
        if task.asking is not None:
            task.killed[task.asking] += 1
            gone = task.killed[task.asking] >= PATIENCE
            task.asking = None
            self._again.append(task)
            if gone:
                return "have a trial that killed two workers, and is given up"
            return "have a trial that killed its worker, and is asked again"
        if not task.started:
            self._early += 1
            if self._early >= _EARLY:
                raise InputError(f"{self._early} workers died before a window began: {_CAUSE}")
            self._again.append(task)
            return "go to another worker"
        self._early = 0
        task.deaths += 1
        if task.deaths >= _DEATHS:
            raise InputError(
                f"{task}: {task.deaths} workers died, none of them over a trial: {_CAUSE}"
            )
        if task.deaths < PATIENCE or task.alone:
            self._again.append(task)
            return "go to another worker"
        todo = task.part.todo
        if len(todo) == 1:
            task.alone = True
            self._again.append(task)
            return "are asked trial by trial"
        middle = len(todo) // 2
        for half in (todo[:middle], todo[middle:]):
            # One more death splits the half itself.
            part = Window(task.part.queries, half)
            self._again.append(Task(task.window, part, deaths=PATIENCE - 1))
        self._parts[task.window] += 1
        return f"killed {PATIENCE} workers and are split in two"
