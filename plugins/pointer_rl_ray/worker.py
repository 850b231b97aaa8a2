"""A worker: keeps the backend loaded and runs the driver's tasks. Independent of Ray.

torch is imported where it is needed: a worker whose backend needs none starts fast and stays small.
"""

from __future__ import annotations

import logging
import pickle
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pointer_rl.errors import InputError, PointerRLError, first_line
from pointer_rl.registry import registry
from pointer_rl.session.cache import request_key
from pointer_rl.session.caching import Result, run_checked
from pointer_rl.session.observer import Observer
from pointer_rl.session.windows import InProcess
from pointer_rl.types import (
    BackendError,
    CountingBackend,
    Outcome,
    PricedBackend,
    Request,
    Response,
    VQABackend,
    Window,
)
from pointer_rl_ray.channel import (
    AskedAlone,
    Done,
    Failed,
    Report,
    ResponsesWanted,
    Started,
    channel,
)
from pointer_rl_ray.sharing import Packed, Parcel, Unpacker

if TYPE_CHECKING:
    from pointer_rl.session.session import PluginRef, Session

log = logging.getLogger(__name__)

GIVEN_UP = "given up: the trial killed two workers that asked nothing else"


@dataclass(frozen=True)
class Ask:
    """A job of plain requests to the backend; record i is the result of request i."""

    backend: PluginRef
    fingerprint: str
    requests: Sequence[Request]


@dataclass(frozen=True)
class Described:
    """Properties of the backend that a worker loaded."""

    fingerprint: str
    batch_invariant: bool
    chosen: Mapping[str, Any]
    """Options that the backend chose itself, by its device."""
    window: int
    """Default window: queries to ask together."""
    methods: Sequence[str]
    """Optional methods that it has: `cost`, `count`."""


@dataclass(frozen=True)
class Order:
    """A window to run, and how to run it."""

    job: int
    """Number of the job. A worker keeps the latest job loaded."""
    parcel: Parcel
    window: Window
    fingerprint: str
    """Expected fingerprint of the backend, the same on all machines; empty for jobs without one."""
    keeps: bool
    """Whether the driver has a response cache."""
    alone: bool = False
    """Whether requests are asked one by one."""
    given_up: frozenset[bytes] = frozenset()
    """Keys of requests that are not asked."""


class Worker:
    """Runs one task at a time in its own thread. Every method returns the next report.

    The result of a task is a mapping: records by index, or {0: value} for `load` and `call`.
    patience: seconds after which a worker reports that its task is still running.
    """

    def __init__(self, fetch: Callable[[Any], Packed], *, says_where: bool = False) -> None:
        """fetch: returns the object behind a reference; says_where: prefix errors with the host."""
        self._unpacker = Unpacker(fetch)
        self._where = f"on {socket.gethostname()}: " if says_where else ""
        self._tasks: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        self._loaded: tuple[PluginRef, Guarded] | None = None
        self._job: tuple[int, Any] | None = None
        self.alone = False
        """Whether requests are asked one by one."""
        self.given_up: frozenset[bytes] = frozenset()
        """Keys of requests that are not asked."""
        logging.getLogger("pointer_rl").addHandler(_RelayedLog(logging.WARNING))
        # One thread for all: what torch sets for a thread holds for all that it runs.
        threading.Thread(target=self._serve, daemon=True).start()

    def load(self, backend: PluginRef, patience: float) -> Report:
        """Load the backend, and return what it is like, a `Described`."""
        return self._begin(lambda: {0: self._describe(backend)}, patience)

    def call(self, backend: PluginRef, method: str, args: Sequence[Any], patience: float) -> Report:
        """Call a method of the backend itself."""
        return self._begin(
            lambda: {0: getattr(self.backend(backend).made, method)(*args)}, patience
        )

    def run(self, order: Order, patience: float) -> Report:
        """Run a window of a job."""
        return self._begin(lambda: self._run(order), patience)

    def answer(self, value: Any, patience: float) -> Report:
        """Go on with the answer to what was wanted."""
        channel().answer(value)
        return channel().report(patience)

    def go_on(self, patience: float) -> Report:
        """Go on."""
        return channel().report(patience)

    def backend(self, backend: PluginRef) -> Guarded:
        """Return this backend, loading it unless it is loaded. Raises InputError."""
        if self._loaded is None or not self._is_loaded(backend):
            self._loaded = self._job = channel().counted = None  # two may not fit
            try:
                made = registry().create("backend", backend.name, backend.options)
            except InputError as error:
                raise InputError(f"{self._where}{error}") from error
            options = {**backend.options, **getattr(made, "chosen", {})}
            self._loaded = (type(backend)(backend.name, options), Guarded(made, self))
        return self._loaded[1]

    def _is_loaded(self, backend: PluginRef) -> bool:
        """Whether this backend is loaded. Options that the loaded one chose may be missing."""
        assert self._loaded is not None
        loaded, guarded = self._loaded
        chosen = getattr(guarded.made, "chosen", {})
        return loaded == type(backend)(backend.name, {**chosen, **backend.options})

    # --- in the thread ---

    def _begin(self, task: Callable[[], Any], patience: float) -> Report:
        self._tasks.put(task)
        return channel().report(patience)

    def _serve(self) -> None:
        while True:
            task = self._tasks.get()
            try:
                what: Done | Failed = Done(task())
            except BaseException as error:
                log.debug("a task failed", exc_info=True)
                what = Failed(_sendable(error))
            channel().end(what)

    def _describe(self, backend: PluginRef) -> Described:
        from pointer_rl.session.session import device_window

        guarded = self.backend(backend)
        made = guarded.made
        methods = {"cost": PricedBackend, "count": CountingBackend}
        return Described(
            fingerprint=guarded.fingerprint,
            batch_invariant=guarded.batch_invariant,
            chosen=dict(getattr(made, "chosen", {})),
            window=device_window(backend),
            methods=[name for name, kind in methods.items() if isinstance(made, kind)],
        )

    def _run(self, order: Order) -> Any:
        self.alone, self.given_up = order.alone, order.given_up
        if self._job is None or self._job[0] != order.job:
            self._job = None  # two may not fit
            job = self._unpacker.unpack(order.parcel)
            if hasattr(job, "session"):
                self._take_over(job.session, keeps=order.keeps)
            if isinstance(job, Ask):
                self.backend(job.backend)
            self._check(order.fingerprint)
            self._job = (order.job, job)
        job = self._job[1]
        channel().ask(Started())
        if isinstance(job, Ask):
            return self._answer(job, order.window)
        return job.run(order.window)

    def _check(self, fingerprint: str) -> None:
        """Raise InputError if this worker's backend differs from the run's."""
        if fingerprint and self._loaded and self._loaded[1].fingerprint != fingerprint:
            raise InputError(
                f"{self._where}the backend is {self._loaded[1].fingerprint}, and that of the run "
                f"{fingerprint}: all machines need the same model and versions"
            )

    def _answer(self, job: Ask, window: Window) -> dict[int, Result]:
        requests = [job.requests[index] for index in window.todo]
        results = run_checked(self.backend(job.backend), requests)
        return {window.todo[position]: result for position, result in results}

    def _take_over(self, session: Session, *, keeps: bool) -> None:
        """Connect a session to this worker's backend and to the driver's cache."""
        session.executor = _LocalExecutor(self)
        session.cache = _RemoteCache() if keeps else None
        session.observer = _RelayedObserver()
        channel().count(session.backend)


