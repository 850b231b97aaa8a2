"""`pointer-rl plugins check`: the testing kit, run on an installed plugin."""

from __future__ import annotations

import sys
from collections import Counter

import click

from pointer_rl.cli.plugin_names import find_one


@click.command()
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
    from pointer_rl.options import parse_assignments
    from pointer_rl.testing import find_tests

    entry, registered = find_one(name)
    missing = entry.missing()
    if missing is not None:
        raise missing
    tests = find_tests(entry.kind, registered, parse_assignments(opt, "--opt"))
    tests.configure()  # refuses options before anything is printed
    click.echo(f"{entry.kind} {registered}, from {entry.plugin.origin}")
    states: Counter[str] = Counter()
    for result in tests.run_checks():
        states[result.state] += 1
        about = f": {result.message}" if result.message else ""
        click.echo(f"  {result.state:<8} {result.check}{about}")
    counted = ", ".join(f"{number} {state}" for state, number in states.items())
    click.echo(f"{states.total()} checks: {counted}")
    sys.exit(1 if states["broken"] else 0)
