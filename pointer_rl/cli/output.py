"""Print. Every command prints through this module, so that foreign text cannot run a terminal.

What is printed also goes to the log file, if there is one (`cli/logs.py`).
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import textwrap
from typing import Any

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


def on_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty()


def echo_wrapped(text: object, *, indent: int = 0, hanging: int = 0, **style: Any) -> None:
    """Print a paragraph, wrapped to 80 columns or to the terminal's width, up to 100.

    indent, hanging: columns before the first line, and before the others. `style` is that of
    `click.style`; it is used on a terminal only, and not if NO_COLOR is set. Words are not broken.
    """
    width = min(shutil.get_terminal_size().columns, 100) if on_terminal() else 80
    lines = textwrap.wrap(
        printable(text),
        width,
        initial_indent=" " * indent,
        subsequent_indent=" " * hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )
    for line in lines:
        styled = click.style(line, **style) if style else line
        click.echo(styled, color=False if os.environ.get("NO_COLOR") else None)
        record(line)


def echo_escapes(codes: str) -> None:
    """Print escape codes of our own, such as those of an image. They must hold no foreign text."""
    click.echo(codes)


class LineFormatter(logging.Formatter):
    """Writes a log message as one line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return printable(super().formatMessage(record))


class StderrHandler(logging.Handler):
    """Prints log messages on standard error, whatever that is by then; not what was printed."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != _printed.name:
            click.echo(self.format(record), err=True)
