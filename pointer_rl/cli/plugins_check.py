"""`pointer-rl plugins check`: the kit, run on an installed plugin."""

from __future__ import annotations

import sys
from collections import Counter

import click

from pointer_rl.cli.plugin_names import find_one

__all__ = ["check"]


@click.command()
@click.argument("name")
@click.option(
    "--opt", multiple=True, metavar="KEY=VALUE", help="Option of the plugin (repeatable)."
)
def check(name: str, opt: tuple[str, ...]) -> None:
    """Check that the plugin NAME, or KIND:NAME, keeps its contract.

    It is made and used as the engine does: a backend is asked about small pictures, a dataset is
    loaded. Give what it needs (--opt model=FOLDER). One line a check; exits 1 when one is broken.
    """
    from pointer_rl.options import parse_assignments
    from pointer_rl.registry import registry
    from pointer_rl.testing.examinations import EXAMINATIONS

    entry, registered = find_one(name)
    values = parse_assignments(opt, "--opt")
    options = registry().configure(entry.kind, registered, values).options
    missing = entry.missing()
    if missing is not None:
        raise missing
    click.echo(f"{entry.kind} {registered}, from {entry.plugin.origin}")
    states: Counter[str] = Counter()
    for result in EXAMINATIONS[entry.kind](entry.factory, options):
        states[result.state] += 1
        about = f": {result.message}" if result.message else ""
        click.echo(f"  {result.state:<8} {result.check}{about}")
    counted = ", ".join(f"{number} {state}" for state, number in states.items())
    click.echo(f"{states.total()} checks: {counted}")
    sys.exit(1 if states["broken"] else 0)
