"""Plugins that end the program, print, or take long to load."""

from __future__ import annotations

import json
import logging

import pytest

from pointer_rl.cli.main import cli as group
from pointer_rl.registry import registry

HEAD = "import sys\nfrom pointer_rl.hookspecs import hookimpl\nfrom pointer_rl.types import *\n"
PARTS = {
    "factory": ("backend", "def make():\n    sys.exit(0)\n"),
    "run": (
        "backend",
        "class make:\n    fingerprint = 'quits'\n"
        "    def run(self, requests):\n        yield 0, Response('a')\n        sys.exit(0)\n",
    ),
    "judge": (
        "metric",
        "class make:\n    version = '1'\n    normalise = str\n"
        "    def judge(self, answer, answers):\n        raise SystemExit\n",
    ),
    "propose": (
        "generator",
        "class make:\n    def propose(self, *_):\n        raise SystemExit(0)\n",
    ),
    "build": (
        "prompt",
        "class make:\n    def build(self, *_):\n        sys.exit('bye')\n"
        "    def parse(self, text):\n        return text\n",
    ),
}


@pytest.fixture
def plugin(tmp_path):
    def write(code: str, kind: str = "metric"):
        hook = f"{kind}s" if kind != "prompt" else "prompt_builders"
        path = tmp_path / "mine.py"
        path.write_text(
            f"{HEAD}{code}\n@hookimpl\ndef pointer_rl_register_{hook}(register):\n"
            "    register('mine', make, summary='mine')\n"
        )
        return str(path)

    yield write
    registry.cache_clear()


@pytest.mark.parametrize("part", PARTS)
def test_a_plugin_that_exits_is_an_error_and_says_where(world, plugin, part):
    kind, code = PARTS[part]
    path = plugin(code, kind)
    result = world.generate("--plugin", path, f"--{kind}", "mine")
    assert result.exit_code == 2
    *_, line = result.stderr.splitlines()
    assert line.startswith(f"pointer-rl: error: {path}, line ")
    assert "ended the program (SystemExit: " in line
    assert not world.output.exists()


def test_a_plugin_that_exits_when_it_is_imported_breaks_itself_alone(cli, plugin):
    result = cli("--plugin", plugin("sys.exit(0)"), "plugins")
    assert result.exit_code == 2
    assert "cannot be loaded (SystemExit: 0)" in result.stderr


def test_check_reports_a_plugin_that_exits(cli, plugin):
    result = cli("--plugin", plugin(PARTS["judge"][1]), "plugins", "check", "metric:mine")
    assert result.exit_code == 1
    assert "SystemExit" in result.stdout


def test_a_plugins_own_command_may_exit(cli, tmp_path, backends, monkeypatch):
    monkeypatch.setattr(group, "_has_plugin_commands", False)
    monkeypatch.setattr(group, "commands", dict(group.commands))
    path = tmp_path / "mine.py"
    path.write_text(
        f"{HEAD}\nimport click\n@hookimpl\ndef pointer_rl_register_commands(cli):\n"
        "    @cli.command()\n    def leave():\n        sys.exit(3)\n"
    )
    result = cli("--plugin", str(path), "leave")
    assert result.exit_code == 3
    assert result.stderr == ""


def test_what_a_plugin_prints_goes_to_stderr(cli, plugin, tmp_path):
    code = (
        "print('imported')\n"
        "class make:\n    version = '1'\n    normalise = str\n"
        "    def __init__(self):\n        print('made')\n"
        "    def judge(self, answer, answers):\n        return Judgement(True, 1.0)\n"
    )
    path = plugin(code)
    listed = cli("--plugin", path, "plugins", "--format", "json")
    assert any(each["name"] == "mine" for each in json.loads(listed.stdout)["registered"])
    assert "imported" in listed.stderr
    data = tmp_path / "rl.json"
    answer = {"vqa_pred_answer": "x", "vqa_correct": 1, "vqa_acc_score": 1.0}
    record = {"gt_answers": ["x"], "pointer_candidates": [{"pointer": [1], "gen_method": "a"}]}
    record["pointer_candidates"][0] |= answer
    meta = {"schema_version": "1.0", "metric": {"name": "mine", "options": {}, "version": "1"}}
    data.write_text(json.dumps({"_meta": meta, "q": record}))
    checked = cli("--plugin", path, "validate", "--format", "json", str(data))
    assert json.loads(checked.stdout)["files"]
    assert "made" in checked.stderr


def test_a_plugin_that_takes_long_to_load_is_named(cli, plugin, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])  # as it is without pytest
    monkeypatch.setattr("pointer_rl.registry._PATIENCE", 0.01)
    code = "import time\ntime.sleep(0.3)\nmake = object\n"
    result = cli("--plugin", plugin(code), "plugins")
    assert "still loading the plugin mine (" in result.stderr
    monkeypatch.undo()
    assert cli("plugins").stderr == ""
