"""The recipes with stand-ins: the published layouts, small, and a small model or a fake."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from fault_server import FaultServer
from recipe_files import VL_ICL, write_coco, write_vl_icl
from snippets import ROOT

from pointer_rl.cli.main import cli
from pointer_rl_glyphs.dataset import MODEL_DIR

RECIPES = {each.stem: each for each in sorted((ROOT / "docs/how-to/recipes").glob("*.toml"))}
CASES = [
    *((name, ()) for name in RECIPES if not name.startswith("vl-icl")),
    *(("vl-icl-qwen2.5-vl-3b", ("--dataset-opt", f"task={task}")) for task in VL_ICL),
]
"""A recipe and more options: VL-ICL Bench has four tasks."""
FAKE = ROOT / "tests/first_answer_plugin.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The folders that the recipes name, by their last part."""
    folder = tmp_path_factory.mktemp("data")
    write_coco(folder / "okvqa", "")
    write_coco(folder / "vqav2", "v2_")
    write_vl_icl(folder / "VL-ICL")
    return folder


def run(name, data, folder, *more):
    """`pointer-rl run` with a recipe on small data; what it printed."""
    root = Path(tomllib.loads(RECIPES[name].read_text(encoding="utf-8"))["dataset"]["root"])
    args = ["--config", RECIPES[name], "--output-dir", folder, "--encoder", "glyphs"]
    args += ["--dataset-opt", f"root={data / root.name}", *more]
    done = CliRunner().invoke(cli, ["run", *map(str, args)])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize(("name", "more"), CASES)
def test_a_recipe_finds_its_data_and_its_model(name, more, data, tmp_path):
    sizes = ("--limit", 3, "--max-calls", 500, "--no-sft", "--plan")
    with FaultServer() as server:
        stand_in = f"model={MODEL_DIR}"
        if name == "okvqa-vllm-server":
            stand_in = f"base_url={server.base_url}"
        printed = run(name, data, tmp_path / "run", *more, *sizes, "--backend-opt", stand_in)
    # Two policies without SFT: 25 pointers at each of 1 and 2 shots, and none.
    tested = 4 if name.startswith(("okvqa", "vqav2")) else 6
    assert re.search(rf"evaluate +{tested} +up to {51 * tested} ", printed)
    assert not (tmp_path / "run" / "rl.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "more"), CASES)
def test_a_recipe_ends_with_a_verdict(name, more, data, tmp_path):
    fake = ("--plugin", FAKE, "--backend", "first-answer")
    sizes = ("--max-calls", 500, "--test-limit", 3, "--test-shots", 1, "--no-sft")
    printed = run(name, data, tmp_path, *more, *fake, *sizes)
    verdict = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))["verdict"]
    assert verdict in printed
