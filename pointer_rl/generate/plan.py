"""What a run of `generate` would cost, before anything is asked.

All queries that are not done are counted or, of many, those of some windows drawn at random. The
time is measured on uncached trials, whose responses enter the cache and are not lost.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pointer_rl.generate.run import GenerateRun, prepare
from pointer_rl.records.formats import open_writer
from pointer_rl.session.caching import CachedBackend
from pointer_rl.session.candidates import CandidateJob
from pointer_rl.session.journal import Journal, locked_run
from pointer_rl.session.observer import Observer
from pointer_rl.session.windows import due_windows
from pointer_rl.types import BackendError, Count, Request, Window

WINDOWS = 16
"""Windows that are counted, of more."""
WARM_UP = 16
MEASURED = WARM_UP + 256
"""Trials asked to measure their time; the first ones are not timed."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was counted. Searches may ask for further trials, which are not."""

    queries: int
    """Queries of the run."""
    window: int
    """Queries asked together."""
    chosen: Mapping[str, Any]
    """Options that the backend chose by its machine."""
    done: int
    """Those that an interrupted run has done already."""
    counted: int
    """Of the others, those that the figures below come from."""
    candidates: int
    trials: int
    """Distinct ones: candidates with equal prompts are asked once."""
    cached: int
    """Trials that the response cache answers."""
    unaskable: int
    """Candidates whose trial would fail before it is asked: no answers, no image."""
    shown: int
    """Images in the prompts to be asked, repeats included."""
    images: int
    """Distinct ones."""
    tokens: Count
    seconds: float | None
    """For the uncached trials; None if there are none, or none was answered."""
    price: float | None
    """Of the uncached trials, from what the measured ones took; None if no price is known."""
    measured: int
    """Trials that `seconds` was measured on."""

    @property
    def to_ask(self) -> int:
        """Trials that the backend would be asked."""
        return self.trials - self.cached

    @property
    def scale(self) -> float:
        """From what was counted to the whole run."""
        return (self.queries - self.done) / self.counted if self.counted else 0.0

    def rows(self) -> list[tuple[str, str, str]]:
        """Header and lines of a table."""
        about = "" if self.scale <= 1 else "about "

        def whole(number: float) -> str:
            return f"{about}{round(number * self.scale):,}"

        lines = [
            ("", "number", ""),
            ("queries", f"{self.queries:,}", f"{self.done:,} of them done" if self.done else ""),
            ("window", f"{self.window:,}", "queries asked together"),
            ("candidates", whole(self.candidates), ""),
            ("trials", whole(self.trials), "equal prompts count once"),
            ("cached", whole(self.cached), ""),
            ("to ask", whole(self.to_ask), ""),
            # Images do not grow with the number of windows: many are shown again.
            ("images", f"{self.images:,}", f"distinct, of {self.shown:,} shown"),
        ]
        tokens = self.tokens
        if tokens.prompt_tokens is not None:
            lines.append(("tokens", whole(tokens.prompt_tokens), "every prompt in full"))
        if tokens.unique_tokens is not None:
            lines.append(("computed", whole(tokens.unique_tokens), "shared tokens count once"))
        return lines

    def sentences(self) -> list[str]:
        """Where the figures come from, and how long the run will take."""
        said = []
        if self.chosen:
            options = ", ".join(f"{name}={value}" for name, value in self.chosen.items())
            said.append(f"the backend chose {options}")
        if self.scale > 1:
            said.append(f"counted on {self.counted:,} queries drawn at random (images: of these)")
        if self.unaskable:
            said.append(f"{round(self.unaskable * self.scale):,} candidates cannot be asked")
        if self.seconds is not None:
            rate = self.to_ask / self.seconds
            left = format_duration(self.seconds * self.scale)
            said.append(f"about {left}: {rate:,.1f} trials/s, measured on {self.measured:,}")
        elif self.measured:
            said.append(f"no time: none of {self.measured:,} trials was answered")
        if self.price is not None:
            said.append(f"about {self.price * self.scale:,.2f} by the backend's prices")
        return said


def make_plan(run: GenerateRun, observer: Observer = Observer()) -> Plan:
    """Propose, count, and ask a few trials. The run's files stay as they are.

    (A journal notes a change that `run` accepts.)
    Raises PointerRLError as `run_generate` does.
    """
    open_writer(run.output_path).discard()
    with locked_run(run.output_path):
        job, meta = prepare(run, observer)
        ids = [query.id for query in job.queries]
        with Journal(run.output_path, meta, ids, accept=run.accept_changed) as journal:
            done = sum(map(journal.is_done, range(len(ids))))
            windows = list(due_windows(journal, meta["window"], cached=True))
    rng = np.random.default_rng(run.seed)
    drawn = [windows[i] for i in sorted(rng.permutation(len(windows))[:WINDOWS])]
    with observer.activity("counting, and asking a few trials"):
        return _counted(job, meta["window"], drawn, done)


def _counted(job: CandidateJob, size: int, windows: list[Window], done: int) -> Plan:
    backend = job.session.backend
    counted = candidates = trials = cached = askable = shown = 0
    images: set[str] = set()
    tokens: list[Count] = []
    measured: list[Request] = []
    for window in windows:
        proposed, requests = job.first_requests(window)
        known, uncached = backend.split_cached(requests)
        counted += len(window.todo)
        candidates += proposed
        askable += len(requests)
        cached += known
        trials += known + len(uncached)
        shown += sum(len(request.prompt.images) for request in uncached)
        images.update(image.key for request in uncached for image in request.prompt.images)
        tokens.append(backend.count(uncached))
        measured += uncached[: MEASURED - len(measured)]
    seconds = _seconds(backend, measured)
    price = backend.cost if backend.asked else None
    return Plan(
        queries=len(job.queries),
        window=size,
        chosen=job.session.chosen,
        done=done,
        counted=counted,
        candidates=candidates,
        trials=trials,
        cached=cached,
        unaskable=candidates - askable,
        shown=shown,
        images=len(images),
        tokens=Count(
            _sum([each.prompt_tokens for each in tokens]),
            _sum([each.unique_tokens for each in tokens]),
        ),
        seconds=None if seconds is None else seconds * (trials - cached),
        price=None if price is None else price / backend.asked * (trials - cached),
        measured=max(0, len(measured) - WARM_UP),
    )


def _seconds(backend: CachedBackend, requests: list[Request]) -> float | None:
    """Seconds per trial, after a warm-up; None if none was answered."""
    deque(backend.run(requests[:WARM_UP]), maxlen=0)
    start = time.perf_counter()
    results = backend.run(requests[WARM_UP:])
    answered = sum(not isinstance(result, BackendError) for _, result in results)
    return (time.perf_counter() - start) / answered if answered else None


def _sum(numbers: list[int | None]) -> int | None:
    known = [each for each in numbers if each is not None]
    return sum(known) if known and len(known) == len(numbers) else None


def format_duration(seconds: float) -> str:
    """`90 s`, `12 min`, `3.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
