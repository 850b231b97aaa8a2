"""The tutorial's commands, run in their order; what they print is what the pages say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial"
SHELL = re.compile(r"```bash\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)


def shape(line: str) -> str:
    """A line without its numbers, whose last digits depend on the machine, and table rules."""
    return re.sub(r"[-+]?\d[\d,.]*|-{3,}|\s+", "#", line)


def is_as_shown(printed: str, shown: str) -> bool:
    """Whether that was printed, line by line; a line `…` of the page stands for any lines."""
    any_lines = r"(?:.*\n)*"
    pattern = [
        any_lines if line == "…" else re.escape(shape(line)) + r"\n" for line in shown.splitlines()
    ]
    lines = [shape(line) + "\n" for line in printed.splitlines()]
    return re.fullmatch("".join(pattern), "".join(lines)) is not None


@pytest.mark.parametrize(
    "page", ["first-dataset", pytest.param("first-policy", marks=pytest.mark.slow)]
)
def test_the_tutorials_commands_print_what_it_says(page, tmp_path):
    blocks = SHELL.findall((TUTORIAL / f"{page}.md").read_text(encoding="utf-8"))
    assert len(blocks) >= 4
    programs = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([programs, os.environ["PATH"]]),
        "POINTER_RL_CACHE": str(tmp_path / "cache"),
    }
    for commands, shown in blocks:
        done = subprocess.run(
            ["bash", "-euc", commands],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert is_as_shown(done.stdout, shown), f"{shown}\n--- printed:\n{done.stdout}"


def test_what_was_not_printed_as_shown_is_noticed():
    assert is_as_shown("a 1\na 2\nb  3\nc 4\n", "a 5\n…\nb 6\nc 7\n")
    assert is_as_shown("a 1\n", "a 5\n…\n")
    assert not is_as_shown("a 1\nb 2\n", "…\nc 2\n…\n")
    assert not is_as_shown("a 1\nb 2\n", "a 1\n")
