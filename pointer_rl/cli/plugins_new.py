"""`pointer-rl plugins new`: write a package to start a plugin from."""

from __future__ import annotations

from pathlib import Path

import click

from pointer_rl.cli.common import FILE
from pointer_rl.registry import KINDS


@click.command()
@click.argument("name")
@click.option("--kind", type=click.Choice(list(KINDS)), required=True, help="What it registers.")
@click.option(
    "--output-dir",
    type=FILE,
    help="Folder to create [default: pointer-rl-NAME].",
)
def new(name: str, kind: str, output_dir: Path | None) -> None:
    """Write a small package that registers NAME: module, tests, pyproject.toml, README.

    The package works as it is: it can be installed, is listed, and passes its tests, which include
    those of pointer-rl's testing kit.
    """
    from pointer_rl.scaffold import write_package

    folder = output_dir or Path(f"pointer-rl-{name}")
    write_package(name, kind, folder)
    click.echo(f"{folder}: the {kind} {name}. Next:")
    click.echo(f"  pip install -e '{folder}[dev]'")
    click.echo(f"  pytest {folder}")
    click.echo(f"  pointer-rl plugins show {kind}:{name}")
