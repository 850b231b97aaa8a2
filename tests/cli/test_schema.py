"""`pointer-rl schema`, and the hook with which others check their data."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

import pointer_rl_schemas

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["pointer_candidates", "beams"])
def test_it_prints_the_schema_with_its_version(cli, name):
    result = cli("schema", "--name", name)
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    jsonschema.Draft202012Validator.check_schema(printed)
    assert printed == pointer_rl_schemas.load(name)
    assert re.fullmatch(rf"urn:pointer-rl:schema:{name}:[0-9]+\.[0-9]+", printed["$id"])
    assert printed["$id"].endswith(":" + pointer_rl_schemas.version(name))


def test_rl_data_is_the_default_and_others_are_refused(cli):
    assert json.loads(cli("schema").stdout)["title"] == "pointer_candidates"
    result = cli("schema", "--name", "beam")
    assert result.exit_code == 2
    assert "'pointer_candidates', 'beams'" in result.stderr


def test_every_schema_can_be_printed():
    folder = Path(pointer_rl_schemas.__file__).parent
    names = {path.name.removesuffix(".schema.json") for path in folder.glob("*.schema.json")}
    assert names == {"pointer_candidates", "beams"}


def test_the_hook_runs_a_command_that_there_is(cli, tmp_path):
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    program, *args = hook["entry"].split()
    assert program == "pointer-rl"
    path = tmp_path / "rl.json"
    path.write_text('{"q": {"pointer_candidates": [{}]}}')
    assert re.search(hook["files"], str(path))
    assert not re.search(hook["files"], "notes.md")
    assert cli(*args, str(path)).exit_code == 1
    assert hook["id"] in (ROOT / "docs" / "how-to" / "check-data.md").read_text()
