"""--help: complete, grouped, and no wider than 80 columns."""

from __future__ import annotations

import dataclasses
import re

import click
import pytest

from pointer_rl.cli.common import GuideCommand, GuideGroup
from pointer_rl.cli.help import COMMANDS, TOPICS, summary
from pointer_rl.cli.main import cli as root
from pointer_rl.train.config import TrainConfig


def commands(group, names=()):
    for name, command in group.commands.items():
        if name == "glyphs":
            continue
        yield (*names, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*names, name))


ALL = dict(commands(root))


def test_commands_are_in_the_order_of_a_days_work_with_whole_summaries(cli):
    text = cli("--help").output
    places = [text.index(f"\n{title}:") for title in COMMANDS]
    assert places == sorted(places)
    assert "Commands of plugins:\n  glyphs" in text
    words = " ".join(text.split())
    for name, command in root.commands.items():
        assert f"{name} {summary(command)}" in words
    assert "..." not in text.partition("Get going")[2]


def test_every_command_has_a_place_and_reads_configuration_files():
    assert all(isinstance(each, (GuideCommand, GuideGroup)) for each in ALL.values())
    placed = {name for names in COMMANDS.values() for name in names}
    assert {names[0] for names in ALL} <= placed


@pytest.mark.parametrize("names", ALL, ids=" ".join)
def test_help_fits_80_columns_and_shows_every_default(cli, names):
    text = cli(*names, "--help").output
    assert max(map(len, text.splitlines())) <= 80
    command = ALL[names]
    context = click.Context(command, **command.context_settings)
    for option in command.params:
        if not isinstance(option, click.Option) or option.hidden:
            continue
        _, said = option.get_help_record(context)
        assert said, f"{option.name} has no help"
        if option.is_flag or option.multiple or isinstance(option.type, click.Path):
            continue
        if option.name in {"max_calls", "question", "fingerprint", "older_than", "gen_method"}:
            continue  # no limit, no question
        assert "default" in said or "[required]" in said or " if " in said, (option.name, said)


@pytest.mark.parametrize("name", ["generate", "beams", "sft", "train", "evaluate"])
def test_every_option_of_a_large_command_has_a_topic(cli, name):
    text = cli(name, "--help").output
    assert "\nOther:" not in text
    known = {each for names in TOPICS.values() for each in names}
    for flag in re.findall(r"^  --([a-z-]+)", text, re.MULTILINE):
        assert flag.removesuffix("-opt") in known or flag in known, flag


def test_the_defaults_in_the_help_of_train_are_those_of_training():
    fields = {each.name: each for each in dataclasses.fields(TrainConfig)}
    for command in (ALL[("train",)], ALL[("sft",)]):
        for option in command.params:
            said = re.search(r"\[default: ([^\],]+)", getattr(option, "help", None) or "")
            if option.name in fields and said:
                assert said[1] == str(fields[option.name].default), option.name


def test_colours_are_for_terminals_alone(cli, monkeypatch):
    assert "\x1b" not in cli("--help").output
    from click.testing import CliRunner

    assert "\x1b" in CliRunner().invoke(root, ["--help"], color=True).output
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in CliRunner().invoke(root, ["--help"], color=True).output


def completed(line: str, word: str) -> set[str]:
    from click.shell_completion import ShellComplete

    completion = ShellComplete(root, {}, "pointer-rl", "_X")
    return {each.value for each in completion.get_completions(line.split(), word)}


@pytest.mark.parametrize(
    ("line", "word", "found"),
    [
        ("", "gen", "generate"),
        ("generate", "--max-c", "--max-calls"),
        ("generate --backend", "qwen2.5", "qwen2.5_vl_3B"),
        ("generate --dataset", "js", "jsonl"),
        ("evaluate --encoder", "cl", "clip"),
        ("train --reward-mode", "hard", "hard_plus_soft"),
        ("generate --dataset jsonl --dataset-opt", "pa", "path="),
        ("generate --dataset-opt", "lex", "lexicon_seed="),
        ("generate --decoding-opt", "max", "max_new_tokens="),
        ("generate --generator-opt", "first-success.an", "first-success.answers="),
        ("config", "eva", "evaluate"),
    ],
)
def test_the_shell_completes_names(line, word, found):
    assert found in completed(line, word)
