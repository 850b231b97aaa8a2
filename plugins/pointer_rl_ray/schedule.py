"""Which window is run next, and what becomes of one whose worker died. Knows nothing of Ray."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pointer_rl.errors import InputError
from pointer_rl.types import Window

PATIENCE = 2
"""Workers that may die of the same thing before it is blamed."""
_EARLY = 20
"""Workers that may die, one after the other, before they begin with what they are given."""
_DEATHS = 6
"""Workers that may die of a query before they ask anything."""


@dataclass(eq=False)
class Task:
    """A window, or a part of one, that one worker runs at a time."""

    window: Window
    part: Window
    """The same queries, of which these are still to be done."""
    deaths: int = 0
    """Workers that died while they ran it, over no request that is known."""
    started: bool = False
    """Whether the worker that has it now has begun: before, it is not to blame for a death."""
    alone: bool = False
    """Whether its requests are asked one by one, to find the one that kills."""
    asking: bytes | None = None
    """The request that is under way, if they are asked one by one."""
    killed: Counter[bytes] = field(default_factory=Counter)
    """Workers that died over a request that was asked alone."""

    @property
    def given_up(self) -> frozenset[bytes]:
        """The requests that are not asked again: they have failed."""
        return frozenset(key for key, times in self.killed.items() if times >= PATIENCE)

    def __str__(self) -> str:
        queries, todo = self.window.queries, len(self.part.todo)
        part = "" if todo == len(self.window.todo) else f" ({todo} of them)"
        return f"queries {queries.start + 1:,} to {queries.stop:,}{part}"


class Schedule:
    """Hands out windows, and those of dead workers again.

    A window that kills two workers is halved, again and again, until a single query is left. The
    requests of that one are then asked alone, and one that kills two more workers has failed.
    """

    def __init__(self, windows: Iterable[Window]) -> None:
        self._windows = iter(windows)
        self._again: deque[Task] = deque()
        self._parts: dict[Window, int] = {}
        """Parts that are to come of each window that is under way."""
        self._records: dict[Window, dict[int, Any]] = {}
        self._early = 0
        self.stopped = False
        """Whether no further window is started."""

    @property
    def over(self) -> bool:
        """Whether all windows that were started are complete, and no further one is started."""
        return self.stopped and not self._parts

    def next(self) -> Task | None:
        """What a free worker should run; None: nothing, at present."""
        if self._again:
            return self._again.popleft()
        window = None if self.stopped else next(self._windows, None)
        if window is None:
            self.stopped = True
            return None
        self._parts[window] = 1
        return Task(window, window)

    def done(self, task: Task, records: Mapping[int, Any]) -> Mapping[int, Any] | None:
        """The records of the whole window, once its last part is done."""
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
        """Its worker died. Returns what happens now, in words."""
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
                raise InputError(f"{self._early} workers died before they began with a window")
            self._again.append(task)
            return "go to another worker"
        self._early = 0
        task.deaths += 1
        if task.deaths >= _DEATHS:
            raise InputError(
                f"{task}: {task.deaths} workers died, none of them over a trial: see what killed "
                "them (the machine's memory, say)"
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
            # One death more and a half is split itself.
            part = Window(task.part.queries, half)
            self._again.append(Task(task.window, part, deaths=PATIENCE - 1))
        self._parts[task.window] += 1
        return f"killed {PATIENCE} workers and are split in two"
