"""Progress on standard error: a display on a terminal, otherwise a line now and then."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pointer_rl.cli.estimate import Estimate
from pointer_rl.cli.output import echo, is_quiet, note, record
from pointer_rl.session.observer import Observer
from pointer_rl.types import Outcome

_LINES = (10.0, 30.0, 60.0)
"""Seconds after which a line is written; the last one is repeated."""
_PATIENCE = 2.0
"""Seconds after which an activity is named in a log."""
_CHECK = 0.5
"""Seconds between looks at the clock."""
_BAR = 30
"""Columns of the bar, at most."""


class _Activity:
    """Something under way other than asking."""

    def __init__(self, what: str, total: int | None) -> None:
        self.what, self.total = what, total
        self.done = 0
        self.began = time.monotonic()
        self.named = False

    def __str__(self) -> str:
        if self.total is None:
            return f"{self.what} …"
        seconds = time.monotonic() - self.began
        left = ""
        if self.done and seconds > _PATIENCE:
            left = f", about {duration(seconds / self.done * (self.total - self.done))} left"
        return f"{self.what}: {self.done:,}/{self.total:,}{left}"


class Progress(Observer):
    """Queries, trials, their rate, the time left and the share of correct answers so far."""

    def __init__(self, describe_epoch: Callable[[Mapping[str, Any]], str] = str) -> None:
        """describe_epoch: the line that is printed for the metrics of a training epoch."""
        self._describe_epoch = describe_epoch
        self._quiet = is_quiet()
        self._began = time.monotonic()
        self._lines = 0
        self._activities: list[_Activity] = []
        self._estimate: Estimate | None = None
        self._correct: Counter[str] = Counter()
        self._judged: Counter[str] = Counter()
        self._all = [0, 0]
        self._failed = 0
        self._training = ""
        self._workers: Callable[[], Sequence[str]] = lambda: [""]
        self._announced = True
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._live: Live | None = None
        console = Console(stderr=True)
        if sys.stderr.isatty() and not console.is_dumb_terminal and not self._quiet:
            # Standard output may be a file: what goes there must not end up on the terminal.
            self._live = Live(
                get_renderable=self._render,
                console=console,
                transient=True,
                redirect_stdout=False,
            )

    @property
    def done(self) -> int:
        """Queries that are done."""
        return 0 if self._estimate is None else self._estimate.done

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Remove the display from the terminal, and write the last line."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        self._thread.join()
        if self._live is not None:
            self._live.stop()
        if self._estimate is not None and self._estimate.trials:
            note(f"{self._passed()}  {', '.join(self._figures(left=False))}")

    # --- what a run reports ---

    @contextmanager
    def activity(self, what: str, total: int | None = None) -> Iterator[Callable[[int], object]]:
        activity = _Activity(what, total)

        def advance(steps: int) -> None:
            activity.done += steps

        self._activities.append(activity)
        try:
            yield advance
        finally:
            self._activities.remove(activity)
            if self._estimate is not None:
                self._estimate.pause()

    def start(
        self,
        total: int | None,
        done: int = 0,
        *,
        asked: Callable[[], int] = lambda: 0,
        left: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._estimate = Estimate(total, done, asked, left)
        self._correct.clear()
        self._judged.clear()
        self._all, self._failed = [0, 0], 0
        self._announced = total is not None and done >= total  # then there is nothing to do

    def window(self, queries: int, trials: int, more: int = 0) -> None:
        if not self._announced:  # nothing has failed so far
            self._announced = True
            self._say_progress(self._line())
        if self._estimate is not None:
            self._estimate.window(queries, trials, more)

    def trial(self, outcome: Outcome | None, methods: Sequence[str] = ()) -> None:
        if self._estimate is not None:
            self._estimate.trial()
        if outcome is None:
            return
        if outcome.correct is None:
            self._failed += 1
            return
        self._all[0] += outcome.correct
        self._all[1] += 1
        for method in methods:
            self._judged[method] += 1
            self._correct[method] += outcome.correct

    def finish(self, queries: int) -> None:
        if self._estimate is not None:
            self._estimate.finish(queries)

    def workers(self, describe: Callable[[], Sequence[str]]) -> None:
        self._workers = describe

    def epoch(self, metrics: Mapping[str, Any], of: int) -> None:
        stage, epoch = metrics["stage"], metrics["epoch"]
        self._training = "" if epoch in (0, of) else f"{stage} epoch {epoch}/{of}"
        if self._estimate is not None:
            self._estimate.pause()
        line = self._describe_epoch(metrics)
        if self._quiet:
            record(line)
            return
        with self._cleared():
            echo(line)

    def say(self, sentence: str) -> None:
        note(sentence)

    # --- showing it ---

    @contextmanager
    def _cleared(self) -> Iterator[None]:
        """Take the display off the terminal, on which standard output may be, too."""
        if self._live is None:
            yield
            return
        self._live.stop()
        yield
        self._live.start()

    def _run(self) -> None:
        while not self._stopped.wait(_CHECK):
            self.tick(time.monotonic())

    def tick(self, now: float) -> None:
        """Write the lines that are due."""
        for activity in [*self._activities]:
            if not activity.named and now - activity.began >= _PATIENCE:
                activity.named = True
                self._say_progress(f"{clock(now - self._began)}  {activity}")
        before = self._lines
        while now - self._began >= _due(self._lines):
            self._lines += 1
        if self._lines > before:  # by more than one if the machine slept
            self._say_progress(self._line())

    def _say_progress(self, line: str) -> None:
        """On a terminal, which shows it anyway, only for the log file."""
        record(line) if self._quiet or self._live is not None else note(line)

    def _passed(self) -> str:
        return clock(time.monotonic() - self._began)

    def _line(self) -> str:
        """All that is known, in one line."""
        activity = [str(each) for each in self._activities[-1:]]
        workers = self._workers()[0]
        parts = [*activity, self._training, *self._figures(), workers, self._share_correct()]
        return f"{self._passed()}  {', '.join(filter(None, parts)) or 'starting …'}"

    def _figures(self, *, left: bool = True) -> list[str]:
        """Queries, trials, their rate and the time left."""
        estimate = self._estimate
        if estimate is None:
            return []
        parts = []
        if estimate.total is not None:
            parts.append(f"{estimate.done:,}/{estimate.total:,} queries")
        trials, spent = estimate.trials, estimate.spent
        if estimate.total is None and spent is not None:
            trials = spent
            parts.append(f"{spent:,}/{estimate.most:,} trials")
        elif trials:
            parts.append(f"{trials:,} trials")
        if estimate.asked < trials:
            parts.append(f"{estimate.asked:,} asked")
        if self._failed:
            parts.append(f"{self._failed:,} failed")
        rate = estimate.rate
        if rate is not None:
            parts.append(per_second(rate))
        seconds = estimate.seconds_left() if left else None
        if seconds is not None:
            parts.append(f"{'at most' if seconds[1] else 'about'} {duration(seconds[0])} left")
        return parts

    def _share_correct(self) -> str:
        """`correct: 61% (beam 64%, random 58%)`."""
        correct, judged = self._all
        if not judged:
            return ""
        by_method = ", ".join(
            f"{method} {self._correct[method] / number:.0%}"
            for method, number in [*self._judged.items()]
        )
        return f"correct: {correct / judged:.0%}" + (f" ({by_method})" if by_method else "")

    def _render(self) -> RenderableType:
        """What a terminal shows: a bar with the figures, and a line for each thing under way."""
        lines: list[RenderableType] = []
        estimate, passed = self._estimate, self._passed()
        if estimate is not None:
            table = Table.grid(padding=(0, 1), expand=True)
            table.add_column(no_wrap=True)
            table.add_column(ratio=1, max_width=_BAR)
            table.add_column(no_wrap=True)
            bar = ProgressBar(total=1.0, completed=estimate.fraction)
            table.add_row(passed, bar, ", ".join(self._figures()))
            lines.append(table)
        activity = map(str, self._activities[-1:])
        texts = [self._share_correct(), self._training, *activity, *self._workers()]
        for text in filter(None, texts):
            indent = "" if not lines else " " * (len(passed) + 1)
            first = f"{passed} " if not lines else indent
            lines.append(Text(first + text, no_wrap=True, overflow="ellipsis"))
        return Group(*(lines or [Text(f"{passed} starting …")]))


def _due(line: int) -> float:
    """Seconds after which a line is written, lines counted from 0."""
    later = line - len(_LINES) + 2
    return _LINES[line] if line < len(_LINES) else _LINES[-1] * later


def clock(seconds: float) -> str:
    """`0:01:29`."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def per_second(rate: float) -> str:
    """`57/s`, `5.7/s` or `1.8 s each`."""
    if rate >= 1:
        return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s"
    return f"{1 / rate:,.1f} s each"


def duration(seconds: float) -> str:
    """`40 s`, `12 min` or `3.5 h`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 5970:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
