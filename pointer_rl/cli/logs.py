"""`--quiet`, `--verbose` and `--log-file`: what is printed on standard error, and kept in a file.

Warnings of any library are printed. The lines below them (files opened, cache hits, batches) come
from our loggers and the plugins' alone: libraries log what they send and receive, keys included.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from importlib.metadata import entry_points, version
from pathlib import Path

import click

from pointer_rl.cli.output import LineFormatter, StderrHandler, set_quiet

_SHORT, _FULL = "%(name)s: %(message)s", "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
_handlers: list[logging.Handler] = []
"""Those of this command."""
_loggers: list[logging.Logger] = []
"""Those that log more than warnings."""


def start_logging() -> None:
    """Print warnings, each in one line; forget the options of a command before."""
    while _handlers:
        handler = _handlers.pop()
        logging.getLogger().removeHandler(handler)
        handler.close()
    while _loggers:
        _loggers.pop().setLevel(logging.NOTSET)
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(LineFormatter())


def _add(handler: logging.Handler) -> None:
    _handlers.append(handler)
    logging.getLogger().addHandler(handler)


def _log_all() -> None:
    """Let our loggers, and those of installed plugins, log everything."""
    from pointer_rl.registry import GROUP

    if _loggers:
        return
    printing = StderrHandler(logging.WARNING)  # once there is a handler, there is no last resort
    printing.setFormatter(LineFormatter())
    _add(printing)
    plugins = {each.module.partition(".")[0] for each in entry_points(group=GROUP)}
    for name in {"pointer_rl", *plugins}:
        logger = logging.getLogger(name)
        logger.setLevel(logging.DEBUG)
        _loggers.append(logger)


class _FileHandler(logging.FileHandler):
    """Appends to a file. If that fails, it says so once and stops."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        logging.getLogger().removeHandler(self)
        logging.getLogger(__name__).warning("%s: cannot be written any more", self.baseFilename)


def _on_quiet(_ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        set_quiet()


def _on_verbose(_ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        _log_all()
        _handlers[0].setLevel(logging.DEBUG)
        _handlers[0].setFormatter(LineFormatter(_SHORT))


def _on_log_file(_ctx: click.Context, _option: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    from pointer_rl.files import cannot_be_written

    try:
        handler = _FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except (OSError, ValueError) as error:
        raise cannot_be_written(path, error) from error
    handler.setFormatter(LineFormatter(_FULL))
    _log_all()
    _add(handler)
    begins = "pointer-rl %s, process %d"
    logging.getLogger(__name__).debug(begins, version("pointer-rl"), os.getpid())


def log_options(*, hidden: bool) -> list[click.Option]:
    """The three options. They are eager, so that what other options do is logged."""

    def option(*names: str, callback: Callable[..., None], **more: object) -> click.Option:
        settings = {"is_eager": True, "expose_value": False, "hidden": hidden, **more}
        return click.Option([*names], callback=callback, **settings)  # type: ignore[arg-type]

    return [
        option(
            *("--quiet", "-q"),
            callback=_on_quiet,
            is_flag=True,
            help="Print results, warnings and errors only.",
        ),
        option(
            *("--verbose", "-v"),
            callback=_on_verbose,
            is_flag=True,
            help="Also print which files are opened, cache hits, batches, …",
        ),
        option(
            "--log-file",
            callback=_on_log_file,
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Append everything, progress and results included, with times.",
        ),
    ]
