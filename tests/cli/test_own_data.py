"""docs/how-to/own-data.md: its files from easy-vqa, and its route at a small size."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from snippets import ROOT, blocks

from pointer_rl.cli.main import cli
from pointer_rl.registry import registry

pytest.importorskip("easy_vqa", reason="needs the dataset easy-vqa: pip install easy-vqa")

FORMS = {
    "jsonl": {"path": "data/easy.jsonl"},
    "vqa": {
        "root": "data",
        "questions": "questions.json",
        "annotations": "annotations.json",
        "images": "images",
        "image_name": "{image_id}.png",
    },
    "hf": {"path": "data/easy", "answers_column": "answer"},
}
"""As in the page's commands."""
NUMBER = 30


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with what the page writes, of fewer questions."""
    folder = tmp_path_factory.mktemp("desk")
    found = {each.language: each.body for each in blocks("docs/how-to/own-data.md")[::-1]}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert "NUMBER = 1200" in found["python"]
        exec(found["python"].replace("NUMBER = 1200", f"NUMBER = {NUMBER}"), {})
    (folder / "easy-vqa.toml").write_text(found["toml"], encoding="utf-8")
    return folder


def test_the_three_forms_hold_the_same(desk, monkeypatch):
    monkeypatch.chdir(desk)
    read = [
        [
            (each.id, each.question, each.answers, each.image.open().tobytes())
            for each in registry().create("dataset", name, options).queries
        ]
        for name, options in FORMS.items()
    ]
    assert read[0] == read[1] == read[2]
    assert NUMBER <= len(read[0]) < NUMBER + 10


def route(form, folder):
    """The route on one form, with a backend that gives the first demonstration's answer."""
    dataset = ["--dataset", form]
    for key, value in FORMS[form].items():
        dataset += ["--dataset-opt", f"{key}={value}"]
    args = ["--config", "easy-vqa.toml", *([] if form == "jsonl" else dataset)]
    args += ["--plugin", str(ROOT / "tests/first_answer_plugin.py"), "--backend", "first-answer"]
    args += [
        "--limit",
        "12",
        "--max-calls",
        "500",
        "--test-limit",
        "4",
        "--test-shots",
        "1",
        "--no-sft",
    ]
    done = CliRunner().invoke(cli, ["run", *args, "--output-dir", str(folder)])
    assert done.exit_code == 0, done.output
    verdict = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["verdict"]
    assert verdict in done.output


def test_the_route_ends_with_a_verdict(desk, tmp_path, monkeypatch):
    monkeypatch.chdir(desk)
    route("jsonl", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["vqa", "hf"])
def test_the_other_forms_do_too(form, desk, tmp_path, monkeypatch):
    monkeypatch.chdir(desk)
    route(form, tmp_path / "run")
