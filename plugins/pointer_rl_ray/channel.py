"""The messages between the driver (the process of the command) and a worker.

The driver calls a worker, which returns a `Report`: the task is done, needs something, or is still
running. The next call brings what it needs. At most one call of a worker is under way.
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
    """Asks for the cached responses of these keys, as a mapping by key."""

    keys: Sequence[bytes]


@dataclass(frozen=True)
class ImageWanted:
    """Asks for the content of an image file. The answer may be the InputError of reading it."""

    name: str
    limits: ImageLimits


@dataclass(frozen=True)
class Started:
    """Job and backend are loaded, and the window begins. Needs no answer."""


@dataclass(frozen=True)
class AskedAlone:
    """A request that may kill the worker is about to be asked alone. Needs no answer."""

    key: bytes | None
    """The request's cache key; None after the last one was answered."""


@dataclass(frozen=True)
class Done:
    """The result of the task."""

    result: Any


@dataclass(frozen=True)
class Failed:
    """The task raised an error."""

    error: BaseException


Wanted = ResponsesWanted | ImageWanted | Started | AskedAlone


@dataclass(frozen=True)
class Report:
    """What a worker tells the driver."""

    what: Wanted | Done | Failed | None = None
    """None: the task is still running."""
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


class Channel:
    """A worker's end. Tasks queue messages here, and the next report carries them."""

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
        """Send a message and return the driver's answer; raise it if it is an error."""
        with self._asking:  # threads that open images ask at the same time
            self._said.put(wanted)
            answer = self._answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def end(self, what: Done | Failed) -> None:
        """Report the end of the task."""
        self._said.put(what)

    def count(self, backend: CachedBackend) -> None:
        """Count the calls of this backend from now on."""
        self.counted, self._before = backend, _Counts()

    def answer(self, value: Any) -> None:
        """Hand `ask` its answer."""
        self._answers.put(value)

    def report(self, patience: float) -> Report:
        """Report when the task ends or needs an answer, at the latest after `patience` seconds."""
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
    """Remove and return all messages. Other threads may add more meanwhile."""
    return [said.popleft() for _ in range(len(said))]


_CHANNEL = Channel()


def channel() -> Channel:
    """The channel of this worker process."""
    return _CHANNEL
