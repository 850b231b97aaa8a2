"""`pointer-rl merge`: shards give the file of one machine; other files of one run follow."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointer_rl.errors import InputError
from pointer_rl.records.formats import open_writer, stream_records
from pointer_rl.records.merge import merge_files
from pointer_rl.records.shards import Shard
from pointer_rl.records.writer import RecordWriter

META = {
    **{"schema_version": "1.0", "dataset": {"name": "d", "num_queries": 7}, "seed": 1},
    "window": 1,
}


NULL = dict.fromkeys(("beam_rank", "beam_score", "logprob_score", "temperature"))


def record(row):
    candidate = {"pointer": [row], "gen_method": "x", **NULL, "score": row / 3}
    return {"pointer_candidates": [candidate]}


def write(path, meta, rows):
    with open_writer(path, meta) as writer:
        for row in rows:
            writer.write(f"q{row}", record(row))
    return path


def shards(folder, queries, total, suffix=".json", meta=META):
    return [
        write(
            folder / f"rl.{number}{suffix}",
            {**meta, "shard": f"{number}/{total}"},
            Shard(number, total).rows(queries, meta["window"]),
        )
        for number in range(1, total + 1)
    ]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(result, *parts):
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("pointer-rl: error: ")
    assert result.stderr.count("\n") == 1
    for part in parts:
        assert part in result.stderr


@settings(max_examples=25)
@given(
    queries=st.integers(1, 9),
    total=st.integers(1, 5),
    window=st.integers(1, 4),
    suffix=st.sampled_from([".json", ".jsonl", ".parquet"]),
    target=st.sampled_from([".json", ".jsonl"]),
    data=st.data(),
)
def test_shards_give_the_bytes_of_the_run_without_shards(
    tmp_path_factory, queries, total, window, suffix, target, data
):
    folder = tmp_path_factory.mktemp("data")
    meta = META | {"window": window}
    whole = write(folder / f"whole{target}", meta, range(queries))
    files = data.draw(st.permutations(shards(folder, queries, total, suffix, meta)))
    merge_files(files, folder / f"merged{target}")
    assert (folder / f"merged{target}").read_bytes() == whole.read_bytes()


def test_the_command_says_what_it_joined(folder, cli):
    shards(folder, 7, 2)
    result = cli("merge", "rl.2.json", "rl.1.json", "--output-path", "all.json")
    assert result.exit_code == 0, result.output
    assert result.output == "2 files: RL data, 7 queries, 7 candidates\nwrote all.json\n"
    assert cli("validate", "all.json", "--pool-size", "9").exit_code == 1  # no outcomes; but read


def test_files_that_are_no_shards_follow_one_another(folder, cli):
    write(folder / "a.json", META, [5, 1])
    write(folder / "b.jsonl", META, [9, 5, 0])
    result = cli("merge", "b.jsonl", "a.json", "--output-path", "all.jsonl")
    assert result.exit_code == 0, result.output
    assert "2 files: RL data, 4 queries, 4 candidates\n" in result.output
    assert "in more than one file, equal, and kept once: 1 query\n" in result.output
    keys = [key for key, _ in stream_records(folder / "all.jsonl")]
    assert keys == ["_meta", "q9", "q5", "q0", "q1"]


def test_files_without_meta_are_joined(folder, cli):
    for name, row in (("a.json", 1), ("b.json", 2)):
        write(folder / name, None, [row])
    assert cli("merge", "a.json", "b.json", "--output-path", "c.json").exit_code == 0
    assert [key for key, _ in stream_records(folder / "c.json")] == ["q1", "q2"]


def test_a_shard_that_was_ended_early_is_named_and_order_is_kept(folder, cli):
    shards(folder, 7, 3)
    write(folder / "rl.1.json", {**META, "shard": "1/3"}, [0])
    result = cli("merge", "rl.1.json", "rl.2.json", "rl.3.json", "--output-path", "all.json")
    assert "note: rl.1.json has 1 of its 3 queries: it was ended early" in result.output
    keys = [key for key, _ in stream_records(folder / "all.json")][1:]
    assert keys == ["q0", "q1", "q2", "q4", "q5"]


def test_a_complete_shard_is_not_said_to_have_been_ended_early(folder, cli):
    shards(folder, 7, 3)
    assert "ended early" not in cli("validate", "rl.1.json").output
    write(folder / "rl.1.json", {**META, "shard": "1/3"}, [0])
    assert "1 of 3 queries: the run was ended early" in cli("validate", "rl.1.json").output


def test_windows_are_counted_in_queries(folder, cli):
    meta = META | {"window": 2}
    shards(folder, 7, 2, meta=meta)
    content = json.loads((folder / "rl.1.json").read_text())
    aside = {"_meta": content.pop("_meta"), "_aside": 1, **content}
    (folder / "rl.1.json").write_text(json.dumps(aside))
    result = cli("merge", "rl.1.json", "rl.2.json", "--output-path", "all.json")
    assert result.exit_code == 0, result.output
    keys = [key for key, _ in stream_records(folder / "all.json") if not key.startswith("_")]
    assert keys == [f"q{row}" for row in range(7)]


def test_what_is_no_query_is_kept_once(folder, cli):
    for name in ("a.json", "b.json"):
        (folder / name).write_text(json.dumps({"_stats": [1], name: record(1)}))
    result = cli("merge", "a.json", "b.json", "--output-path", "c.json")
    assert result.exit_code == 0
    assert "kept once" not in result.output
    assert list(json.loads((folder / "c.json").read_text())) == ["_stats", "a.json", "b.json"]


# --- what is refused ---


def other(path, meta=META, **changes):
    path.write_text(json.dumps({"_meta": meta, **changes}))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"a": {"q1": record(1), "q2": record(2)}, "b": {"q1": record(3), "q2": record(4)}},
            "b.json: 'q1' differs from that in a.json (2 such queries in all); keep one",
        ),
        ({"a": {"q": record(1)}, "b": {"q": {"beams": []}}}, "b.json: 'q' differs from"),
        (
            {"a": {"q": record(1)}, "b": {"r": {"beams": []}}},
            "b.json: 'r': RL data and beam data in one file",
        ),
        ({"a": {"q": {"pointer_candidates": 3}}}, "a.json: 'q': pointer_candidates is not a list"),
        ({"a": {}}, "no query in these files"),
        (
            {
                "a": {"q": record(1)},
                "b": {"_meta": {**META, "seed": 2, "x": 1, "dataset": {"name": "e"}}},
            },
            "b.json: its _meta is not a.json's, it differs in dataset.name, dataset.num_queries, "
            "seed, x: merge files of one run",
        ),
        ({"a": {}, "b": {"_meta": None}}, "b.json: no _meta, unlike the others"),
        ({"a": {"_meta": None}, "b": {}}, "a.json: no _meta, unlike the others"),
        (
            {"a": {"_meta": {**META, "shard": "1/4"}}, "b": {"_meta": {**META, "shard": "3/4"}}},
            "missing: shard 2/4, 4/4; name all shards of the run",
        ),
        (
            {"a": {"_meta": {**META, "shard": "1/2"}}, "b": {"_meta": {**META, "shard": "1/2"}}},
            "b.json: shard 1/2, as a.json is: name each shard once",
        ),
        (
            {"a": {"_meta": {**META, "shard": "1/2"}}, "b": {"_meta": {**META, "shard": "2/3"}}},
            "b.json: shard 2/3, where others are of 2",
        ),
        (
            {"a": {"_meta": {**META, "shard": "1/1"}}, "b": {}},
            "b.json: no shard, unlike a.json",
        ),
    ],
)
def test_what_is_not_of_one_run_leaves_no_file(folder, cli, files, message):
    for name, content in files.items():
        content = {"_meta": META, **content}
        (folder / f"{name}.json").write_text(
            json.dumps({key: value for key, value in content.items() if value is not None})
        )
    names = [f"{name}.json" for name in files]
    refused(cli("merge", *names, "--output-path", "all.json"), message)
    assert sorted(each.name for each in folder.iterdir()) == names


def test_a_query_twice_in_one_file_is_refused(folder, cli):
    text = json.dumps(record(1))
    (folder / "a.json").write_text(f'{{"q": {text}, "q": {text}}}')
    refused(cli("merge", "a.json", "--output-path", "b.json"), "a.json: 'q' occurs twice")
    (folder / "a.json").write_text(f'{{"_meta": {{"a": 1}}, "q": {text}, "_meta": {{"a": 2}}}}')
    refused(cli("merge", "a.json", "--output-path", "b.json"), "a.json: '_meta' occurs twice")


def test_names_that_do_not_fit_are_refused(folder, cli):
    write(folder / "a.json", META, [1])
    refused(cli("merge", "a.json", "a.json", "--output-path", "b.json"), "given twice")
    refused(cli("merge", "a.json", "--output-path", "a.json"), "exists; remove it")
    refused(cli("merge", "a.json", "--output-path", "b.txt"), "name a .json, .jsonl or .parquet")
    refused(cli("merge", "none.json", "--output-path", "b.json"), "none.json: cannot read it")
    assert cli("merge", "--output-path", "b.json").exit_code == 2


def test_an_interrupt_leaves_what_was_there(folder, monkeypatch):
    files = shards(folder, 4, 2)
    monkeypatch.setattr(
        RecordWriter, "close", lambda self: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    target = folder / "all.json"
    target.write_text("before")
    original = RecordWriter.write

    def interrupted(self, key, value):
        original(self, key, value)
        raise KeyboardInterrupt

    monkeypatch.setattr(RecordWriter, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        merge_files(files, target, overwrite=True)
    assert target.read_text() == "before"
    assert len(list(folder.iterdir())) == 3


def test_the_library_raises_what_the_command_prints(folder):
    with pytest.raises(InputError, match="missing: shard 2/2"):
        merge_files(shards(folder, 4, 2)[:1], folder / "all.json")


def test_merging_imports_no_torch(folder):
    shards(folder, 4, 2)
    code = (
        "import sys\n"
        "from pointer_rl.cli.main import cli\n"
        "try:\n    cli(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = [name for name in ('torch', 'transformers', 'numpy') if name in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    for args in (["merge", "rl.1.json", "rl.2.json", "--output-path", "x.json"], ["schema"]):
        done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr + done.stdout
