"""What must stay light: commands that need no model import none of what models need."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
        ["select", "--help"],
        ["train", "--help"],
        ["sft", "--help"],
        ["glyphs", "--help"],
        ["doctor", "--help"],
    ],
    ids=" ".join,
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
