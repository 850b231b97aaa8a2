"""What --help looks like: commands in the order of a day's work, options by topic.

Own code rather than cloup or rich-click: importing those takes longer than all of our help.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping

import click

from pointer_rl.cli.params import long_name

COMMANDS = {
    "Get going": ("run", "doctor", "plugins", "config"),
    "Data": ("embed", "beams", "generate", "validate", "show"),
    "Learning": ("sft", "train"),
    "Using": ("evaluate", "report", "select", "answer", "push"),
    "Files": ("convert", "export", "merge", "rescore", "schema", "cache"),
}
PLUGINS = "Commands of plugins"
TOPICS = {
    "Input": (
        *("dataset", "limit", "rl-data", "beam-data", "sft-ckpt", "policy", "train-opt"),
        *("test", "test-limit"),
        *("encoder", "query-emb", "cand-emb", "img-emb", "question", "image", "queries", "split"),
    ),
    "Model": (
        *("backend", "against", "prompt", "metric", "decoding", "score-answers", "device"),
        *("store", "no-store"),
    ),
    "Proposals": (
        *("shots", "any-length", "num-beams", "num-retrieval", "temps", "num-samples-per-temp"),
        *("num-random", "generator", "dedup", "beam-size", "sampler", "sub-pool", "sft"),
    ),
    "Comparison": ("arm", "primary", "test-shots", "oracle-random", "oracle-retrieval"),
    "Selector": ("selector", "layers", "heads", "hidden-dim", "history", "own-pools"),
    "Learning": (
        *("recipe", "epochs", "rce-epochs", "grpo-epochs", "lr", "rce-lr", "grpo-lr", "batch-size"),
        *("temperature", "contrast", "kl-beta", "clip", "advantage", "grpo-on", "reward-mode"),
        *("reward", "demonstration-price", "held-out"),
    ),
    "Asking while learning": ("online", "rounds", "pointers"),
    "Output": (
        *("to", "output-path", "output-dir", "image-side", "max-mb", "plot", "record", "log-to"),
        *("json", "overwrite"),
    ),
    "Running": (
        *("plan", "parity", "max-calls", "max-seconds", "seed", "seeds", "window", "shard"),
        *("executor", "resume", "accept-changed", "quiet", "verbose", "log-file"),
    ),
}
"""Topic → long names of options, in the order of the help; `x` stands for `x-opt`, too."""
_MANY = 8
"""With fewer options, a command has no topics."""


class Formatter(click.HelpFormatter):
    """Colours for a terminal; click removes them elsewhere."""

    def write_heading(self, heading: str) -> None:
        super().write_heading(click.style(heading, bold=True))

    def write_dl(
        self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2
    ) -> None:
        coloured = [(click.style(term, fg="cyan"), text) for term, text in rows]
        super().write_dl(coloured, col_max, col_spacing)


class Context(click.Context):
    """The context of our commands."""

    formatter_class = Formatter


def options_by_topic(
    command: click.Command, context: click.Context
) -> Iterator[tuple[str, list[tuple[str, tuple[str, str]]]]]:
    """Topic, and of its options the long name and the help record; those of no topic come last."""
    records = {
        name: record
        for each in command.get_params(context)
        if isinstance(each, click.Option) and (record := each.get_help_record(context)) is not None
        for name in [long_name(each)]
    }
    topics = TOPICS if len(records) > _MANY else {}
    for topic, names in topics.items():
        both = [each for name in names for each in (name, f"{name}-opt")]
        found = [(name, records.pop(name)) for name in both if name in records]
        if found:
            yield topic, found
    yield "Other" if topics and len(records) > 1 else "Options", list(records.items())


def write_options(
    command: click.Command, context: click.Context, formatter: click.HelpFormatter
) -> None:
    """The options by topic."""
    for topic, options in options_by_topic(command, context):
        with formatter.section(topic):
            formatter.write_dl([record for _, record in options])


def write_commands(
    group: click.Group,
    context: click.Context,
    formatter: click.HelpFormatter,
    sections: Mapping[str, Iterable[str]],
) -> None:
    """Commands by section, each with its whole summary; those of no section come last."""
    commands = {
        name: command
        for name in group.list_commands(context)
        if (command := group.get_command(context, name)) is not None and not command.hidden
    }
    indent = max(map(len, commands), default=0)
    placed = {name for names in sections.values() for name in names}
    rest = [name for name in commands if name not in placed]
    for title, names in {**sections, PLUGINS if sections else "Commands": rest}.items():
        rows = [(n.ljust(indent), summary(commands[n])) for n in names if n in commands]
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)


def summary(command: click.Command) -> str:
    """The first sentence of a command's help."""
    if command.short_help:
        return command.short_help
    paragraph = " ".join(inspect.cleandoc(command.help or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s+(?=[A-Z])", paragraph)[0].removesuffix(".")
