"""The tutorial's commands, run in their order; what they print is what the pages say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from snippets import blocks, is_as_shown


@pytest.mark.parametrize(
    "page",
    [
        "first-dataset",
        pytest.param("first-policy", marks=pytest.mark.slow),
        pytest.param("how-many", marks=pytest.mark.slow),
    ],
)
def test_the_tutorials_commands_print_what_it_says(page, tmp_path):
    shells = [each for each in blocks(f"docs/tutorial/{page}.md") if each.language == "bash"]
    assert len(shells) >= 4
    programs = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([programs, os.environ["PATH"]]),
        "POINTER_RL_CACHE": str(tmp_path / "cache"),
    }
    for each in shells:
        done = subprocess.run(
            ["bash", "-euc", each.body],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        shown = each.shown or ""
        assert is_as_shown(done.stdout, shown), f"{shown}\n--- printed:\n{done.stdout}"


def test_what_was_not_printed_as_shown_is_noticed():
    assert is_as_shown("a 1\na 2\nb  3\nc 4\n", "a 5\n…\nb 6\nc 7\n")
    assert is_as_shown("a 1\n", "a 5\n…\n")
    assert not is_as_shown("a 1\nb 2\n", "…\nc 2\n…\n")
    assert not is_as_shown("a 1\nb 2\n", "a 1\n")
