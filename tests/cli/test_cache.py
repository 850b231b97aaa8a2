"""`pointer-rl cache`: what is stored, and how to be rid of it."""

from __future__ import annotations

import json
import math
import sqlite3
import subprocess
import sys
import time

import pytest

from pointer_rl.session import cache as cache_module
from pointer_rl.session.cache import ResponseCache, default_store
from pointer_rl.types import Response, Usage

DAY = 86_400
NOW = int(time.time())


@pytest.fixture
def store(tmp_path, monkeypatch):
    """At the default place: 4 responses of today, 6 of one and 10 of another backend, older."""
    monkeypatch.setenv("POINTER_RL_CACHE", str(tmp_path / "cache"))
    store = ResponseCache(default_store())
    for age, fingerprint, count in ((100, "vlm-7b", 10), (10, "vlm-3b", 6), (0, "vlm-3b", 4)):
        with monkeypatch.context() as patch:
            patch.setattr(cache_module.time, "time", lambda at=NOW - age * DAY: at)
            store.put(
                fingerprint,
                [
                    (
                        bytes([age, number]) * 16,
                        Response(f"text {number}", (-0.5, -math.inf), Usage(7, 2, 1)),
                    )
                    for number in range(count)
                ],
            )
    return store


def one_line(result, *parts):
    assert result.exit_code == 2, result.output
    assert result.output.startswith("pointer-rl: error: ")
    assert len(result.output.strip().splitlines()) == 1
    for part in parts:
        assert part in result.output


def entries(store):
    return [each.responses for each in store.summaries()]


def date(days):
    return time.strftime("%Y-%m-%d", time.gmtime(NOW - days * DAY))


def test_info_has_file_size_and_backends(cli, store):
    result = cli("cache", "info")
    assert result.exit_code == 0
    first, _, header, _, *rows = result.stdout.splitlines()
    assert first.startswith(f"{store.path}: ")
    assert first.endswith(" kB, 20 responses")
    assert header.split()[-1] == "backend"
    assert [row.split()[0] for row in rows] == ["10", "10"]
    assert [row.split()[-1] for row in rows] == ["vlm-3b", "vlm-7b"]
    assert date(10) in rows[0]
    assert date(0) in rows[0]
    assert rows[1].count(date(100)) == 2


def test_info_of_an_empty_store_and_of_a_named_one(cli, tmp_path):
    path = tmp_path / "other.sqlite"
    ResponseCache(path).close()
    result = cli("cache", "info", "--store", str(path))
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{path}: ")
    assert result.stdout.endswith("0 responses\n")


@pytest.mark.parametrize("time", [10**18, 1.5, "soon", b"\xff", "9" * 100])
def test_absurd_times_are_shown_as_unknown(cli, store, time):
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE responses SET created = ?", (time,))
    connection.close()
    result = cli("cache", "info")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].split()[-3:] == ["?", "?", "vlm-7b"]


