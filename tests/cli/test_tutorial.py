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


def differences(printed: str, shown: str) -> list[str]:
    """Lines of the page that were not printed there; a line `…` stands for any number."""
    lines = [shape(line) for line in printed.splitlines()]
    wrong, anywhere = [], False
    for line in shown.splitlines():
        if line == "…":
            anywhere = True
            continue
        if shape(line) in (lines if anywhere else lines[:1]):
            del lines[: lines.index(shape(line)) + 1]
        else:
            wrong.append(line)
        anywhere = False
    return wrong + ([] if anywhere else lines)


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
        assert differences(done.stdout, shown) == [], done.stdout


def test_a_line_that_was_not_printed_is_a_difference():
    assert differences("a 1\nb 2\nc 3\n", "a 4\n…\nc 5\n") == []
    assert differences("a 1\nb 2\n", "…\nc 2\n…\n") == ["c 2"]
    assert differences("a 1\nb 2\n", "a 1\n") == ["b##"]
