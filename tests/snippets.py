"""The snippets of a page, and a reader who types them as they are printed."""

from __future__ import annotations

import ast
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Collection, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from traceback import format_exception
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from pointer_rl.cli.main import cli

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass
class Block:
    """A fenced block."""

    language: str
    body: str
    shown: str | None = None
    """Of the `text` block that comes directly after it: what it prints."""

    @property
    def head(self) -> str:
        """The first line, runs of blanks as one."""
        return " ".join(self.body.partition("\n")[0].split())

    @property
    def commands(self) -> list[str]:
        """Of the shell: one a line, continued lines joined."""
        lines = self.body.replace("\\\n", " ").splitlines()
        return [" ".join(line.split()) for line in lines if line.strip()]


def blocks(page: str) -> list[Block]:
    """Of a page, by its path in the repository."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found: list[Block] = []
    end = None
    for match in _BLOCK.finditer(text):
        language, body = match.groups()
        between = None if end is None else text[end : match.start()]
        if language == "text" and between is not None and not between.strip():
            found[-1].shown = body
        else:
            found.append(Block(language, body))
        end = match.end()
    return found


def shape(line: str) -> str:
    """A line without what depends on the machine: digits, units, hashes, widths of tables."""
    number = r"[-+]?\d[\d,.]*(?:\+\w+|e-\d+| (?:[kMG]B|s|min|h)\b)?"
    return re.sub(rf"[0-9a-f]{{16,}}|{number}|-{{3,}}|\s+", "#", line.rstrip())


def is_as_shown(printed: str, shown: str) -> bool:
    """Whether that was printed, line by line; a line `…` of the page stands for any lines."""
    any_lines = r"(?:.*\n)*"
    pattern = [
        any_lines if line == "…" else re.escape(shape(line)) + r"\n" for line in shown.splitlines()
    ]
    lines = [shape(line) + "\n" for line in printed.splitlines()]
    return re.fullmatch("".join(pattern), "".join(lines)) is not None


class Reader:
    """Does what a page shows, in a folder.

    stand_ins: what a page says → what there is instead. skipped: commands of the shell, and first
    lines of other blocks, that are passed over.
    """

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        stand_ins: Mapping[str, str],
        skipped: Collection[str],
    ) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.stand_ins, self.skipped = stand_ins, skipped
        self.names: dict[str, Any] = {}
        """Of the page's Python."""
        monkeypatch.chdir(folder)

    def read(self, block: Block) -> None:
        """Run it, and compare what it prints with what the page shows."""
        if block.language == "{toctree}" or (
            block.language != "bash" and block.head in self.skipped
        ):
            return
        kinds = {"bash": self._shell, "python": self._python, "json": self._json}
        kinds |= {"yaml": self._yaml, "toml": self._toml}
        assert block.language in kinds, f"neither run nor listed:\n{block.body}"
        printed = kinds[block.language](block)
        if block.shown is not None:
            printed = printed.replace(os.environ["POINTER_RL_CACHE"], "/root/.cache/pointer-rl")
            shown = self._here(block.shown)
            assert is_as_shown(printed, shown), f"{shown}\n--- printed:\n{printed}"

    def _here(self, text: str) -> str:
        for shown, here in self.stand_ins.items():
            text = text.replace(shown, here)
        return text

    def _shell(self, block: Block) -> str:
        commands = [self._here(each) for each in block.commands if each not in self.skipped]
        return "".join(map(self._command, commands))

    def _command(self, command: str) -> str:
        words = shlex.split(command, comments=True)
        if words[-1:] == ["&"]:
            words.pop()  # in its turn will do
        while words[1:] and re.match(r"[A-Z_]+=", words[0]):
            self.monkeypatch.setenv(*words.pop(0).split("=", 1))
        if words[:1] == ["export"]:
            self.monkeypatch.setenv(*words[1].split("=", 1))
            return ""
        if words[:3] == ["python", "-m", "pointer_rl"]:
            words[:3] = ["pointer-rl"]
        if words[:1] == ["pointer-rl"] and not {">", "|", "&", "&&"} & set(words):
            return self._program(words[1:])
        programs = str(Path(sys.executable).parent)
        path = os.pathsep.join([programs, os.environ["PATH"]])
        done = subprocess.run(
            ["bash", "-euc", command],
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def _program(self, args: list[str]) -> str:
        """`pointer-rl` in this process, which has torch already."""
        done = CliRunner().invoke(cli, args)
        where = "".join(format_exception(*done.exc_info)) if done.exc_info else ""
        assert done.exit_code == 0, f"{shlex.join(args)}\n{done.output}{where}"
        return done.stdout

    def _python(self, block: Block) -> str:
        """Values and printed lines are those that a comment after them says; tests pass."""
        for package in self.folder.glob("pointer-rl-*"):  # as if it were installed
            self.monkeypatch.syspath_prepend(package)
        body = self._here(block.body)
        printed = io.StringIO()
        with redirect_stdout(printed):
            for node in ast.parse(body).body:
                start = printed.tell()
                code = ast.unparse(node)
                said = body.splitlines()[node.end_lineno - 1].partition("  # ")[2]
                if not isinstance(node, ast.Expr) or not said:
                    exec(code, self.names)
                elif (value := eval(code, self.names)) is not None:
                    assert value == pytest.approx(ast.literal_eval(said)), code
                else:
                    assert is_as_shown(printed.getvalue()[start:], said), code
                if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                    self.names[node.name]()
        return printed.getvalue()

    def _json(self, block: Block) -> str:
        """RL data."""
        Path("shown.json").write_text(block.body, encoding="utf-8")
        return self._program(["validate", "shown.json"])

    def _toml(self, block: Block) -> str:
        """A configuration file, saved if its first line is a comment with its name."""
        tomllib.loads(block.body)
        if block.head.startswith("# "):
            Path(block.head[2:]).write_text(self._here(block.body), encoding="utf-8")
        return ""

    def _yaml(self, block: Block) -> str:
        """A pre-commit configuration: its hooks are ours."""
        ours = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
        (repository,) = yaml.safe_load(block.body)["repos"]
        assert {hook["id"] for hook in repository["hooks"]} <= {hook["id"] for hook in ours}
        return ""
