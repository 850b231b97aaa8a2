"""What a worker and the process that leads say to each other.

The one that leads calls a worker, whose answer is a `Report`: it is done, or it needs something, or
just goes on. The next call brings what it needs. So one call is under way at a time, and all that
either has to know of the other is here.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

from pointer_rl.datasets.images import ImageLimits
from pointer_rl.session.caching import CachedBackend
from pointer_rl.types import Response, Usage


@dataclass(frozen=True)
class ResponsesWanted:
    """The responses in the cache among these keys: a mapping by key."""

    keys: Sequence[bytes]


@dataclass(frozen=True)
class ImageWanted:
    """The content of an image file, or the InputError that says why it cannot be read."""

    name: str
    limits: ImageLimits


@dataclass(frozen=True)
class Started:
    """The job and its backend are there, and the window begins. There is nothing to answer."""


@dataclass(frozen=True)
class Alone:
    """A request is asked alone now, and may kill the worker. There is nothing to answer."""

    key: bytes | None
    """None: the last one has been answered."""


@dataclass(frozen=True)
class Done:
    """The result of the task."""

    result: Any


@dataclass(frozen=True)
class Failed:
    """The task raised an error."""

    error: BaseException


Wanted = ResponsesWanted | ImageWanted | Started | Alone


@dataclass(frozen=True)
class Report:
    """What a worker says."""

    what: Wanted | Done | Failed | None = None
    """None: the task goes on."""
    responses: Sequence[tuple[bytes, Response]] = ()
    """New ones, for the cache."""
    seen: Sequence[tuple[str, tuple[Any, ...]]] = ()
    """Calls of the run's observer: method and arguments."""
    logged: Sequence[tuple[str, int, str]] = ()
    """Log records: logger, level, message."""
    asked: int = 0
    """Requests put to the backend since the last report."""
    hits: int = 0
    """Requests answered from the cache since then."""
    used: Usage = Usage()
    """Tokens and images of the answers since then."""


class Line:
    """A worker's end of the line. Its tasks say what they have to, and the next report takes it."""

    def __init__(self) -> None:
        self.responses: deque[tuple[bytes, Response]] = deque()
        self.seen: deque[tuple[str, tuple[Any, ...]]] = deque()
        self.logged: deque[tuple[str, int, str]] = deque()
        self.counted: CachedBackend | None = None
        """The backend whose calls are counted."""
        self._before = _Counts()
        self._said: queue.SimpleQueue[Wanted | Done | Failed] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._asking = threading.Lock()

    def ask(self, wanted: Wanted) -> Any:
        """What the process that leads answers. Raises it if it is an error."""
        with self._asking:  # threads that open images ask at the same time
            self._said.put(wanted)
            answer = self._answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def end(self, what: Done | Failed) -> None:
        """The task is over."""
        self._said.put(what)

    def count(self, backend: CachedBackend) -> None:
        """Count the calls of this backend from now on."""
        self.counted, self._before = backend, _Counts()

    def answer(self, value: Any) -> None:
        """Hand `ask` its answer."""
        self._answers.put(value)

    def report(self, patience: float) -> Report:
        """What there is to say, as soon as an answer is needed, or after so many seconds."""
        try:
            what = self._said.get(timeout=patience)
        except queue.Empty:
            what = None
        now = self._before if self.counted is None else _Counts.of(self.counted)
        before, self._before = self._before, now
        used = (a - b for a, b in zip(astuple(now.used), astuple(before.used), strict=True))
        return Report(
            what,
            responses=_taken(self.responses),
            seen=_taken(self.seen),
            logged=_taken(self.logged),
            asked=now.asked - before.asked,
            hits=now.hits - before.hits,
            used=Usage(*used),
        )


@dataclass(frozen=True)
class _Counts:
    asked: int = 0
    hits: int = 0
    used: Usage = Usage()

    @classmethod
    def of(cls, backend: CachedBackend) -> _Counts:
        return cls(backend.asked, backend.hits, backend.used)


def _taken(said: deque[Any]) -> list[Any]:
    """All that is there, even while other threads add to it."""
    return [said.popleft() for _ in range(len(said))]


_HERE = Line()


def line() -> Line:
    """The line of this process."""
    return _HERE
