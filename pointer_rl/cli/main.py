"""`pointer-rl`: the root command. What a user can mend becomes one line here."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from pointer_rl.cli.beams import beams
from pointer_rl.cli.cache import cache
from pointer_rl.cli.convert import convert
from pointer_rl.cli.doctor import doctor
from pointer_rl.cli.embed import embed
from pointer_rl.cli.evaluate import evaluate
from pointer_rl.cli.generate import generate
from pointer_rl.cli.merge import merge
from pointer_rl.cli.plugins import plugins
from pointer_rl.cli.rescore import rescore
from pointer_rl.cli.schema import schema
from pointer_rl.cli.select import select
from pointer_rl.cli.train import sft, train
from pointer_rl.cli.validate import validate
from pointer_rl.errors import PointerRLError

__all__ = ["cli", "main"]


class RootGroup(click.Group):
    """Adds the plugins' commands when one is looked for, and turns our errors into exit 2."""

    _complete = False

    def _add_plugins(self) -> None:
        if not self._complete:
            from pointer_rl.registry import registry

            self._complete = True
            registry().add_commands(self)

    def list_commands(self, ctx: click.Context) -> list[str]:
        self._add_plugins()
        return super().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        if command is None:
            self._add_plugins()
            command = super().get_command(ctx, cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PointerRLError as error:
            click.echo(f"pointer-rl: error: {error}", err=True)
            ctx.exit(2)


@click.group(cls=RootGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pointer-rl")
def cli() -> None:
    """Learn which solved examples to show a vision-language model.

    generate makes reinforcement-learning data, train learns from it, evaluate says whether it
    helped, and select uses what was learned.
    """


_COMMANDS = (
    *(generate, validate, rescore, merge, convert, beams, sft, train, evaluate, select),
    *(embed, cache, schema, plugins, doctor),
)
for command in _COMMANDS:
    cli.add_command(command)


def main() -> None:
    """The console script."""
    # Hub clients draw progress bars of their own over ours.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    sys.exit(cli())
