"""A fleet of processes in place of Ray's actors, and a backend that can kill its process.

Loaded as a plugin file: `--plugin tests/fleet_plugin.py`, or `registry().load_file`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from multiprocessing.connection import wait
from pathlib import Path

import PIL.Image

from pointer_rl.hookspecs import hookimpl
from pointer_rl.session.session import Session
from pointer_rl.types import BackendError, Response
from pointer_rl_ray.running import FleetExecutor
from pointer_rl_ray.worker import Worker


def make_world(folder: Path, number: int) -> Path:
    """Write a jsonl dataset of so many queries, each with an image of its own."""
    rows = []
    for index in range(number):
        PIL.Image.new("RGB", (4, 4), (index, 0, 0)).save(folder / f"{index}.png")
        answers = ["yes" if index % 2 else "no"] * 10
        row = {"id": f"e{index}", "image": f"{index}.png", "question": f"q{index}?"}
        rows.append(json.dumps({**row, "answers": answers}) + "\n")
    (folder / "data.jsonl").write_text("".join(rows))
    return folder


@dataclass(frozen=True, kw_only=True)
class TouchyOptions:
    """Options of the backend `touchy`."""

    deadly: str = ""
    """A question with this in it kills the process."""
    warn: str = ""
    """A question with this in it is warned of."""
    log: str = ""
    """A file to which each question is appended when it is asked."""
    seconds: float = 0.0
    """Time that a request takes."""
    needs: str = ""
    """A file without which the backend is not made."""
    version: str = ""
    """Names a file whose content is in the fingerprint."""
    answers: str = "yes,no"
    """One of these is drawn by a hash of the prompt."""
    sways: bool = False
    """Log-probabilities depend on the batch, so a call that is cut off is repeated whole."""


class Touchy:
    """Answers at random, and to the same prompt the same."""

    def __init__(self, options: TouchyOptions) -> None:
        if options.needs and not os.path.exists(options.needs):
            from pointer_rl.errors import InputError

            raise InputError(f"{options.needs}: no such folder")
        self.fingerprint = "touchy"
        if options.version:
            self.fingerprint += Path(options.version).read_text()
        self.batch_invariant = not options.sways
        self._options = options
        self._answers = options.answers.split(",")

    def run(self, requests):
        for index, request in enumerate(requests):
            text = request.prompt.text
            question = text.rpartition("Question:")[2].strip()
            if self._options.log:
                with open(self._options.log, "a") as file:
                    file.write(f"{hashlib.sha256(text.encode()).hexdigest()} {question}\n")
            if self._options.warn and self._options.warn in question:
                logging.getLogger("pointer_rl.touchy").warning("%s is odd", question)
            if self._options.deadly and self._options.deadly in question:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(self._options.seconds)
            try:
                for image in request.prompt.images:
                    image.open()
            except Exception as error:
                yield index, BackendError(str(error))
                continue
            drawn = self._answers[hashlib.sha256(text.encode()).digest()[0] % len(self._answers)]
            yield index, Response(drawn, (-1.0,) * len(request.score))


@dataclass(frozen=True, kw_only=True)
class ProcessesOptions:
    """Options of the executor `processes`."""

    num_workers: int = 2


def _serve(pipe, others) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for each in others:
        each.close()  # so that workers end with the driver
    for each in vars(Session).values():
        if isinstance(each, cached_property):  # the fork may have happened while it was computed
            each.lock = threading.RLock()
    worker = Worker(lambda packed: packed)
    with contextlib.suppress(EOFError, OSError):
        while True:
            method, args = pipe.recv()
            pipe.send(getattr(worker, method)(*args))


class ProcessFleet:
    """See `pointer_rl_ray.running.Fleet`. Workers are forks of this process."""

    def __init__(self, options: ProcessesOptions) -> None:
        self.options = options
        self._numbers = count(1)
        self._free = []
        self._busy = {}
        self.processes = {}

    def free(self):
        while len(self._free) + len(self._busy) < self.options.num_workers:
            number = next(self._numbers)
            context = multiprocessing.get_context("fork")
            ours, its = context.Pipe()
            process = context.Process(
                target=_serve,
                args=(its, [ours, *(each for _, each in self.processes.values())]),
                daemon=True,
            )
            process.start()
            its.close()
            self.processes[number] = (process, ours)
            self._free.append(number)
        return list(self._free)

    def call(self, worker, method, *args):
        self._free.remove(worker)
        self._busy[worker] = self.processes[worker][1]
        with contextlib.suppress(BrokenPipeError):  # `wait` notices
            self._busy[worker].send((method, [*args, 0.05]))

    def wait(self, seconds):
        ready = wait(list(self._busy.values()), timeout=seconds)
        for worker, pipe in list(self._busy.items()):
            if pipe in ready and worker in self._busy:
                del self._busy[worker]
                try:
                    report = pipe.recv()
                except (EOFError, OSError):
                    self._end(worker)
                    yield worker, None
                else:
                    self._free.append(worker)
                    yield worker, report

    def put(self, packed):
        return packed

    def name(self, worker):
        return f"worker {worker}"

    def abandon(self, workers):
        for worker in workers:
            self._busy.pop(worker, None)
            self._end(worker)

    def _end(self, worker):
        process, pipe = self.processes.pop(worker)
        process.kill()
        process.join()
        pipe.close()
        if worker in self._free:
            self._free.remove(worker)


FLEETS = []
"""Those that were made."""


def processes(options: ProcessesOptions) -> FleetExecutor:
    """As Ray's, executors with the same options share their workers."""
    fleet = next((each for each in FLEETS if each.options == options), None)
    if fleet is None:
        fleet = ProcessFleet(options)
        FLEETS.append(fleet)
    return FleetExecutor(fleet)


def load() -> list[ProcessFleet]:
    """Load this file as a plugin. Returns the fleets that it will make."""
    from pointer_rl.registry import registry

    registry().load_file(Path(__file__))
    return sys.modules[registry().plugins[-1].module].FLEETS


@hookimpl
def pointer_rl_register_backends(register):
    register("touchy", Touchy, options=TouchyOptions, summary="may kill its process")


@hookimpl
def pointer_rl_register_executors(register):
    register("processes", processes, options=ProcessesOptions, summary="forks of this process")
