"""Runs windows on a fleet of workers: Ray actors or, in tests, plain processes."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from types import FrameType
from typing import Any, Protocol

from pointer_rl.datasets.images import ImageFile
from pointer_rl.errors import InputError
from pointer_rl.session.caching import Result
from pointer_rl.session.observer import Observer
from pointer_rl.session.session import PluginRef, Session
from pointer_rl.session.windows import windows_of
from pointer_rl.types import Count, Job, Request, Usage, VQABackend, Window
from pointer_rl_ray.channel import (
    AskedAlone,
    Done,
    Failed,
    ImageWanted,
    Report,
    ResponsesWanted,
    Started,
)
from pointer_rl_ray.schedule import Schedule, Task
from pointer_rl_ray.sharing import Packed, Packer
from pointer_rl_ray.worker import Ask, Described, Order

log = logging.getLogger(__name__)

_JOBS = count()
"""Job numbers, unique in this process: executors may share workers, which cache jobs by number."""
_TOGETHER = 512
"""Requests per task of `RemoteBackend.run`."""
_WAIT = 1.0
"""Seconds to wait for a report before looking for new workers."""


class Fleet(Protocol):
    """Workers, which may die and be replaced. At most one call of each is under way."""

    def free(self) -> Sequence[int]:
        """Idle workers."""
        ...

    def call(self, worker: int, method: str, *args: Any) -> None:
        """Start a call of a `Worker` method. The fleet adds the `patience` argument."""
        ...

    def wait(self, seconds: float) -> Iterable[tuple[int, Report | None]]:
        """Yield the reports that arrive, waiting at most so long; None for a worker that died."""
        ...

    def put(self, packed: Packed) -> Any:
        """Store an object for all workers and return a reference to it."""
        ...

    def name(self, worker: int) -> str:
        """The worker's number and host, for messages."""
        ...

    def abandon(self, workers: Iterable[int]) -> None:
        """Kill these workers. They are replaced when workers are needed again."""
        ...


class FleetExecutor:
    """Runs windows on a fleet; see `pointer_rl.types.LoadingExecutor`."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._packer = Packer(fleet.put)

    def run(
        self, job: Job | Ask, windows: Iterable[Window]
    ) -> Iterator[tuple[Window, Mapping[int, Any]]]:
        """See `pointer_rl.types.Executor`. Responses are cached before their window is yielded."""
        session: Session | None = getattr(job, "session", None)
        number, parcel = next(_JOBS), self._packer.pack(job)
        keeps = session is not None and session.cache is not None
        fingerprint = job.fingerprint if isinstance(job, Ask) else ""
        if session is not None:
            fingerprint = session.backend.fingerprint

        def call(task: Task) -> tuple[Any, ...]:
            order = Order(number, parcel, task.part, fingerprint, keeps, task.alone, task.given_up)
            return ("run", order)

        return _Run(self._fleet, Schedule(windows), call, session).results()

    def load(self, backend: str, options: Mapping[str, object]) -> VQABackend:
        """A proxy of the workers' backend. One worker loads it now, others when needed."""
        ref = PluginRef(backend, options)
        return RemoteBackend(self, ref, self.ask("load", ref))

    def ask(self, *call: Any) -> Any:
        """Have any worker run this method of `Worker`, and return the result."""
        one = Schedule([Window(range(1), (0,))])
        [(_, results)] = _Run(self._fleet, one, lambda task: call).results()
        return results[0]


class RemoteBackend:
    """Proxy of the backend that the workers loaded; see `pointer_rl.types.VQABackend`."""

    def __init__(self, executor: FleetExecutor, backend: PluginRef, described: Described) -> None:
        self.fingerprint = described.fingerprint
        self.batch_invariant = described.batch_invariant
        self.chosen = described.chosen
        self.window = described.window
        self._executor = executor
        self._backend = PluginRef(backend.name, {**backend.options, **described.chosen})
        # So that it is a `PricedBackend` or `CountingBackend` exactly if the workers' backend is.
        if "cost" in described.methods:
            self.cost: Callable[[Usage], float | None] = self._caller("cost")
        if "count" in described.methods:
            self.count: Callable[[Sequence[Request]], Count] = self._caller("count")

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, Result]]:
        """See `pointer_rl.types.VQABackend`."""
        job = Ask(self._backend, self.fingerprint, requests)
        # If digits depend on the batch, all requests form one task, as in one process.
        together = _TOGETHER if self.batch_invariant else max(1, len(requests))
        for _, results in self._executor.run(job, windows_of(range(len(requests)), together)):
            yield from results.items()

    def _caller(self, method: str) -> Callable[..., Any]:
        return lambda *args: self._executor.ask("call", self._backend, method, args)


