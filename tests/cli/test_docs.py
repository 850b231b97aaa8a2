"""Commands on pages that the default suite does not run have options that exist, at least."""

from __future__ import annotations

import click
import pytest
from snippets import ROOT, blocks

PAGES = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").glob("**/*.md"))]


@pytest.mark.parametrize("page", [page for page in PAGES if "how-to" not in page])
def test_commands_have_only_options_that_exist(page):
    from pointer_rl.cli.main import cli

    for command in [each for b in blocks(page) if b.language == "bash" for each in b.commands]:
        words = command.split()
        if words[:1] != ["pointer-rl"]:
            continue
        asked = cli.get_command(click.Context(cli), words[1])
        if isinstance(asked, click.Group):
            asked = asked.commands.get(words[2], asked)
        known = {name for param in asked.params for name in param.opts}
        assert {word for word in words if word.startswith("--")} <= known, command
