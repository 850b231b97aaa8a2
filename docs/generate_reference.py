"""Writes docs/reference from the code: `make docs`. A test fails when a page is out of date."""

from __future__ import annotations

import html
import inspect
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

FOLDER = Path(__file__).parent / "reference"
NOTE = "<!-- Written by docs/generate_reference.py; do not edit. -->\n"


def pages() -> dict[str, str]:
    """File name → content."""
    os.environ["POINTER_RL_PLUGINS"] = ""  # the built-in plugins alone
    return {"cli.md": cli_page(), "plugins.md": plugins_page(), "schema.md": schema_page()}


def table(head: str, rows: Iterable[tuple[str, str]]) -> str:
    """Of two columns, so that it fits a phone; a cell is Markdown without line breaks."""
    lines = [f"| {head} | |", "|---|---|"]
    for row in rows:
        first, second = (" ".join(each.replace("|", "\\|").split()) for each in row)
        lines.append(f"| {first} | {second} |")
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    """Text as Markdown that shows it, paragraph by paragraph."""
    paragraphs = inspect.cleandoc(text.replace("\b\n", "")).split("\n\n")
    return "\n\n".join(
        re.sub(r"([\\<>*_|$])", r"\\\1", " ".join(each.split())) for each in paragraphs
    )


# --- the command line ---


def cli_page() -> str:
    """Every command: what it does, and its options, each with an anchor."""
    from pointer_rl.cli.main import cli

    root = click.Context(cli, info_name="pointer-rl", terminal_width=88, **cli.context_settings)
    parts = [NOTE, "# Command line\n"]
    for context in contexts(root):
        parts += command_parts(context)
    return "\n".join(parts)


def command_parts(context: click.Context) -> Iterator[str]:
    """The section of a command."""
    from pointer_rl.cli.help import COMMANDS, PLUGINS, options_by_topic, summary

    command = context.command
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"## {context.command_path}\n"
    yield plain(command.help or "") + "\n"
    yield f"```text\n{context.command_path} {usage}\n```\n"
    for topic, options in options_by_topic(command, context):
        yield table(topic, (option_row(context, *each) for each in options))
    if isinstance(command, click.Group):
        names = command.list_commands(context)
        sections = COMMANDS if context.parent is None else {}
        placed = {name for section in sections.values() for name in section}
        rest = [name for name in names if name not in placed]
        for title, of_section in {**sections, PLUGINS if sections else "Commands": rest}.items():
            yield table(
                title,
                (
                    (f"[{name}](#{slug(context.command_path)}-{name})", plain(summary(each)))
                    for name in of_section
                    if (each := command.get_command(context, name)) is not None
                ),
            )


def option_row(context: click.Context, name: str, record: tuple[str, str]) -> tuple[str, str]:
    """An option, which is a link to itself, and its help."""
    term, text = record
    link = f"{slug(context.command_path)}--{name}"
    shown = html.escape(term, quote=False)
    return f'<a id="{link}" href="#{link}"><code>{shown}</code></a>', plain(text)


def slug(command: str) -> str:
    """The anchor of a command's heading; `--NAME` after it is that of an option."""
    return command.replace(" ", "-")


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


# --- the files ---

_FILES = {"pointer_candidates": "RL data", "beams": "Beam data"}
_OBJECTS = {
    "record": "record",
    "query": "query",
    "candidate": "candidate",
    "beam": "beam",
    "provenance": "_meta",
    "named": "plugin",
}
"""Definition of a schema → what the page calls it."""


def schema_page() -> str:
    """The fields of the files, from their JSON Schemas."""
    import pointer_rl_schemas

    parts = [
        NOTE,
        "# Files\n",
        "The fields of RL data and beam data; **bold** ones are required, and others are allowed. "
        "`pointer-rl schema` prints the JSON Schemas (draft 2020-12) that say the same, and "
        "`pointer-rl validate` holds files of RL data against theirs and against [what a schema "
        "cannot say](../how-to/generate-and-validate.md). [What stays compatible]"
        "(../explanation/compatibility.md) says what a new version may change.\n",
    ]
    for name, title in _FILES.items():
        schema = json.loads(pointer_rl_schemas.read(name))
        parts.append(f"## {title}\n\n{plain(schema['description'])}\n")
        for definition, heading in _OBJECTS.items():
            found = schema["$defs"].get(definition, {})
            if "properties" not in found:
                continue
            parts.append(f"### {title}: {heading}\n")
            parts.append(table("field", field_rows(found, schema["$defs"])))
            rules = [
                schema["$defs"][each["$ref"].rpartition("/")[2]] for each in found.get("allOf", ())
            ]
            parts += [f"- {plain(each['title'])}" for each in rules]
            parts += [""] if rules else []
        example = json.dumps(schema["examples"][-1], indent=2, ensure_ascii=False)
        parts.append(f"### {title}: an example\n\n```json\n{example}\n```\n")
    return "\n".join(parts)


def field_rows(
    definition: Mapping[str, Any], definitions: Mapping[str, Any], inside: str = ""
) -> Iterator[tuple[str, str]]:
    """The fields of an object, and of objects in it, by dotted names."""
    for key, each in definition["properties"].items():
        name = f"`{inside}{key}`"
        referred = definitions.get(each.get("$ref", "").rpartition("/")[2], {})
        meaning = each.get("description") or referred["description"]
        yield f"**{name}**" if key in definition.get("required", ()) else name, plain(meaning)
        if "properties" in each:
            yield from field_rows(each, definitions, f"{inside}{key}.")


def main() -> None:
    """Write the pages, to docs/reference or to the folder given."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(exist_ok=True)
    for name, content in pages().items():
        (folder / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
