"""Text from files, plugins and servers cannot run the terminal, or spoil a card."""

from __future__ import annotations

import ast
import json
import logging
from pathlib import Path

import pytest
from fault_server import FaultServer

from pointer_rl.selectors.card import write_card

EVIL = "\x1b[2K\x1b]0;owned\x07\x9b31m\u202e\r"
"""Erases the line, sets the title, colours, reverses, and returns to the start of the line."""
SHOWN = r"\u001b[2K\u001b]0;owned\u0007\u009b31m\u202e\r"
CLI = Path(__file__).parents[2] / "pointer_rl" / "cli"


def harmless(result, *, shows: str = SHOWN) -> None:
    told = result.stdout + result.stderr
    assert not set(told) & set(EVIL) - set("[2K]0;owned31m"), repr(told)
    assert shows in told
    assert "Traceback" not in told


@pytest.fixture
def rl_data(tmp_path):
    path = tmp_path / "rl.json"
    candidate = {"pointer": [1], "gen_method": EVIL, "vqa_correct": 2, EVIL: 1}
    path.write_text(json.dumps({f"q{EVIL}\nvalid": {"pointer_candidates": [candidate]}}))
    return path


@pytest.mark.parametrize("form", ["text", "github"])
def test_validate(cli, rl_data, form):
    result = cli("validate", "--format", form, str(rl_data))
    assert result.exit_code == 1
    harmless(result, shows=r"\u001b[2K")
    assert not any(line.startswith("valid") for line in result.stdout.splitlines())


def test_validate_as_json_keeps_its_meaning(cli, rl_data):
    result = cli("validate", "--format", "json", str(rl_data))
    harmless(result)
    [file] = json.loads(result.stdout)["files"]
    assert file["candidates"] == {EVIL: 1}
    assert any(EVIL in finding["pointer"] for finding in file["findings"])


def test_an_error_that_quotes_a_file_is_one_line(cli, tmp_path):
    path = tmp_path / f"{EVIL}\nall is well.json"
    for result in (cli("validate", str(path)), cli("convert", str(path), str(tmp_path / "b.json"))):
        assert result.exit_code == 2
        harmless(result)
        assert len(result.stderr.splitlines()) == 1


def test_a_wrong_argument(cli):
    for arguments in (["plugins", "show", EVIL], ["generate", "--limit", EVIL], [EVIL]):
        result = cli(*arguments)
        assert result.exit_code == 2
        harmless(result, shows="[2K")


def test_generate_with_the_path_of_an_image(world):
    (world.folder / f"{EVIL}.png").write_bytes(b"no image")
    world.rows[0]["image"] = f"{EVIL}.png"
    world.write()
    result = world.generate()
    assert result.exit_code == 0
    harmless(result)


def test_a_servers_error_and_its_log(cli, world, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with FaultServer() as server:
        server.always = "400"
        monkeypatch.setattr("fault_server.text_of", lambda body: EVIL)
        args = ["--backend", "openai", "--backend-opt", f"base_url={server.base_url}"]
        result = world.generate(*args)
    assert result.exit_code == 1
    harmless(result, shows=r"\u001b[2K")


def test_a_log_message_is_one_line(cli, tmp_path, backends, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])  # as it is without pytest
    plugin = tmp_path / "logs.py"
    plugin.write_text(
        "import logging\n"
        f"logging.getLogger('x').warning('a\\npointer-rl: all is well %s', {EVIL!r})\n"
    )
    result = cli("--plugin", str(plugin), "plugins")
    assert result.exit_code == 0
    harmless(result)
    assert len(result.stderr.splitlines()) == 1


def test_a_card_shows_a_files_name_as_it_is():
    name = f"](http://evil.example) <img src=x> `a` | b {EVIL}.json"
    card = write_card(
        {
            "shots": 2,
            "dataset": {"name": name},
            "pool": {"size": 3, "sha256": "ab"},
            "policy": {"sha256": "ab"},
            "encoder": {"fingerprint": name, "name": None},
            "queries": {"number": 1},
            "data": {"name": name, "sha256": "ab"},
            "training": {"options": {name: name}},
            "evaluation": {"verdict": name, "sentences": [name], name: name},
        }
    )
    assert not set(card) & set(EVIL) - set("[2K]0;owned31m")
    shown = r"\](http:\//evil.example) \<img src=x\> \`a\` \| b "
    assert card.count(shown) == 9
    for active in ("](", "<img", "://", " `a`", " | "):
        assert active not in card.replace(shown, "")


def test_every_command_prints_through_one_module():
    for path in sorted(CLI.glob("*.py")):
        if path.name != "output.py":
            for node in ast.walk(ast.parse(path.read_text())):
                name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                assert name not in ("print", "click.echo", "click.secho"), f"{path}: {name}"
