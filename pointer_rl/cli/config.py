"""`pointer-rl config`: what a command would use, and the configuration of a past run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
from click.core import ParameterSource

from pointer_rl.cli.common import FILE, GuideCommand
from pointer_rl.cli.configuration import configuration_of, options_of
from pointer_rl.cli.output import echo, echo_block
from pointer_rl.cli.params import long_name
from pointer_rl.cli.tables import format_table


def _complete(ctx: click.Context, _argument: click.Parameter, incomplete: str) -> list[str]:
    root = ctx.find_root().command
    assert isinstance(root, click.Group)
    return [name for name in root.list_commands(ctx) if name.startswith(incomplete)]


@click.command(cls=GuideCommand)
@click.argument("command", nargs=-1, shell_complete=_complete)
@click.option(
    "--of", "past", type=FILE, help="Print the configuration of the run that made this file."
)
@click.pass_context
def config(ctx: click.Context, command: tuple[str, ...], past: Path | None) -> None:
    """Print what COMMAND would use: each option's value, and where it comes from.

    That is a configuration file (--config, or pointer-rl.toml in the current folder) or the
    default; what is then given on the command line wins. Without COMMAND, only what the file sets.

    --of prints a run's configuration as TOML, to be saved and used again. FILE is RL data, beam
    data, an evaluation, or the folder of a policy.
    """
    if past is not None:
        from pointer_rl.cli.past import configuration_of_run

        if command:
            raise click.UsageError("give either COMMAND or --of")
        echo_block(configuration_of_run(past).rstrip("\n"))
        return
    root = ctx.find_root().command
    found = configuration_of(ctx)
    echo("no configuration file" if found is None else f"configuration file: {found.path}")
    assert isinstance(root, click.Group)
    if command:
        rows = [row[1:] for row in _rows(ctx, " ".join(command), _find(ctx, root, command))]
        echo_block("\n" + format_table([("option", "value", "from"), *rows]))
        return
    every = (row for name, each in root.commands.items() for row in _rows(ctx, name, each))
    changed = [row[:3] for row in every if row[3] == "file"]
    if changed:
        echo_block("\n" + format_table([("command", "option", "value"), *changed]))


def _find(ctx: click.Context, place: click.Command, names: tuple[str, ...]) -> click.Command:
    for name in names:
        below = place.get_command(ctx, name) if isinstance(place, click.Group) else None
        if below is None:
            raise click.UsageError(f"no such command: {' '.join(names)}")
        place = below
    return place


def _rows(
    ctx: click.Context, name: str, command: click.Command
) -> Iterator[tuple[str, str, str, str]]:
    """(command, option, value, where it comes from), those below a group included."""
    found = configuration_of(ctx)
    defaults = {} if found is None else found.defaults(command, name.split())
    context = click.Context(command, info_name=name, default_map=defaults)
    for option in dict.fromkeys(options_of(command).values()):
        value, source = option.consume_value(context, {})
        where = "file" if source is ParameterSource.DEFAULT_MAP else "default"
        yield name, long_name(option), _shown(value), where
    if isinstance(command, click.Group):
        for below, each in command.commands.items():
            yield from _rows(ctx, f"{name} {below}", each)


def _shown(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    if isinstance(value, (bool, str, int, float)):
        return str(value).lower() if isinstance(value, bool) else str(value)
    return ""
