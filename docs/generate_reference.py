"""Writes docs/reference from the code: `make docs`. A test fails when a page is out of date."""

from __future__ import annotations

import os
import sys
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

    root = click.Context(cli, info_name="pointer-rl", terminal_width=88, **cli.context_settings)
    parts = [NOTE, "# Command line\n"]
    for context in contexts(root):
        parts.append(f"## {context.command_path}\n\n```text\n{context.get_help()}\n```\n")
    return "\n".join(parts)


def contexts(context: click.Context) -> Iterator[click.Context]:
    """That of a command, and of those below it."""
    yield context
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            below = context.command.get_command(context, name)
            assert below is not None
            yield from contexts(click.Context(below, parent=context, info_name=name))


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
    """Write the pages, to docs/reference or to the folder given."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(exist_ok=True)
    for name, content in pages().items():
        (folder / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
