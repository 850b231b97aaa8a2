"""`pointer-rl`: the root command."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import click

from pointer_rl.cli.answer import answer
from pointer_rl.cli.beams import beams
from pointer_rl.cli.cache import cache
from pointer_rl.cli.common import FILE
from pointer_rl.cli.config import config
from pointer_rl.cli.configuration import read_configuration
from pointer_rl.cli.convert import convert
from pointer_rl.cli.doctor import doctor
from pointer_rl.cli.embed import embed
from pointer_rl.cli.evaluate import evaluate
from pointer_rl.cli.export import export
from pointer_rl.cli.generate import generate
from pointer_rl.cli.help import COMMANDS, Context, write_commands
from pointer_rl.cli.logs import log_options, start_logging
from pointer_rl.cli.merge import merge
from pointer_rl.cli.output import echo, record
from pointer_rl.cli.plugins import plugins
from pointer_rl.cli.push import push
from pointer_rl.cli.report import report
from pointer_rl.cli.rescore import rescore
from pointer_rl.cli.run import run
from pointer_rl.cli.schema import schema
from pointer_rl.cli.select import select
from pointer_rl.cli.show import show
from pointer_rl.cli.train import sft, train
from pointer_rl.cli.validate import validate
from pointer_rl.errors import PluginError, PointerRLError
from pointer_rl.escaping import printable_lines

_interrupts: list[int] = []
"""The signals that asked this process to end."""


class RootGroup(click.Group):
    """Adds the plugins' commands when they are needed; prints user errors as one line."""

    context_class = Context
    _has_plugin_commands = False

    def _add_plugin_commands(self) -> None:
        if not self._has_plugin_commands:
            from pointer_rl.registry import registry

            self._has_plugin_commands = True
            registry().add_commands(self)

    def list_commands(self, ctx: click.Context) -> list[str]:
        self._add_plugin_commands()
        return super().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        if command is None:
            self._add_plugin_commands()
            command = super().get_command(ctx, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_commands(self, ctx, formatter, COMMANDS)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            error.message = printable_lines(error.message)  # type: ignore[misc]  # quotes arguments
            record(f"error: {error.format_message()}")
            raise
        except SystemExit as error:
            if self.commands.get(ctx.invoked_subcommand or "") not in _COMMANDS:
                raise  # the command of a plugin
            raise _broken_off(error) from error

    def main(self, *args: Any, **options: Any) -> Any:
        try:
            start_logging()
            if os.environ.get("NO_COLOR"):
                options.setdefault("color", False)
            return super().main(*args, **options)
        except KeyboardInterrupt:  # before click takes care of it, or after
            _end("interrupted", 130)
        except Exception as error:
            if _interrupts:  # a library has made something else of it
                _end("interrupted", 130)
            if isinstance(error, PointerRLError):
                _end(f"error: {error}", 2)
            if isinstance(error, OSError):  # of output that cannot be printed, if it names no file
                where = "standard output" if error.filename is None else error.filename
                _end(f"error: {where}: {error.strerror or error}", 2)
            raise


def _end(message: str, status: int) -> NoReturn:
    """Print a line and exit, whatever state standard output and error are in."""
    with suppress(OSError):
        echo(f"pointer-rl: {message}", err=True)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # Python would try again at its end, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(status)


def _interrupt(number: int, _frame: object) -> NoReturn:
    if _interrupts:  # the second one ends it at once, as a kill does
        os._exit(130)
    _interrupts.append(number)
    raise KeyboardInterrupt


def _broken_off(exit: SystemExit) -> PluginError:
    """None of our commands raises SystemExit: a plugin did, or a library that it uses."""
    *_, place = traceback.extract_tb(exit.__traceback__)
    return PluginError(
        f"{place.filename}, line {place.lineno}, ended the program (SystemExit: {exit.code}) before"
        " the command was done: a plugin must raise an error instead"
    )


def _load_plugin_files(_ctx: click.Context, _option: click.Parameter, files: list[Path]) -> None:
    if files:
        from pointer_rl.registry import registry

        for file in files:
            registry().load_file(file)


def _plugin_option(*, hidden: bool) -> click.Option:
    """`--plugin FILE`. It is eager, so that --help lists the file's commands."""
    return click.Option(
        ["--plugin"],
        type=click.Path(path_type=Path),
        multiple=True,
        is_eager=True,
        expose_value=False,
        callback=_load_plugin_files,
        hidden=hidden,
        metavar="FILE",
        help="Load a .py file as a plugin (repeatable). It may also follow the command's name.",
    )


def _config_option(*, hidden: bool) -> click.Option:
    """`--config FILE`. It is eager, so that --help shows the file's values as defaults."""
    return click.Option(
        ["--config"],
        type=FILE,
        is_eager=True,
        expose_value=False,
        callback=read_configuration,
        hidden=hidden,
        metavar="FILE",
        help="Take options from a TOML file  [default: pointer-rl.toml, if it is in the current "
        "folder]. It may also follow the command's name.",
    )


@click.group(
    cls=RootGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    params=[
        _plugin_option(hidden=False),
        _config_option(hidden=False),
        *log_options(hidden=False),
    ],
)
@click.version_option(package_name="pointer-rl")
def cli() -> None:
    """Learn which solved examples to show a vision-language model.

    generate makes reinforcement-learning data, train learns from it, evaluate says whether it
    helped, and select uses what was learned.
    """


_COMMANDS = (
    *(run, generate, validate, show, rescore, merge, convert, beams, sft, train, evaluate),
    *(report, export, select, answer, push, embed, cache, schema, plugins, doctor, config),
)
for command in _COMMANDS:
    command.params += [
        _plugin_option(hidden=True),
        _config_option(hidden=True),
        *log_options(hidden=True),
    ]
    cli.add_command(command)


def main() -> None:
    """Run the command line: the entry point of the `pointer-rl` script."""
    # The hub client's progress bars would overwrite ours.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # SIGTERM is as Ctrl-C: temporary files are removed, and what is kept is said.
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    sys.exit(cli())
