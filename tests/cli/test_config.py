"""Configuration files: what they set, what wins over them, and what they may not say."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from pointer_rl.registry import registry

VERSIONS = Path(__file__).parents[1] / "data" / "versions"
SHARED = """
limit = 4
[dataset]
plugin = "jsonl"
path = "data.jsonl"
[backend]
plugin = "copy"
[generate]
query-emb = "q.safetensors"
cand-emb = "c.safetensors"
num-beams = 0
num-samples-per-temp = 0
temps = [1.0, 1.5]
[generate.random]
num = 3
"""


@pytest.fixture
def folder(world, tmp_path, monkeypatch):
    """A current folder beside the world's, so that relative paths are of the file's folder."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return elsewhere


@pytest.fixture
def config(world, folder):
    path = world.folder / "run.toml"
    path.write_text(SHARED)
    return path


def meta(path):
    return json.loads(path.read_text())["_meta"]


def test_a_file_gives_options_and_its_paths_are_relative_to_it(cli, config, world, folder):
    done = cli("generate", "--config", str(config), "--output-path", "rl.json")
    assert done.exit_code == 0, done.output
    found = meta(folder / "rl.json")
    assert found["dataset"]["name"] == "jsonl"
    assert found["dataset"]["title"] == "data"  # as messages call it
    assert found["dataset"]["num_queries"] == 4
    random = next(each for each in found["generators"] if each["name"] == "random")
    assert random["options"]["num"] == 3
    assert "pointer-rl: options from" not in done.output  # it was named


def test_the_command_line_wins_option_by_option(cli, config, world, folder):
    config.write_text(
        SHARED.replace('path = "data.jsonl"', 'path = "no.jsonl"\nmax_image_bytes = 9999')
    )
    path = f"path={world.data}"
    for place in (("--config", str(config), "generate"), ("generate", "--config", str(config))):
        done = cli(
            *place, *("--dataset-opt", path, "--limit", "2", "--output-path", f"{place[0]}.json")
        )
        assert done.exit_code == 0, done.output
        found = meta(folder / f"{place[0]}.json")["dataset"]
        assert found["num_queries"] == 2
        assert found["options"]["max_image_bytes"] == 9999


def test_options_of_a_replaced_plugin_do_not_count(cli, config, folder):
    config.write_text(SHARED.replace('plugin = "copy"', 'plugin = "qwen2vl"\nengine = "plain"'))
    args = ("generate", "--config", str(config), "--output-path", "rl.json")
    assert cli(*args).exit_code == 2
    assert cli(*args, "--backend", "copy").exit_code == 0


def test_options_that_a_command_lacks_are_not_used(cli, config):
    done = cli("config", "embed", "--config", str(config))
    assert done.exit_code == 0
    assert "jsonl" in done.output
    assert "limit" not in done.output


def test_a_plugin_of_the_command_line_takes_the_options_of_a_table_without_one(cli, config):
    config.write_text(SHARED + '[evaluate.encoder]\nmodel = "nowhere"\nmodee = "x"\n')
    done = cli("evaluate", "--config", str(config), "--encoder", "clip")
    assert "encoder clip has no option 'modee'" in done.output


def test_shared_tables_do_not_replace_what_a_file_says_of_itself(cli, config):
    config.write_text('[metric]\nplugin = "exact"\n')
    assert "exact" not in cli("config", "rescore", "--config", str(config)).output
    config.write_text('[rescore.metric]\nplugin = "exact"\n')
    assert "exact" in cli("config", "rescore", "--config", str(config)).output


def test_options_of_an_unused_generator_do_not_count(cli, config):
    config.write_text(SHARED + "[generate.first-success]\nanswers = true\n")
    assert cli("generate", "--config", str(config), "--output-path", "rl.json").exit_code == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("shot = 1", ("shot:", "'shots'")),
        ("[generat]\nshots = 1", ("[generat]", "'generate'")),
        ("[generate]\nmax-call = 1", ("[generate] max-call", "'max-calls'")),
        ('[generate]\nmax-calls = "x"', ("[generate] max-calls", "an integer")),
        ("[generate]\nmax-calls = true", ("[generate] max-calls", "an integer")),
        ("[generate]\nplan = 1", ("[generate] plan", "true or false")),
        ('[generate]\ngenerator = "first-success"', ("[generate] generator", "a list")),
        ("[generate.first-succes]\na = 1", ("[generate.first-succes]", "'first-success'")),
        ("[evaluate]\npolicy = ['out']", ("[evaluate] policy", "NAME=PATH")),
        ("[backend]\nplugin = 1", ("[backend] plugin", "text")),
        ("[cache.inf]\nstore = 'x'", ("[cache] inf", "'info'")),
        ("generate = 1", ("[generate]", "a table")),
        ("plugin = 'p.py'", ("plugin", "a list")),
        ("[generate", ("not TOML",)),
    ],
)
def test_a_fault_is_one_line_with_file_place_and_remedy(cli, config, text, said):
    config.write_text(text)
    done = cli("config", "--config", str(config))
    assert done.exit_code == 2
    assert done.output.count("\n") == 1
    assert all(each in done.output for each in (str(config), *said)), done.output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[dataset]\nplugin = 'jsonl'\npaht = 'x'", ("dataset", "'paht'", "'path'")),
        ("[backend]\nplugin = 'qwen2vl'\nthreads = 1.5", ("backend", "threads", "an integer")),
        ("[decoding]\nstop = 1", ("decoding", "stop", "a list")),
        ("[metric]\nplugin = 'vqq'", ("metric", "'vqa'")),
        ("[generate.random]\nnumm = 1", ("random", "'num'")),
        ("[encoder]\nmodel = 'x'", ("encoder", "plugin")),
        ("[generate]\nshots = 0", ("shots", "generate", "0 is not in the range")),
    ],
)
def test_what_a_command_cannot_use_names_the_file(cli, config, text, said):
    config.write_text(text)
    command = "evaluate" if "encoder" in text else "generate"
    done = cli(command, "--config", str(config), "--output-path", "rl.json")
    assert done.exit_code == 2
    assert all(each in done.output for each in (str(config), *said)), done.output


