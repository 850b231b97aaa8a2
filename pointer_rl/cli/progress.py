"""A progress bar on the terminal, for commands that take long."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from pointer_rl.cli.output import echo
from pointer_rl.session.observer import Observer
from pointer_rl.types import Outcome


class Progress(Observer):
    """Queries done, rate, time left and the share correct so far; silent without a terminal."""

    def __init__(self, describe_epoch: Callable[[Mapping[str, Any]], str] = str) -> None:
        """describe_epoch: the line that is printed for the metrics of a training epoch."""
        console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("loading", total=None, figures="")
        self._describe_epoch = describe_epoch
        self._trials = self._judged = self._correct = 0
        self.done = 0
        """Queries that are done."""

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Remove the bar from the terminal."""
        self._bar.stop()

    def start(self, total: int, done: int = 0) -> None:
        self.done = done
        self._trials = self._judged = self._correct = 0
        self._bar.reset(self._task, total=total, completed=done, description="queries")

    def trial(self, outcome: Outcome | None) -> None:
        self._trials += 1
        if outcome is not None and outcome.correct is not None:
            self._judged += 1
            self._correct += outcome.correct
        elapsed = self._bar.tasks[0].elapsed or 0
        rate = f"{self._trials / elapsed:.0f} trials/s" if elapsed else ""
        share = f"{self._correct / self._judged:.0%} correct" if self._judged else ""
        self._bar.update(self._task, figures=f"{rate}  {share}")

    def finish(self, queries: int) -> None:
        self.done += queries
        self._bar.advance(self._task, queries)

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        self.say(self._describe_epoch(metrics))

    def say(self, sentence: str) -> None:
        """Print a line on standard output, with the bar out of the way."""
        self._bar.stop()
        echo(sentence)
        self._bar.start()
