"""What a run of `generate` would cost, said before anything is asked.

Counted are all queries that are not done or, of many, those of some windows drawn at random; the
time is measured on trials that the store does not answer (which keeps them, so that they are not
lost).
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from pointer_rl.generate.run import GenerateRun, Prepared, prepare
from pointer_rl.records.formats import open_writer
from pointer_rl.session.journal import Journal
from pointer_rl.types import BackendError, Count, Request

__all__ = ["Plan", "make_plan"]

WINDOWS = 16
"""Windows that are counted, of more."""
WARM_UP = 16
MEASURED = WARM_UP + 256
"""Trials that are asked to measure the time they take, the first ones not timed."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Figures of the queries that were counted."""

    queries: int
    """Of the run."""
    done: int
    """Of these, those that a cut run has done already."""
    counted: int
    """Of the others, those that the figures below are of."""
    candidates: int
    trials: int
    """Different ones: candidates of equal prompts are asked once."""
    stored: int
    """Trials whose response is in the store."""
    unaskable: int
    """Candidates whose trial would fail before it is asked: no answers, no image."""
    shown: int
    """Images in the prompts that would be asked, repeats included."""
    images: int
    """Different ones."""
    tokens: Count
    seconds: float | None
    """For the trials to be asked; None where none is, or none was answered."""
    price: float | None
    """Of the trials to be asked, by what those measured took; None where no price is known."""
    measured: int
    """Trials that `seconds` was measured on."""

    @property
    def to_ask(self) -> int:
        """Trials that the backend would be asked."""
        return self.trials - self.stored

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
            ("candidates", whole(self.candidates), ""),
            ("trials", whole(self.trials), "equal prompts are one"),
            ("in the store", whole(self.stored), ""),
            ("to ask", whole(self.to_ask), ""),
            # What many windows show again does not grow with their number.
            ("images", f"{self.images:,}", f"different, of {self.shown:,} shown"),
        ]
        tokens = self.tokens
        if tokens.prompt_tokens is not None:
            lines.append(("tokens", whole(tokens.prompt_tokens), "each prompt taken whole"))
        if tokens.unique_tokens is not None:
            lines.append(("computed", whole(tokens.unique_tokens), "what is shared counts once"))
        return lines

    def sentences(self) -> list[str]:
        """How the figures came about, and how long it will take."""
        said = []
        if self.scale > 1:
            said.append(f"counted on {self.counted:,} queries drawn at random (images: of these)")
        if self.unaskable:
            said.append(f"{round(self.unaskable * self.scale):,} candidates cannot be asked")
        if self.seconds is not None:
            rate = self.to_ask / self.seconds
            left = _duration(self.seconds * self.scale)
            said.append(f"about {left}: {rate:,.1f} trials/s, measured on {self.measured:,}")
        elif self.measured:
            said.append(f"no time: none of {self.measured:,} trials was answered")
        if self.price is not None:
            said.append(f"about {self.price * self.scale:,.2f} by the backend's prices")
        return said


def make_plan(run: GenerateRun) -> Plan:
    """Propose, count, and ask a few trials. The run's files stay as they are.

    Raises PointerRLError as `run_generate` does.
    """
    open_writer(run.output_path).discard()
    ready = prepare(run)
    with Journal(run.output_path, ready.meta, ready.queries, overwrite=False) as journal:
        done = [journal.is_done(index) for index in range(len(ready.queries))]
    windows = [each for each in ready.generation.windows() if not all(done[i] for i in each)]
    rng = np.random.default_rng(run.config.seed)
    drawn = [windows[i] for i in sorted(rng.permutation(len(windows))[:WINDOWS])]
    return _counted(ready, drawn, done)


def _counted(ready: Prepared, windows: list[range], done: list[bool]) -> Plan:
    backend = ready.workbench.backend
    counted = candidates = trials = stored = askable = shown = 0
    images: set[str] = set()
    tokens: list[Count] = []
    asked: list[Request] = []
    for window in windows:
        todo = [each for each in ready.generation.propose(window) if not done[each.index]]
        requests = [
            request
            for each in todo
            for request in ready.judge.requests(ready.generation.trials(each))
        ]
        known, missing = backend.sort_out(requests)
        counted += len(todo)
        candidates += sum(len(each.candidates) for each in todo)
        askable += len(requests)
        stored += known
        trials += known + len(missing)
        shown += sum(len(request.prompt.images) for request in missing)
        images.update(image.key for request in missing for image in request.prompt.images)
        tokens.append(backend.count(missing))
        asked += missing[: MEASURED - len(asked)]
    seconds = _seconds(ready, asked)
    price = backend.cost if backend.asked else None
    return Plan(
        queries=len(done),
        done=sum(done),
        counted=counted,
        candidates=candidates,
        trials=trials,
        stored=stored,
        unaskable=candidates - askable,
        shown=shown,
        images=len(images),
        tokens=Count(
            _sum([each.prompt_tokens for each in tokens]),
            _sum([each.unique_tokens for each in tokens]),
        ),
        seconds=None if seconds is None else seconds * (trials - stored),
        price=None if price is None else price / backend.asked * (trials - stored),
        measured=max(0, len(asked) - WARM_UP),
    )


def _seconds(ready: Prepared, requests: list[Request]) -> float | None:
    """That a trial takes. The first ones warm the model up."""
    backend = ready.workbench.backend
    deque(backend.run(requests[:WARM_UP]), maxlen=0)
    start = time.perf_counter()
    results = backend.run(requests[WARM_UP:])
    answered = sum(not isinstance(result, BackendError) for _, result in results)
    return (time.perf_counter() - start) / answered if answered else None


def _sum(numbers: list[int | None]) -> int | None:
    known = [each for each in numbers if each is not None]
    return sum(known) if known and len(known) == len(numbers) else None


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
