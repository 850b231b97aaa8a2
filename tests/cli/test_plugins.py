from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pointer_rl.registry import KINDS


def test_the_built_in_plugins_are_listed(cli):
    result = cli("plugins")
    assert result.exit_code == 0
    for name in ("qwen2vl", "short-answer", "chat", "vqa", "exact", "glyphs", "clip", "jsonl"):
        assert name in result.stdout
    assert "failed" not in result.stdout
    assert re.findall(r"^backend +(\S+)", result.stdout, re.MULTILINE) == [
        *("flamingo", "hf", "openai", "qwen2vl", "vllm")
    ]


def test_json_has_the_options(cli):
    listed = json.loads(cli("plugins", "--format", "json").stdout)
    assert listed["failed"] == []
    backends = {each["name"]: each for each in listed["registered"] if each["kind"] == "backend"}
    backend = backends["qwen2vl"]
    assert backend["aliases"]["qwen2.5_vl_3B"] == {"model": "Qwen/Qwen2.5-VL-3B-Instruct"}
    options = {option["name"]: option for option in backend["options"]}
    assert options["model"]["required"]
    assert options["batch_tokens"]["type"] == "int | None"
    assert all(option["help"] for option in backend["options"])


def test_show_prints_options_with_their_docstrings(cli):
    shown = cli("plugins", "show", "qwen2vl").stdout
    assert "backend qwen2vl" in shown
    assert "model: str, required" in shown
    assert "alias qwen2.5_vl_3B: model=Qwen/Qwen2.5-VL-3B-Instruct" in shown
    both = cli("plugins", "show", "glyphs").stdout
    assert "dataset glyphs" in both
    assert "encoder glyphs" in both
    one = cli("plugins", "show", "dataset:glyphs").stdout
    assert "lexicon_seed" in one
    assert "encoder glyphs" not in one
    assert "no options" in cli("plugins", "show", "metric:vqa").stdout


def test_show_of_what_is_not_there(cli):
    result = cli("plugins", "show", "qwen2v")
    assert result.exit_code == 2
    assert "did you mean 'qwen2vl'" in result.stderr


@pytest.mark.parametrize("options", ["nowhere:Options", "collections:OrderedDict"])
def test_options_that_are_not_there_break_their_entry_alone(cli, backends, tmp_path, options):
    plugin = tmp_path / "broken_options.py"
    plugin.write_text(
        "from pointer_rl.hookspecs import hookimpl\n\n\n"
        "@hookimpl\ndef pointer_rl_register_metrics(register):\n"
        f"    register('mine', 'nowhere:Mine', options='{options}', summary='mine')\n"
    )
    listed = json.loads(cli("--plugin", str(plugin), "plugins", "--format", "json").stdout)
    errors = {each["name"]: each["error"] for each in listed["registered"]}
    assert f"metric mine: its options {options!r}" in errors["mine"]
    assert {name for name, error in errors.items() if error} == {"mine"}
    shown = cli("--plugin", str(plugin), "plugins", "show", "mine")
    assert shown.exit_code == 2
    assert shown.stderr.startswith("pointer-rl: error: metric mine: its options ")
    assert "vqa" in cli("--plugin", str(plugin), "plugins").stdout


def test_third_parties_stand_beside_the_built_in_ones(cli, backends):
    assert "copies" in cli("plugins").stdout
    assert "from other-dist 2.0" in cli("plugins", "show", "copy").stdout


def test_every_option_of_every_plugin_is_documented(cli):
    for entry in json.loads(cli("plugins", "--format", "json").stdout)["registered"]:
        assert entry["summary"]
        for option in entry["options"]:
            assert option["help"], f"{entry['kind']} {entry['name']}: {option['name']}"


# --- plugins check ---


def test_check_prints_a_line_a_check(cli):
    result = cli("plugins", "check", "metric:vqa")
    assert result.exit_code == 0
    first, *lines, last = result.stdout.splitlines()
    assert first.startswith("metric vqa, from pointer-rl ")
    assert [line.split(maxsplit=1)[0] for line in lines].count("ok") == 6
    assert "  ok       tells right from wrong" in lines
    assert last == "8 checks: 6 ok, 2 skipped"


def test_check_takes_aliases_and_says_what_is_needed(cli):
    result = cli("plugins", "check", "okvqa_local")
    assert result.exit_code == 2
    assert "dataset okvqa_local needs the option root" in result.stderr
    for name, kinds in (
        ("glyphs", ("backend", "dataset", "encoder")),
        ("hf", ("backend", "dataset")),
    ):
        written = " or ".join(f"{kind}:{name}" for kind in kinds)
        said = f"{name} is registered for several kinds: write {written}\n"
        assert cli("plugins", "check", name).stderr.endswith(said)


# --- what is missing ---


def test_a_package_that_is_missing_is_named_with_its_command(cli, monkeypatch):
    assert "missing: dataset hf" not in cli("plugins").stdout
    monkeypatch.setitem(sys.modules, "datasets", None)
    line = "missing: dataset hf needs the package datasets: pip install 'pointer-rl[hf]'"
    assert line in cli("plugins").stdout.splitlines()
    assert f"  {line}" in cli("plugins", "show", "dataset:hf").stdout.splitlines()
    result = cli("plugins", "check", "dataset:hf", "--opt", "path=x")
    assert result.exit_code == 2
    assert line.removeprefix("missing: ") in result.stderr


# --- plugins new ---


def test_new_writes_a_package_and_says_how_to_go_on(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = cli("plugins", "new", "my-model", "--kind", "backend")
    assert result.exit_code == 0
    assert "pip install -e 'pointer-rl-my-model[dev]'" in result.stdout
    folder = tmp_path / "pointer-rl-my-model"
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.*")} == {
        "pyproject.toml",
        "README.md",
        "pointer_rl_my_model.py",
        "tests/test_my_model.py",
    }
    assert '[project.entry-points.pointer_rl]\nmy-model = "pointer_rl_my_model"\n' in (
        folder / "pyproject.toml"
    ).read_text("utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_what_new_writes_is_formatted_as_our_own_code(cli, tmp_path, kind):
    folder = tmp_path / kind
    assert cli("plugins", "new", "tint", "--kind", kind, "--output-dir", str(folder)).exit_code == 0
    rules = ["--config", str(Path(__file__).parents[2] / "pyproject.toml")]
    for command in (["check", "--extend-ignore", "D1,RUF012"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *rules, folder], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout
    for path in folder.rglob("*.*"):
        assert "$" not in path.read_text("utf-8"), path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("My_Model", "the name 'My_Model' cannot be used: write it in lower-case letters"),
        ("a b", "the name 'a b' cannot be used"),
        ("../up", "the name '../up' cannot be used"),
        ("", "the name '' cannot be used"),
        ("qwen2vl", "the backend qwen2vl already exists, from pointer-rl "),
        ("qwen3_vl_2B", "the name 'qwen3_vl_2B' cannot be used"),
        ("standard", "the module pointer_rl_standard is installed already: choose another"),
    ],
)
def test_new_refuses_a_name_in_one_line(cli, tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    result = cli("plugins", "new", name, "--kind", "backend")
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_new_refuses_a_folder_that_exists(cli, tmp_path):
    (tmp_path / "mine").touch()
    result = cli("plugins", "new", "mine", "--kind", "metric", "--output-dir", str(tmp_path))
    assert result.exit_code == 2
    assert result.stderr == f"pointer-rl: error: {tmp_path}: cannot be written (File exists)\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
