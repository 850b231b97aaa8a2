"""Print. Every command prints through this module, so that foreign text cannot run a terminal.

What is printed also goes to the log file, if there is one (`cli/logs.py`).
"""

from __future__ import annotations

import logging

import click

from pointer_rl.escaping import printable, printable_lines

_printed = logging.getLogger("pointer_rl.printed")
_QUIET = "pointer_rl.quiet"


def echo(line: object, *, err: bool = False) -> None:
    """Print one line: a line end in it is escaped, too."""
    click.echo(printable(line), err=err)
    record(line)


def echo_block(text: str) -> None:
    """Print several lines: a table or a document, whose own parts have no line ends."""
    click.echo(printable_lines(text))
    for line in text.splitlines():
        record(line)


def note(line: object) -> None:
    """Print a line on standard error, unless the user wants quiet."""
    if is_quiet():
        record(line)
    else:
        echo(line, err=True)


def record(line: object) -> None:
    """Write a line to the log file alone."""
    _printed.info("%s", line)


def set_quiet() -> None:
    """`--quiet`: print no notes and no progress until the command ends."""
    click.get_current_context().meta[_QUIET] = True


def is_quiet() -> bool:
    """Whether `--quiet` was given."""
    context = click.get_current_context(silent=True)
    return context is not None and _QUIET in context.meta


class LineFormatter(logging.Formatter):
    """Writes a log message as one line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return printable(super().formatMessage(record))


class StderrHandler(logging.Handler):
    """Prints log messages on standard error, whatever that is by then; not what was printed."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != _printed.name:
            click.echo(self.format(record), err=True)
