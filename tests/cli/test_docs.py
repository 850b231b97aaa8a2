"""The snippets of the documentation, run as they are printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def block(page: str, language: str, number: int = 0) -> str:
    """The number-th fenced block of that language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)[number]


def test_the_how_tos_plugin_registers_and_runs(world):
    (world.folder / "pointer_rl_shout.py").write_text(block("docs/how-to/your-plugin.md", "python"))
    info = world.folder / "shout-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shout\nVersion: 1.0\n")
    section, entry = block("docs/how-to/your-plugin.md", "toml").strip().splitlines()
    assert section == "[project.entry-points.pointer_rl]"
    (info / "entry_points.txt").write_text("[pointer_rl]\n" + entry.replace('"', "") + "\n")
    environment = {**os.environ, "PYTHONPATH": str(world.folder), "POINTER_RL_PLUGINS": "shout"}
    program = [sys.executable, "-c", "from pointer_rl.cli.main import main; main()"]

    def run(*args: str) -> str:
        done = subprocess.run([*program, *args], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "one word, always" in run("plugins")
    assert "word: str, default YES\n      What it answers." in run("plugins", "show", "shout")
    run(
        *("generate", "--backend", "shout", "--backend-opt", "word=a", "--dataset", "jsonl"),
        *("--dataset-opt", f"path={world.data}", "--query-emb", str(world.query_emb)),
        *("--cand-emb", str(world.cand_emb), "--output-path", str(world.output)),
        *("--num-beams", "0", "--num-samples-per-temp", "0"),
    )
    assert '"vqa_pred_answer": "a"' in world.output.read_text()


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
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_have_only_options_that_exist(page):
    from pointer_rl.cli.main import cli

    text = page.read_text(encoding="utf-8")
    for shell in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for command in shell.replace("\\\n", " ").splitlines():
            words = command.split()
            if words[:1] != ["pointer-rl"]:
                continue
            known = {name for param in cli.commands[words[1]].params for name in param.opts}
            assert {word for word in words if word.startswith("--")} <= known, command
