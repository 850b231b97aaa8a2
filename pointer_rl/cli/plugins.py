"""`pointer-rl plugins`: list what is registered, describe it, check it, and start a new plugin."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click

from pointer_rl.cli.common import FILE, GuideGroup
from pointer_rl.cli.output import echo, echo_block
from pointer_rl.cli.tables import format_table
from pointer_rl.errors import PluginError, did_you_mean
from pointer_rl.options import describe_options, parse_assignments
from pointer_rl.registry import KINDS, Entry, PluginRecord, registry


@click.group(cls=GuideGroup, invoke_without_command=True)
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
    failed = _failed()
    if output_format == "json":
        registered = [_as_json(entry) for entry in _entries()]
        failures = [dataclasses.asdict(plugin) for plugin in failed]
        echo_block(json.dumps({"registered": registered, "failed": failures}, indent=2))
        return
    rows = [("kind", "name", "from", "summary")]
    for entry in _entries():
        rows.append((entry.kind, entry.name, entry.plugin.origin, entry.summary))
        rows += [("", alias, "", f"alias of {entry.name}") for alias in entry.aliases]
    echo_block(format_table(rows))
    for entry in _entries():
        missing = entry.missing()
        if missing is not None:
            echo(f"missing: {missing}")
    for plugin in failed:
        echo(f"failed: plugin {plugin.name} of {plugin.origin}: {plugin.error}")


@plugins.command()
@click.argument("name")
def show(name: str) -> None:
    """Print the options of NAME, or the traceback of a plugin that failed to load.

    Write KIND:NAME if several kinds have that name.
    """
    found = _find_all(name)
    failed = [plugin for plugin in _failed() if plugin.name == name]
    if not found and not failed:
        raise _unknown(name)
    if found:
        echo_block("\n\n".join(_describe(entry) for entry in found))
    for plugin in failed:
        echo(f"plugin {plugin.name} of {plugin.origin} failed to load:")
        echo_block(plugin.traceback or "")


@plugins.command()
@click.argument("name")
@click.option(
    "--opt", multiple=True, metavar="KEY=VALUE", help="Option of the plugin (repeatable)."
)
def check(name: str, opt: tuple[str, ...]) -> None:
    """Check that the plugin NAME, or KIND:NAME, keeps its contract.

    The plugin is built and used as the engine does: a backend answers a few questions about small
    images, a dataset is loaded. Pass the options that it needs (--opt model=FOLDER). Prints one
    line per check, and exits 1 if one is broken.
    """
    from pointer_rl.testing import find_tests

    entry, registered = _find_one(name)
    missing = entry.missing()
    if missing is not None:
        raise missing
    tests = find_tests(entry.kind, registered, parse_assignments(opt, "--opt"))
    tests.configure()  # refuses options before anything is printed
    echo(f"{entry.kind} {registered}, from {entry.plugin.origin}")
    states: Counter[str] = Counter()
    for result in tests.run_checks():
        states[result.state] += 1
        about = f": {result.message}" if result.message else ""
        echo(f"  {result.state:<8} {result.check}{about}")
    counted = ", ".join(f"{number} {state}" for state, number in states.items())
    echo(f"{states.total()} checks: {counted}")
    raise click.exceptions.Exit(1 if states["broken"] else 0)


@plugins.command()
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(list(KINDS)),
    required=True,
    metavar="KIND",
    help=f"What it registers: {', '.join(KINDS)}.",
)
@click.option(
    "--output-dir",
    type=FILE,
    help="Folder to create  [default: pointer-rl-NAME].",
)
def new(name: str, kind: str, output_dir: Path | None) -> None:
    """Write a small package that registers NAME: module, tests, pyproject.toml, README.

    The package works as it is: it can be installed, is listed, and passes its tests, which include
    those of pointer-rl's testing kit.
    """
    from pointer_rl.scaffold import write_package

    folder = output_dir or Path(f"pointer-rl-{name}")
    write_package(name, kind, folder)
    echo(f"{folder}: the {kind} {name}. Next:")
    echo(f"  pip install -e '{folder}[dev]'")
    echo(f"  pytest {folder}")
    echo(f"  pointer-rl plugins show {kind}:{name}")


def _entries() -> Iterator[Entry]:
    for kind in KINDS:
        yield from registry().entries(kind)


def _failed() -> list[PluginRecord]:
    return [plugin for plugin in registry().plugins if plugin.error]


def _find_all(name: str) -> list[Entry]:
    """The entries of a NAME or alias, of every kind, or of the one that KIND:NAME names."""
    kind, _, rest = name.rpartition(":")
    return [
        entry
        for entry in _entries()
        if (not kind or entry.kind == kind) and rest in (entry.name, *entry.aliases)
    ]


def _find_one(name: str) -> tuple[Entry, str]:
    """The entry of NAME or KIND:NAME, and the NAME. Raises PluginError for none or several."""
    rest = name.rpartition(":")[2]
    found = _find_all(name)
    if len(found) == 1:
        return found[0], rest
    if found:
        choices = " or ".join(f"{entry.kind}:{rest}" for entry in found)
        raise PluginError(f"{rest} is registered for several kinds: write {choices}")
    for plugin in _failed():
        if plugin.name == rest:
            raise PluginError(
                f"the plugin {plugin.name} of {plugin.origin} failed to load ({plugin.error}): "
                f"see `pointer-rl plugins show {plugin.name}`"
            )
    raise _unknown(name)


def _unknown(name: str) -> PluginError:
    """The error for a name that nothing has."""
    known = {each for entry in _entries() for each in (entry.name, *entry.aliases)}
    known |= {plugin.name for plugin in _failed()}
    rest = name.rpartition(":")[2]
    return PluginError(f"nothing is registered as {name!r}{did_you_mean(rest, known)}")


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
    try:
        options = [] if entry.options is None else describe_options(entry.options)
        error = None
    except PluginError as broken:
        options, error = [], str(broken)
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
        "error": error,
    }