@pytest.mark.parametrize(
    ("criteria", "left"),
    [
        (("--fingerprint", "vlm-3b"), [10]),
        (("--fingerprint", "vlm-7"), [10]),
        (("--older-than", "5"), [4]),
        (("--older-than", "50"), [10]),
        (("--older-than", "0.5", "--fingerprint", "vlm-3b"), [4, 10]),
        (("--all",), []),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_prune_removes_what_is_named_and_says_how_many(cli, store, criteria, left):
    result = cli("cache", "prune", *criteria)
    assert result.exit_code == 0, result.output
    assert f"{20 - sum(left)} responses removed, {sum(left)} left" in result.stdout
    assert entries(store) == left


def test_pruning_gives_the_disk_back(cli, store):
    text = "a long answer " * 100
    store.put("long", [(bytes([n]) * 32, Response(text)) for n in range(150, 250)])
    assert store.size() > 100 * len(text)
    assert cli("cache", "prune", "--fingerprint", "long").exit_code == 0
    assert store.size() < 50 * len(text)


@pytest.mark.parametrize(
    "criteria",
    [(), ("--all", "--older-than", "5"), ("--all", "--fingerprint", "vlm-3b")],
    ids=lambda value: " ".join(value) or "none",
)
def test_prune_wants_a_criterion_that_makes_sense(cli, store, criteria):
    result = cli("cache", "prune", *criteria)
    assert result.exit_code == 2
    assert "say which" in result.output
    assert entries(store) == [10, 10]


@pytest.mark.parametrize(
    ("fingerprint", "says"),
    [
        ("vlm", "2 fingerprints begin so (the cache has vlm-3b, vlm-7b)"),
        ("other", "no fingerprint begins so (the cache has vlm-3b, vlm-7b)"),
        ("", "--fingerprint is empty"),
    ],
)
def test_prune_removes_nothing_when_it_is_not_clear_whose(cli, store, fingerprint, says):
    one_line(cli("cache", "prune", "--fingerprint", fingerprint), says)
    assert entries(store) == [10, 10]


def test_an_age_is_a_number(cli, store):
    result = cli("cache", "prune", "--older-than", "nan")
    assert result.exit_code == 2
    assert "nan is not a finite number" in result.output
    assert entries(store) == [10, 10]


def test_an_export_does_not_replace_the_cache(cli, store):
    path = str(default_store())
    one_line(cli("cache", "export", path, "--overwrite"), "is the response cache itself")
    assert entries(store) == [10, 10]


def test_export_is_a_response_a_line(cli, store, tmp_path):
    target = tmp_path / "new" / "responses.jsonl"
    result = cli("cache", "export", str(target))
    assert result.exit_code == 0, result.output
    assert result.stdout == f"wrote {target}: 20 responses\n"
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert len({line["key"] for line in lines}) == 20
    [line] = [each for each in lines if each["key"] == (bytes([100, 3]) * 16).hex()]
    assert line.pop("created") == time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW - 100 * DAY))
    assert line == {
        "key": "6403" * 16,
        "backend": "vlm-7b",
        "text": "text 3",
        "score_logprobs": [-0.5, None],
        "prompt_tokens": 7,
        "generated_tokens": 2,
        "images": 1,
    }


def test_export_replaces_only_when_told_and_leaves_nothing_half_written(cli, store, tmp_path):
    target = tmp_path / "responses.jsonl"
    target.write_text("mine")
    one_line(cli("cache", "export", str(target)), str(target), "exists", "--overwrite")
    assert target.read_text() == "mine"
    assert cli("cache", "export", str(target), "--overwrite").exit_code == 0
    assert len(target.read_text().splitlines()) == 20
    one_line(cli("cache", "export", str(target / "x.jsonl")), "x.jsonl", "cannot be written")
    one_line(cli("cache", "export", str(tmp_path), "--overwrite"), "is a folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "responses.jsonl"]


@pytest.mark.parametrize("command", ["info", "prune", "export"])
@pytest.mark.parametrize("kind", ["missing", "foreign", "text", "damaged", "folder"])
def test_what_is_no_store_is_one_line_and_stays_as_it_is(cli, store, tmp_path, command, kind):
    path = tmp_path / "file"
    if kind == "foreign":
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE responses (mine)")
        connection.close()
    elif kind == "text":
        path.write_text("not a database at all " * 100)
    elif kind == "damaged":
        store.close()
        data = bytearray(default_store().read_bytes())
        data[4096:8192] = bytes(4096)
        path.write_bytes(data)
    elif kind == "folder":
        path.mkdir()
    before = path.read_bytes() if path.is_file() else None
    arguments = {"info": (), "prune": ("--all",), "export": (str(tmp_path / "out.jsonl"),)}
    one_line(cli("cache", command, *arguments[command], "--store", str(path)), str(path))
    assert (path.read_bytes() if path.is_file() else None) == before
    assert path.exists() == (kind != "missing")
    assert not (tmp_path / "out.jsonl").exists()


def test_it_imports_no_torch(store, tmp_path):
    store.close()
    code = (
        "import sys\n"
        "from pointer_rl.cli.main import cli\n"
        "try:\n    cli(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert 'torch' not in sys.modules"
    )
    for args in (("info",), ("export", str(tmp_path / "out.jsonl")), ("prune", "--all")):
        command = [sys.executable, "-c", code, "cache", *args]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