class _Run:
    """One call of `FleetExecutor.run` or `ask`."""

    def __init__(
        self,
        fleet: Fleet,
        schedule: Schedule,
        call: Callable[[Task], tuple[Any, ...]],
        session: Session | None = None,
    ) -> None:
        """call: returns the worker method and arguments that run a task."""
        self._fleet = fleet
        self._schedule = schedule
        self._call = call
        self._session = session
        self._observer = Observer() if session is None else session.observer
        self._tasks: dict[int, Task] = {}
        """What each worker is doing."""
        self._tallies: dict[int, _Tally] = {}

    def results(self) -> Iterator[tuple[Window, Any]]:
        """Each window with the result of its call, in any order."""
        interrupted = said = False
        self._observer.workers(self._describe)

        def interrupt() -> None:
            nonlocal interrupted
            if self._session is None:  # such as loading: there is nothing to finish
                raise KeyboardInterrupt
            interrupted = self._schedule.stopped = True

        try:
            with _first_interrupt(interrupt):
                while True:
                    self._hand_out()
                    if self._schedule.over:
                        break
                    if interrupted and not said:  # not in the handler, which may interrupt a print
                        said = True
                        number = len(self._tasks)
                        self._observer.say(f"windows to finish: {number}; Ctrl-C again stops")
                    for worker, report in self._fleet.wait(_WAIT):
                        yield from self._handle(worker, report)
            if interrupted:
                raise KeyboardInterrupt
        finally:
            self._fleet.abandon(list(self._tasks))
            self._log_totals()

    def _hand_out(self) -> None:
        for worker in self._fleet.free():
            task = self._schedule.next()
            if task is None:
                break
            self._tasks[worker] = task
            task.started = False
            self._tallies.setdefault(worker, _Tally()).begin()
            self._fleet.call(worker, *self._call(task))

    def _describe(self) -> list[str]:
        """See `Observer.workers`. The display calls this from another thread."""
        known = sorted([*self._tallies.items()])
        alive = [(worker, tally) for worker, tally in known if not tally.died]
        died = len(known) - len(alive)
        lines = [f"workers: {len(alive)}" + (f" ({died} died)" if died else "")]
        for worker, tally in alive:
            task = self._tasks.get(worker)
            does = "idle" if task is None else f"{task} for {tally.since:.0f} s"
            rate = f"{tally.rate:.1f}/s, " if tally.trials else ""
            lines.append(f"{self._fleet.name(worker)}: {rate}{does}")
        return lines

    def _handle(self, worker: int, report: Report | None) -> Iterator[tuple[Window, Any]]:
        task = self._tasks.get(worker)
        if task is None:  # the worker died while idle
            return
        if report is None:
            del self._tasks[worker]
            self._tallies[worker].died = True
            now = self._schedule.lost(task)
            said = f"{self._fleet.name(worker)} died: {task} {now}"
            # No session, no observer: a worker loads, or an arm asks while it learns.
            log.warning(said) if self._session is None else self._observer.say(said)
            return
        self._keep(worker, report)
        what = report.what
        if isinstance(what, Done):
            del self._tasks[worker]
            seconds = self._tallies[worker].end()
            if self._session is not None:
                log.info("%s: %s in %.1f s", self._fleet.name(worker), task, seconds)
            records = self._schedule.done(task, what.result)
            if records is not None:
                yield task.window, records
        elif isinstance(what, Failed):
            del self._tasks[worker]
            raise what.error
        elif what is None:
            self._fleet.call(worker, "go_on")
        else:
            if isinstance(what, Started):
                task.started = True
            if isinstance(what, AskedAlone):
                task.asking = what.key
            self._fleet.call(worker, "answer", self._answer(what))

    def _keep(self, worker: int, report: Report) -> None:
        """Store what a report carries: responses first, so that none is lost."""
        if self._session is not None:
            backend = self._session.backend
            if report.responses and self._session.cache is not None:
                self._session.cache.put(backend.fingerprint, report.responses)
            backend.asked += report.asked
            backend.hits += report.hits
            backend.used += report.used
        self._tallies[worker].trials += report.asked
        for method, args in report.seen:
            getattr(self._observer, method)(*args)
        for logger, level, message in report.logged:
            logging.getLogger(logger).log(level, "%s: %s", self._fleet.name(worker), message)

    def _answer(self, wanted: ResponsesWanted | ImageWanted | AskedAlone | Started) -> Any:
        if isinstance(wanted, ResponsesWanted):
            assert self._session is not None
            cache = self._session.cache
            return {} if cache is None else cache.get(wanted.keys)
        if isinstance(wanted, ImageWanted):
            try:
                return ImageFile(wanted.name, wanted.limits).read()
            except InputError as error:
                return error
        return None

    def _log_totals(self) -> None:
        if self._session is None:
            return
        for worker, tally in sorted(self._tallies.items()):
            log.info("%s: %s", self._fleet.name(worker), tally)


@dataclass
class _Tally:
    """Totals of a worker in a run."""

    windows: int = 0
    trials: int = 0
    died: bool = False
    _seconds: float = 0.0
    """Busy time, without that of the window under way."""
    _began: float | None = None

    def begin(self) -> None:
        self._began = time.monotonic()

    def end(self) -> float:
        """Count the window under way as done, and return its seconds."""
        seconds, self._began = self.since, None
        self.windows += 1
        self._seconds += seconds
        return seconds

    @property
    def since(self) -> float:
        """Seconds since the window under way began."""
        began = self._began  # once: the display asks from another thread
        return 0.0 if began is None else time.monotonic() - began

    @property
    def rate(self) -> float:
        """Trials per second of busy time."""
        return self.trials / max(self._seconds + self.since, 1e-3)

    def __str__(self) -> str:
        rate = f", {self.rate:.1f}/s" if self.trials else ""
        died = ", died" if self.died else ""
        return f"{self.windows:,} windows, {self.trials:,} trials{rate}{died}"


@contextmanager
def _first_interrupt(react: Callable[[], None]) -> Iterator[None]:
    """Call `react` at the first Ctrl-C inside the block; the second one is handled as usual."""
    usual = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not main or not callable(usual):  # ignored, as under nohup
        yield
        return

    def handle(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, usual)
        react()

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
