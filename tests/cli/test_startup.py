"""Starting the program: the ways to do it, and which commands must not import what models need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import pointer_rl

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "PIL", "datasets", "numpy")


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["plugins"],
        ["plugins", "show", "qwen2vl"],
        ["plugins", "check", "--help"],
        ["plugins", "new", "--help"],
        ["generate", "--help"],
        ["validate", "--help"],
        ["rescore", "--help"],
        ["merge", "--help"],
        ["convert", "--help"],
        ["schema"],
        ["embed", "--help"],
        ["evaluate", "--help"],
        ["push", "--help"],
        ["report", "--help"],
        ["export", "--help"],
        ["select", "--help"],
        ["answer", "--help"],
        ["show", str(ROOT / "tests/data/versions/1.0/generated.json")],
        ["train", "--help"],
        ["sft", "--help"],
        ["glyphs", "--help"],
        ["doctor", "--help"],
        ["config", "--help"],
        ["config"],
    ],
    ids=lambda args: " ".join(args[:2]) if args[0] != "show" else "show",
)
def test_no_heavy_import(args):
    code = (
        "import sys\n"
        "from pointer_rl.cli.main import cli\n"
        "try:\n    cli(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code\n"
        f"heavy = [name for name in {HEAVY} if name in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


PLUGIN = """
import click
from pointer_rl import hookimpl

@hookimpl
def pointer_rl_register_metrics(register):
    register("from-a-file", object, summary="s")

@hookimpl
def pointer_rl_register_commands(cli):
    cli.add_command(click.Command("greet", callback=lambda: click.echo("hello")))
"""


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--version"], 0, f"version {pointer_rl.__version__}"),
        (["--plugin", "mine.py", "greet"], 0, "hello"),
        (["--plugin", "mine.py", "--help"], 0, "greet"),
        (["--plugin", "mine.py", "plugins", "show", "from-a-file"], 0, "mine.py"),
        (["plugins", "--plugin", "mine.py"], 0, "from-a-file"),
        (["plugins", "--plugin", "none.py"], 2, "none.py: no such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_python_m_runs_it_and_plugin_loads_a_file(tmp_path, args, code, said):
    (tmp_path / "mine.py").write_text(PLUGIN)
    command = [sys.executable, "-m", "pointer_rl", *args]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert said in (done.stderr if code else done.stdout)
    if code:
        assert len(done.stderr.splitlines()) == 1


def test_validating_imports_no_torch(tmp_path):
    (tmp_path / "rl.json").write_text(
        '{"q": {"pointer_candidates": [{"pointer": [1], "gen_method": "random",'
        ' "vqa_pred_answer": "a", "vqa_correct": 0, "vqa_acc_score": 0.0}]}}'
    )
    code = (
        "import sys\n"
        "from pointer_rl.cli.main import cli\n"
        "try:\n    cli(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, "validate", str(tmp_path / "rl.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
