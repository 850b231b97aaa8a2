"""Print. Every command prints through this module, so that foreign text cannot run a terminal."""

from __future__ import annotations

import logging

import click

from pointer_rl.escaping import printable, printable_lines


def echo(line: object, *, err: bool = False) -> None:
    """Print one line: a line end in it is escaped, too."""
    click.echo(printable(line), err=err)


def echo_block(text: str) -> None:
    """Print several lines: a table or a document, whose own parts have no line ends."""
    click.echo(printable_lines(text))


class LineFormatter(logging.Formatter):
    """Writes a log message as one line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return printable(super().formatMessage(record))
