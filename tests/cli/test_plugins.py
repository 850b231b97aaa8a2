from __future__ import annotations

import json


def test_the_built_in_plugins_are_listed(cli):
    result = cli("plugins")
    assert result.exit_code == 0
    for name in ("qwen2vl", "short-answer", "chat", "vqa", "exact", "glyphs", "clip", "jsonl"):
        assert name in result.stdout
    assert "failed" not in result.stdout


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


def test_third_parties_stand_beside_the_built_in_ones(cli, backends):
    assert "copies" in cli("plugins").stdout
    assert "from other-dist 2.0" in cli("plugins", "show", "copy").stdout


def test_every_option_of_every_plugin_is_documented(cli):
    for entry in json.loads(cli("plugins", "--format", "json").stdout)["registered"]:
        assert entry["summary"]
        for option in entry["options"]:
            assert option["help"], f"{entry['kind']} {entry['name']}: {option['name']}"
