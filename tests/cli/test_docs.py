"""The snippets of the documentation, run as they are printed."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def block(page: str, language: str, number: int = 0) -> str:
    """The number-th fenced block of that language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)[number]


def test_the_readmes_python_says_what_it_gives():
    import pointer_rl

    checked = 0
    for line in block("README.md", "python").splitlines():
        call, comment, result = line.partition("# ")
        if comment:
            found = eval(call, {"pointer_rl": pointer_rl})
            assert found == pytest.approx(eval(result)), line
            checked += 1
    assert checked == 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_have_only_options_that_exist(page):
    from pointer_rl.cli.main import cli

    text = page.read_text(encoding="utf-8")
    for shell in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for command in shell.replace("\\\n", " ").splitlines():
            words = command.split()
            if words[:1] != ["pointer-rl"]:
                continue
            asked = cli.get_command(click.Context(cli), words[1])
            if isinstance(asked, click.Group):
                asked = asked.commands.get(words[2], asked)
            known = {name for param in asked.params for name in param.opts}
            assert {word for word in words if word.startswith("--")} <= known, command
