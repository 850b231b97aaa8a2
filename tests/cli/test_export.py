"""`pointer-rl export`, of what the other commands write."""

from __future__ import annotations

import json
import sys

import pytest

pytest.importorskip("datasets")


def test_a_folder_for_the_hub_is_what_the_commands_read(world, cli):
    assert world.generate("--num-random", "4").exit_code == 0
    folder = world.folder / "hub"
    done = cli("export", str(world.output), "--to", "hub", "--output-path", str(folder))
    assert done.exit_code == 0, done.output
    records = json.loads(world.output.read_text())
    queries = len(records) - 1
    assert f"wrote {folder}: {queries} queries, " in done.output
    shown = cli("validate", str(folder / "candidates.parquet"))
    assert shown.exit_code == 0, shown.output
    again = cli("export", str(world.output), "--to", "hub", "--output-path", str(folder))
    assert again.exit_code == 2
    [line] = again.output.strip().splitlines()
    assert "README.md: exists; remove it, or give --overwrite" in line


@pytest.mark.parametrize("option", ["--image-side=5", "--prompt=nonsense", "--prompt-opt=a=b"])
def test_options_of_the_other_target_are_refused(world, cli, option):
    folder = world.folder / "out"
    done = cli("export", str(world.data), "--to", "hub", "--output-path", str(folder), option)
    assert done.exit_code == 2
    assert "is for --to inspect alone" in done.output
    assert not folder.exists()


@pytest.mark.parametrize(
    ("to", "package", "said"),
    [
        ("inspect", "inspect_ai", "pip install 'pointer-rl[inspect]'"),
        ("hub", "datasets", "pip install 'pointer-rl[hf]'"),
    ],
)
def test_a_missing_package_is_one_line(world, cli, monkeypatch, to, package, said):
    for module in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    for module in ("inspect_logs", "dataset_folder"):
        monkeypatch.delitem(sys.modules, f"pointer_rl.export.{module}", raising=False)
    done = cli("export", str(world.data), "--to", to, "--output-path", str(world.folder / "out"))
    assert done.exit_code == 2
    [line] = done.output.strip().splitlines()
    assert line.endswith(said)


@pytest.mark.parametrize("content", ["{}", "nonsense", '{"q": {"beams": "?"}}'])
def test_a_file_that_is_no_data_is_one_line(world, cli, content):
    path = world.folder / "other.json"
    path.write_text(content)
    done = cli("export", str(path), "--to", "hub", "--output-path", str(world.folder / "out"))
    assert done.exit_code == 2
    [line] = done.output.strip().splitlines()
    assert str(path) in line


def test_a_folder_is_no_data(world, cli):
    done = cli("export", str(world.folder), "--to", "hub", "--output-path", str(world.folder / "x"))
    assert done.exit_code == 2
    assert "is a folder; name a file" in done.output