class Guarded:
    """A worker's backend. Requests that may kill the worker are announced and asked alone."""

    def __init__(self, made: VQABackend, worker: Worker) -> None:
        self.made = made
        self.fingerprint = made.fingerprint
        self.batch_invariant = bool(getattr(made, "batch_invariant", False))
        self._worker = worker

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, Result]]:
        """See `pointer_rl.types.VQABackend`."""
        return self._run_alone(requests) if self._worker.alone else self.made.run(requests)

    def _run_alone(self, requests: Sequence[Request]) -> Iterator[tuple[int, Result]]:
        for index, request in enumerate(requests):
            key = request_key(self.fingerprint, request)
            if key in self._worker.given_up:
                yield index, BackendError(GIVEN_UP)
                continue
            channel().ask(AskedAlone(key))
            yield from ((index, result) for _, result in self.made.run([request]))
        channel().ask(AskedAlone(None))


class _LocalExecutor(InProcess):
    """Executor of a worker's session, whose backend is already loaded."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def load(self, backend: str, options: Mapping[str, object]) -> VQABackend:
        from pointer_rl.session.session import PluginRef

        return self._worker.backend(PluginRef(backend, options))


class _RemoteCache:
    """The driver's response cache; see `pointer_rl.session.caching.Cache`."""

    def get(self, keys: Sequence[bytes]) -> Mapping[bytes, Response]:
        found: Mapping[bytes, Response] = channel().ask(ResponsesWanted(list(keys))) if keys else {}
        return found

    def put(self, fingerprint: str, responses: Sequence[tuple[bytes, Response]]) -> None:
        channel().responses.extend(responses)


class _RelayedObserver(Observer):
    """Passes calls on to the driver's observer."""

    def window(self, queries: int, trials: int, more: int = 0) -> None:
        channel().seen.append(("window", (queries, trials, more)))

    def trial(self, outcome: Outcome | None, methods: Sequence[str] = ()) -> None:
        channel().seen.append(("trial", (outcome, tuple(methods))))

    def say(self, sentence: str) -> None:
        channel().seen.append(("say", (sentence,)))


class _RelayedLog(logging.Handler):
    """Passes log records on to the driver."""

    def emit(self, record: logging.LogRecord) -> None:
        channel().logged.append((record.name, record.levelno, record.getMessage()))


def _sendable(error: BaseException) -> BaseException:
    """The error, or one with the same message if it cannot be pickled."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        copy = None
    if type(copy) is type(error):
        return error
    if isinstance(error, PointerRLError):
        return PointerRLError(str(error))
    return RuntimeError(f"{type(error).__name__}: {first_line(error)}")
