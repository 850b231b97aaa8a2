"""A progress bar on the terminal, for commands that take long."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

__all__ = ["Progress"]


class Progress:
    """Queries done, rate, time left and the share correct so far; silent where none watches."""

    def __init__(self) -> None:
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
        self._trials = self._judged = self._correct = 0
        self.done = 0
        """Queries written."""

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._bar.stop()

    def start(self, queries: int, done: int = 0) -> None:
        self.done = done
        self._bar.reset(self._task, total=queries, completed=done, description="queries")

    def query(self) -> None:
        self.done += 1
        self._bar.advance(self._task)

    def say(self, line: str) -> None:
        """Print a line on standard output, the bar out of its way."""
        self._bar.stop()
        click.echo(line)
        self._bar.start()

    def outcome(self, outcome: Any) -> None:
        self._trials += 1
        if outcome.correct is not None:
            self._judged += 1
            self._correct += outcome.correct
        elapsed = self._bar.tasks[0].elapsed or 0
        rate = f"{self._trials / elapsed:.0f} trials/s" if elapsed else ""
        share = f"{self._correct / self._judged:.0%} correct" if self._judged else ""
        self._bar.update(self._task, figures=f"{rate}  {share}")
