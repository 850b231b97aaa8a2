"""`pointer-rl plugins`: list what is registered, and describe it."""

from __future__ import annotations

import dataclasses
import json

import click

from pointer_rl.cli.plugin_names import entries, find_all, unknown
from pointer_rl.cli.plugins_check import check
from pointer_rl.cli.plugins_new import new
from pointer_rl.cli.tables import format_table
from pointer_rl.options import describe_options
from pointer_rl.registry import Entry, registry


@click.group(invoke_without_command=True)
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Output format.",
)
@click.pass_context
def plugins(ctx: click.Context, output_format: str) -> None:
    """List what plugins registered, and plugins that failed to load.

    POINTER_RL_PLUGINS names the third-party plugins to load ("" for none);
    POINTER_RL_BLOCK_PLUGINS names plugins not to load. `pointer-rl --plugin FILE` loads a file.
    """
    if ctx.invoked_subcommand is not None:
        return
    root = ctx.find_root()
    assert isinstance(root.command, click.Group)
    root.command.list_commands(root)  # a plugin may fail when it adds its commands
    failed = [plugin for plugin in registry().plugins if plugin.error]
    if output_format == "json":
        registered = [_as_json(entry) for entry in entries()]
        failures = [dataclasses.asdict(plugin) for plugin in failed]
        click.echo(json.dumps({"registered": registered, "failed": failures}, indent=2))
        return
    rows = [("kind", "name", "from", "summary")]
    for entry in entries():
        rows.append((entry.kind, entry.name, entry.plugin.origin, entry.summary))
        rows += [("", alias, "", f"alias of {entry.name}") for alias in entry.aliases]
    click.echo(format_table(rows))
    for entry in entries():
        missing = entry.missing()
        if missing is not None:
            click.echo(f"missing: {missing}")
    for plugin in failed:
        click.echo(f"failed: plugin {plugin.name} of {plugin.origin}: {plugin.error}")


@plugins.command()
@click.argument("name")
def show(name: str) -> None:
    """Print the options of NAME, or the traceback of a plugin that failed to load.

    Write KIND:NAME if several kinds have that name.
    """
    found = find_all(name)
    failed = [plugin for plugin in registry().plugins if plugin.error and plugin.name == name]
    if not found and not failed:
        raise unknown(name)
    if found:
        click.echo("\n\n".join(_describe(entry) for entry in found))
    for plugin in failed:
        click.echo(f"plugin {plugin.name} of {plugin.origin} failed to load:\n{plugin.traceback}")


plugins.add_command(check)
plugins.add_command(new)


def _describe(entry: Entry) -> str:
    lines = [f"{entry.kind} {entry.name}: {entry.summary}", f"  from {entry.plugin.origin}"]
    missing = entry.missing()
    if missing is not None:
        lines.append(f"  missing: {missing}")
    for alias, values in entry.aliases.items():
        meaning = " ".join(f"{key}={value}" for key, value in values.items())
        lines.append(f"  alias {alias}: {meaning or 'the same'}")
    if entry.options is None:
        lines.append("  no options")
        return "\n".join(lines)
    for option in describe_options(entry.options):
        default = "required" if option.required else f"default {_format_default(option.default)}"
        lines.append(f"  {option.name}: {option.type}, {default}")
        lines.extend(f"      {line}" for line in option.help.splitlines())
    return "\n".join(lines)


def _format_default(default: object) -> str:
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or "empty"
    return "empty" if default == "" else str(default)


def _as_json(entry: Entry) -> dict[str, object]:
    options = [] if entry.options is None else describe_options(entry.options)
    return {
        "kind": entry.kind,
        "name": entry.name,
        "summary": entry.summary,
        "aliases": {alias: dict(values) for alias, values in entry.aliases.items()},
        "plugin": entry.plugin.name,
        "distribution": entry.plugin.distribution,
        "version": entry.plugin.version,
        "needs": dict(entry.needs),
        "options": [dataclasses.asdict(option) for option in options],
    }