def test_the_folders_own_file_is_announced(cli, config, folder, world):
    (folder / "pointer-rl.toml").write_text(
        SHARED.replace("data.jsonl", "../data.jsonl")
        .replace("q.s", "../q.s")
        .replace("c.s", "../c.s")
    )
    done = cli("generate", "--output-path", "rl.json")
    assert done.exit_code == 0, done.output
    assert done.stderr.count("options from pointer-rl.toml") == 1
    assert cli("schema").stderr == ""  # nothing in it is for this command
    assert meta(folder / "rl.json")["dataset"]["num_queries"] == 4


@pytest.mark.parametrize(
    "text",
    [
        "plugin = ['p.py']",
        "output-path = 'x.json'",
        "store = 'x'",
        "[train]\noutput-dir = 'x'",
        "[evaluate]\nplot = 'x.png'",
        "[generate]\noverwrite = true",
        "[evaluate]\nrecord = true",
        "accept-changed = ['inputs']",
        "[cache.prune]\nembeddings = true",
        "[cache.prune]\nall = true",
    ],
)
def test_the_folders_own_file_neither_loads_code_nor_writes(cli, folder, text):
    path = folder / "pointer-rl.toml"
    path.write_text(text)
    (folder / "p.py").write_text("raise SystemExit('loaded')")
    done = cli("config")
    assert done.exit_code == 2
    assert "--config" in done.output
    assert "loaded" not in done.output
    (folder / "p.py").write_text("")
    assert cli("config", "--config", str(path)).exit_code == 0
    registry.cache_clear()


@pytest.mark.parametrize("option", ["base_url = 'http://127.0.0.1:9/v1'", "api_key_env = 'KEY'"])
def test_the_folders_own_file_does_not_say_where_a_key_goes(cli, folder, option):
    path = folder / "pointer-rl.toml"
    path.write_text(f"[backend]\nplugin = 'openai'\nmodel = 'm'\n{option}\n")
    done = cli("generate", "--output-path", "rl.json")
    assert done.exit_code == 2
    assert "only a file given as --config may say where keys go" in done.output
    done = cli("config", "generate", "--config", str(path))
    assert done.exit_code == 0, done.output


def test_what_only_online_training_uses_may_stand_in_a_file(cli, config):
    config.write_text(SHARED + "[train]\nrounds = 3\nmax-calls = 10\n")
    done = cli("train", "--config", str(config), "--output-dir", "out")
    assert "or --online" in done.output


def test_no_store_on_the_command_line_replaces_the_files_store(cli, config, folder):
    config.write_text('store = "s.sqlite"\n' + SHARED)
    done = cli("generate", "--config", str(config), "--output-path", "rl.json", "--no-store")
    assert done.exit_code == 0, done.output
    assert not (config.parent / "s.sqlite").exists()


def test_tables_add_up_key_by_key(cli, config):
    config.write_text(
        "[dataset]\nmax-image-bytes = 1\nplugin = 'jsonl'\n"
        "[backend]\ndtype = 'bfloat16'\n"
        "[generate]\nprompt-opt = ['a=1']\n"
        "[generate.backend]\nplugin = 'qwen2vl'\n"
        "[generate.dataset]\nmax_image_bytes = 2\n"
        "[generate.prompt]\nb = 2\n"
    )
    done = cli("config", "generate", "--config", str(config))
    values = {line.split()[0]: line.split()[1:-1] for line in done.output.splitlines() if line}
    assert values["dataset-opt"] == ["max_image_bytes=2"]
    assert values["backend-opt"] == ["dtype=bfloat16"]
    assert values["prompt-opt"] == ["a=1", "b=2"]


def test_config_says_where_each_value_comes_from(cli, config):
    done = cli("config", "generate", "--config", str(config))
    lines = {line.split()[0]: line.split()[1:] for line in done.output.splitlines() if line}
    assert lines["limit"] == ["4", "file"]
    assert lines["shots"] == ["2", "default"]
    assert lines["temps"] == ["1.0", "1.5", "file"]


def test_the_configuration_of_a_run_makes_the_same_run(cli, config, folder, world):
    assert cli("generate", "--config", str(config), "--output-path", "rl.json").exit_code == 0
    printed = cli("config", "--of", "rl.json")
    assert printed.exit_code == 0
    tomllib.loads(printed.output)
    again = folder / "again.toml"
    again.write_text(printed.output)
    done = cli(
        *("generate", "--config", str(again), "--output-path", "again.json", "--limit", "4"),
        *("--query-emb", str(world.query_emb), "--cand-emb", str(world.cand_emb)),
    )
    assert done.exit_code == 0, done.output
    assert (folder / "again.json").read_bytes() == (folder / "rl.json").read_bytes()


@pytest.mark.parametrize("file", ["1.0/beams.json", "1.0/generated.json", "policies/bundle"])
def test_the_configuration_of_older_files_is_valid(cli, folder, file):
    printed = cli("config", "--of", str(VERSIONS / file))
    assert printed.exit_code == 0
    (folder / "past.toml").write_text(printed.output)
    assert cli("config", "--config", "past.toml").exit_code == 0


def test_a_file_that_no_run_made_is_refused(cli, folder):
    (folder / "other.json").write_text("{}")
    done = cli("config", "--of", "other.json")
    assert done.exit_code == 2
    assert "does not say how it was made" in done.output
