"""The executor `ray`: a fleet of Ray actors, on this machine or on a cluster."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

from pointer_rl.errors import InputError, MissingExtraError, PluginError, first_line
from pointer_rl.registry import registry
from pointer_rl_ray.channel import Report
from pointer_rl_ray.options import RayOptions
from pointer_rl_ray.running import FleetExecutor
from pointer_rl_ray.sharing import Packed
from pointer_rl_ray.worker import Worker

log = logging.getLogger(__name__)

_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_VARIABLES = ("POINTER_RL_PLUGINS", "POINTER_RL_BLOCK_PLUGINS")
_LOOK = 5.0
"""Seconds between looks at what the cluster has."""
_LONG = 30.0
"""Seconds without any worker after which the user hears why."""
_DEATHS = 10
"""Workers that may die before they can be called, one after the other."""


class RayExecutor(FleetExecutor):
    """Runs windows on Ray. Executors of a process that have the same options share workers."""

    def __init__(self, options: RayOptions) -> None:
        """Starts or joins Ray. Raises InputError if that fails or if there is no GPU."""
        super().__init__(_fleet(options))


_FLEETS: dict[RayOptions, RayFleet] = {}


def _fleet(options: RayOptions) -> RayFleet:
    """The fleet with these options. Kills the workers of others, which start again when needed."""
    if options not in _FLEETS:
        _FLEETS[options] = RayFleet(options)
    for each in _FLEETS.values():
        if each is not _FLEETS[options]:
            each.abandon(each.workers)
    return _FLEETS[options]


class _Actor:
    """A `Worker` as a Ray actor."""

    def __init__(
        self, plugin_files: Sequence[Path], variables: Mapping[str, str], says_where: bool
    ) -> None:
        import ray

        os.environ.update(variables)
        self._plugin_files = plugin_files
        self._worker = Worker(ray.get, says_where=says_where)

    def hello(self) -> tuple[str, str]:
        """Host and GPU of this worker, and its version of pointer-rl."""
        import ray

        for file in self._plugin_files:
            registry().load_file(file)
        gpus = ray.get_gpu_ids()
        gpu = f", GPU {', '.join(map(str, gpus))}" if gpus else ""
        return f"{socket.gethostname()}{gpu}", version("pointer-rl")

    def call(self, method: str, args: Sequence[Any]) -> Report:
        """Call a method of the worker."""
        report: Report = getattr(self._worker, method)(*args)
        return report


class RayFleet:
    """See `pointer_rl_ray.running.Fleet`."""

    def __init__(self, options: RayOptions) -> None:
        self._options = options
        self._ray = _start(options)
        self._gpus = options.gpus_per_worker or 0.0
        if options.gpus_per_worker is None:
            self._gpus = min(1.0, self._cluster_gpus())
        if not self._gpus and options.num_workers is None:
            where = "this machine has" if options.address is None else "the cluster has"
            raise InputError(f"{where} no GPU: give --executor-opt num_workers=N")
        self._numbers = count(1)
        self._actors: dict[int, Any] = {}
        self._calls: dict[Any, int] = {}
        """The worker of each call that is under way, by the reference to its result."""
        self._free: list[int] = []
        self._where: dict[int, str] = {}
        """Host and GPU of each worker that has started."""
        self._died_early = 0
        self._began = self._looked = time.monotonic()
        self._patience = 1.0
        self._complained = False

    # --- the fleet ---

    @property
    def workers(self) -> Sequence[int]:
        """All of them."""
        return list(self._actors)

    def free(self) -> Sequence[int]:
        self._fill_up()
        return list(self._free)

    def call(self, worker: int, method: str, *args: Any) -> None:
        self._free.remove(worker)
        reference = self._actors[worker].call.remote(method, [*args, self._patience])
        self._calls[reference] = worker

    def wait(self, seconds: float) -> Iterator[tuple[int, Report | None]]:
        if not self._calls:
            return
        self._complain()
        waiting = list(self._calls)
        ready, _ = self._ray.wait(waiting, num_returns=1, timeout=seconds)
        if ready:
            ready, _ = self._ray.wait(waiting, num_returns=len(waiting), timeout=0)
        for reference in ready:
            worker = self._calls.pop(reference, None)
            if worker is None:  # abandoned while others were heard
                continue
            new = worker not in self._where
            try:
                said = self._ray.get(reference)
            except self._ray.exceptions.RayTaskError as error:
                raise PluginError(f"{self.name(worker)}: {first_line(error.cause)}") from error
            except self._ray.exceptions.RayError as error:
                log.info("%s died: %s", self.name(worker), first_line(error))
                self._end(worker)
                if new:
                    self._note_early_death(error)
                else:
                    yield worker, None
                continue
            self._free.append(worker)
            if new:
                self._welcome(worker, *said)
            else:
                yield worker, said

    def put(self, packed: Packed) -> Any:
        return self._ray.put(packed)

    def name(self, worker: int) -> str:
        return f"worker {worker} ({self._where.get(worker, 'starting')})"

    def abandon(self, workers: Iterable[int]) -> None:
        for worker in workers:
            self._end(worker)
        gone = set(workers)
        self._calls = {ref: each for ref, each in self._calls.items() if each not in gone}

    # --- who is there ---

    def _fill_up(self) -> None:
        """Replace dead workers, and add workers for new GPUs."""
        wanted = self._options.num_workers
        if wanted is None:
            now = time.monotonic()
            if self._actors and now - self._looked < _LOOK:
                return
            self._looked = now
            wanted = max(1, int(self._cluster_gpus() / self._gpus))
        while len(self._actors) < wanted:
            self._start_worker()
        # At most about a hundred reports a second that a task is still running.
        self._patience = max(1.0, len(self._actors) / 100)

    def _start_worker(self) -> None:
        worker = next(self._numbers)
        remote = self._ray.remote(
            num_gpus=self._gpus,
            num_cpus=0,  # `num_workers` decides, not the cores
            max_restarts=0,
            scheduling_strategy="SPREAD",
        )(_Actor)
        variables = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
        far = self._options.address is not None
        actor = remote.remote(registry().files, variables, far)
        self._actors[worker] = actor
        self._calls[actor.hello.remote()] = worker

    def _welcome(self, worker: int, where: str, its_version: str) -> None:
        ours = version("pointer-rl")
        if its_version != ours:
            raise InputError(
                f"{where} has pointer-rl {its_version}, and this process {ours}: install the same "
                "version on all machines"
            )
        self._where[worker] = where
        self._died_early = 0
        log.info("%s is ready", self.name(worker))

    def _end(self, worker: int) -> None:
        actor = self._actors.pop(worker, None)
        if actor is not None:
            self._ray.kill(actor)
        if worker in self._free:
            self._free.remove(worker)

    def _note_early_death(self, error: Exception) -> None:
        self._died_early += 1
        if self._died_early >= _DEATHS and not self._where.keys() & self._actors.keys():
            raise InputError(f"no worker starts: {first_line(error)}")

    def _complain(self) -> None:
        """Warn if no worker could start for a while."""
        late = time.monotonic() - self._began > _LONG
        if self._gpus and late and not self._where and not self._complained:
            self._complained = True
            log.warning(
                "no worker has started yet: each needs %g GPUs, and there are %g in all",
                self._gpus,
                self._cluster_gpus(),
            )

    def _cluster_gpus(self) -> float:
        return float(self._ray.cluster_resources().get("GPU", 0))


def _start(options: RayOptions) -> Any:
    """Start Ray on this machine, or join a cluster. Returns the module."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if options.address not in (None, "auto"):
        _check_address(options.address)
    here: dict[str, Any] = {}
    if options.address is None or options.address.startswith(("127.0.0.1", "localhost")):
        # Ray reads this when it is imported. Otherwise it would take another of our addresses.
        if "ray" in sys.modules and os.environ.get(_LOOPBACK) != "0":
            log.warning("Ray is imported already: to keep it to loopback, set %s=0", _LOOPBACK)
        os.environ[_LOOPBACK] = "0"
    if options.address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        here = {
            "include_dashboard": options.dashboard,
            "dashboard_host": "127.0.0.1",
            "_node_ip_address": "127.0.0.1",
        }
    import ray

    if options.dashboard:
        try:
            import ray.dashboard.optional_deps
        except ImportError as error:
            raise MissingExtraError("ray[default]", "the dashboard") from error
    if ray.is_initialized():
        if options.address is not None:
            raise InputError(
                f"address={options.address}: Ray runs in this process already; leave it away"
            )
        return ray
    try:
        ray.init(
            options.address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            **here,
        )
    except Exception as error:  # Ray raises bare ones
        where = "Ray does not start" if options.address is None else f"no Ray at {options.address}"
        raise InputError(f"{where}: {first_line(error)}") from error
    return ray


def _check_address(address: str) -> None:
    """Raise InputError if nobody is there: Ray would wait for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or "/" in host:
        raise InputError(f"address={address}: give auto, or HOST:PORT of the cluster's head")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise InputError(f"no Ray at {address}: {error.strerror or error}") from error
