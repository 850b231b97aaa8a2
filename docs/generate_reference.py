"""Writes docs/reference from the code: `make docs`. A test fails when a page is out of date."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import click

FOLDER = Path(__file__).parent / "reference"
NOTE = "<!-- Written by docs/generate_reference.py; do not edit. -->\n"


def pages() -> dict[str, str]:
    """File name → content."""
    os.environ["POINTER_RL_PLUGINS"] = ""  # the built-in plugins alone
    return {"cli.md": cli_page(), "plugins.md": plugins_page()}


def cli_page() -> str:
    """Every command's help text."""
    from pointer_rl.cli.main import cli

    parts = [NOTE, "# Command line\n"]
    for path, command in commands(cli, ("pointer-rl",)):
        context = command.make_context(
            " ".join(path), [], resilient_parsing=True, terminal_width=88
        )
        parts.append(f"## {' '.join(path)}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def commands(
    command: click.Command, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """A command and those below it."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands(below, (*path, name))


def plugins_page() -> str:
    """Everything that the built-in plugins register, with its options."""
    from pointer_rl.options import describe_options
    from pointer_rl.registry import KINDS, registry

    parts = [NOTE, "# Built-in plugins\n"]
    for kind, hook in KINDS.items():
        entries = registry().entries(kind)
        parts.append(f"## {kind}: `{hook}`\n")
        for entry in entries:
            parts.append(f"### {kind} `{entry.name}`\n\n{entry.summary}\n")
            for alias, values in entry.aliases.items():
                meaning = ", ".join(f"`{key}={value}`" for key, value in values.items())
                parts.append(f"- alias `{alias}`: {meaning}")
            for option in describe_options(entry.options) if entry.options else []:
                default = "required" if option.required else f"default `{option.default!r}`"
                help_text = " ".join(option.help.split())
                parts.append(f"- `{option.name}` ({option.type}, {default}): {help_text}")
            parts.append("")
    return "\n".join(parts)


def main() -> None:
    """Write the pages."""
    FOLDER.mkdir(exist_ok=True)
    for name, content in pages().items():
        (FOLDER / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
