"""`pointer-rl schema`."""

from __future__ import annotations

import click

from pointer_rl.cli.common import GuideCommand
from pointer_rl.cli.output import echo_block


@click.command(cls=GuideCommand, context_settings={"token_normalize_func": None})
@click.option(
    "--name",
    type=click.Choice(["pointer_candidates", "beams"]),
    default="pointer_candidates",
    show_default=True,
    help="RL data, or beam data.",
)
def schema(name: str) -> None:
    """Print the JSON Schema (draft 2020-12) of a kind of file. Its $id ends with its version."""
    import pointer_rl_schemas

    echo_block(pointer_rl_schemas.read(name).removesuffix("\n"))
