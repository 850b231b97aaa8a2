"""`pointer-rl convert`: older layouts to the current one, and from form to form."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointer_rl import BeamDataset
from pointer_rl.errors import InputError
from pointer_rl.records.convert import convert_file
from pointer_rl.records.formats import open_writer
from pointer_rl.records.writer import RecordWriter

OUTCOME = {"vqa_pred_answer": "x", "vqa_correct": 1, "vqa_acc_score": 1.0}
BEAM = {
    **{"gen_method": "beam", "beam_rank": 0, "beam_score": 2.13, "logprob_score": -1.5},
    **{"temperature": None, **OUTCOME},
}

OLD = {
    "guide": {
        "q": {"pointer_candidates": [{"pointer": [7, 22], **BEAM}]},
    },
    "v4": {
        "_meta": {"made": "then"},
        "q": {
            "query": {"query_id": "q", "question_id": 5},
            "pointer_candidates": [
                {"pointer": [70, 22], "pointer_pos": [1, 0], **BEAM, "vqa_eval_mode": "vqaEval"},
                {
                    "pointer": [22],
                    "pointer_pos": [0],
                    **BEAM,
                    "vqa_correct": 0,
                    "vqa_acc_score": 0.0,
                    "vqa_eval_mode": "error",
                },
            ],
        },
    },
    "k64": {
        "q": {
            "candidate_pool_ids": [40, 30, 20],
            "pointer_candidates": [{"pointer": [2, 0], "pointer_global": [20, 40], **BEAM}],
            "mood": "kept",
        },
    },
    "beam": {
        "17": {
            "id_list": [[3, 1, 17], [5, 3, 17]],
            "score_list": [0.5, 2],
            "beams": [{"shots": [1, 3]}, {"shots": [3, 5]}],
            "few_shot_num": 2,
        },
    },
}
NEW = {
    "guide": OLD["guide"],
    "v4": {
        "_meta": {"made": "then"},
        "q": {
            "query": {"query_id": "q", "question_id": 5},
            "pointer_candidates": [
                {"pointer": [70, 22], **BEAM, "vqa_eval_mode": "vqaEval", "pool_positions": [1, 0]},
                {
                    "pointer": [22],
                    **{key: value for key, value in BEAM.items() if key not in OUTCOME},
                    "vqa_eval_mode": "error",
                    "pool_positions": [0],
                    "eval_failed": True,
                    "failed_outcome": {**OUTCOME, "vqa_correct": 0, "vqa_acc_score": 0.0},
                },
            ],
        },
    },
    "k64": {
        "q": {
            "pointer_candidates": [{"pointer": [20, 40], **BEAM, "pool_positions": [2, 0]}],
            "mood": "kept",
            "pool": [40, 30, 20],
        },
    },
    "beam": {
        "17": {
            "few_shot_num": 2,
            "lever_beams": [{"shots": [1, 3]}, {"shots": [3, 5]}],
            "beams": [
                {"pointer": [3, 1], "score": 0.5, "step_scores": []},
                {"pointer": [5, 3], "score": 2, "step_scores": []},
            ],
            "query": {"row": 17},
            "excluded": [17],
        },
    },
}


@pytest.fixture
def dump(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(content, name="old.json"):
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / name

    return write


# --- upgrading ---


@pytest.mark.parametrize(
    ("layout", "line"),
    [
        ("guide", "RL data, 1 query, 1 candidate; upgraded none"),
        ("v4", "RL data, 1 query, 2 candidates; upgraded 1 from v4"),
        ("k64", "RL data, 1 query, 1 candidate; upgraded 1 from k64"),
        ("beam", "beam data, 1 query, 2 beams; upgraded 1 from beam"),
    ],
)
def test_old_layouts_are_upgraded_and_lose_nothing(dump, cli, layout, line):
    path = dump(OLD[layout])
    result = cli("convert", "old.json", "new.json")
    assert result.exit_code == 0, result.output
    assert result.output == f"old.json: {line}; wrote new.json\n"
    new = path.with_name("new.json")
    assert json.loads(new.read_text()) == NEW[layout]
    assert json.loads(path.read_text()) == OLD[layout]
    assert cli("convert", "new.json", "again.json").exit_code == 0
    assert path.with_name("again.json").read_bytes() == new.read_bytes()
    before, after = BeamDataset(path), BeamDataset(new)
    assert after.pointers.tolist() == before.pointers.tolist()
    assert after.rewards.tolist() == before.rewards.tolist()


@pytest.mark.parametrize("layout", ["guide", "v4", "k64", "beam"])
def test_what_is_upgraded_is_valid(dump, cli, layout):
    dump(OLD[layout])
    assert cli("convert", "old.json", "new.jsonl").exit_code == 0
    result = cli("validate", "new.jsonl")
    assert result.exit_code == 0, result.output
    assert "older layout" not in result.output


def test_a_pool_lists_each_row_once(dump):
    candidates = [{"pointer": [2, 1], **BEAM}]
    path = dump({"q": {"candidate_pool_ids": [4, 4, 3], "pointer_candidates": candidates}})
    convert_file(path, path, overwrite=True)
    record = json.loads(path.read_text())["q"]
    assert record["pool"] == [4, 3]
    assert record["pointer_candidates"][0]["pointer"] == [3, 4]


# --- .json and .jsonl ---

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
files = st.dictionaries(
    st.text(min_size=1).filter(lambda key: key[0] != "_"),
    st.dictionaries(
        st.text().filter(lambda key: key not in ("query_id", "candidate_pool_ids")),
        values,
        max_size=3,
    ).map(lambda others: {**others, "pointer_candidates": [{"pointer": [1], **BEAM}]}),
    min_size=1,
    max_size=4,
)


@given(data=files, meta=st.none() | st.dictionaries(st.text(), values, max_size=3))
def test_there_and_back_gives_the_same_bytes(tmp_path_factory, data, meta):
    folder = tmp_path_factory.mktemp("data")
    with open_writer(folder / "a.json", meta) as writer:
        for key, record in data.items():
            writer.write(key, record)
    convert_file(folder / "a.json", folder / "b.jsonl")
    convert_file(folder / "b.jsonl", folder / "c.json")
    assert (folder / "c.json").read_bytes() == (folder / "a.json").read_bytes()
    lines = (folder / "b.jsonl").read_text("utf-8").split("\n")
    assert len(lines) == len(data) + (meta is not None) + 1


def test_parquet_is_read_and_written_by_the_command(dump, cli):
    path = dump({"_stats": [1], **OLD["k64"], "_meta": {"seed": 1}})
    assert cli("convert", "old.json", "new.parquet").exit_code == 0
    result = cli("convert", "new.parquet", "new.json")
    assert result.output.startswith("new.parquet: RL data, 1 query, 1 candidate; upgraded none")
    new = json.loads(path.with_name("new.json").read_text())
    assert new == {"_stats": [1], **NEW["k64"], "_meta": {"seed": 1}}
    assert BeamDataset(path.with_name("new.parquet")).pointers.tolist() == [[20, 40]]
    assert cli("validate", "new.parquet").exit_code == 0


def test_a_file_may_be_converted_in_place(dump, cli):
    path = dump(OLD["k64"])
    assert cli("convert", "old.json", "old.json", "--overwrite").exit_code == 0
    assert json.loads(path.read_text()) == NEW["k64"]


def test_a_records_own_query_id_gives_way_to_the_lines(dump, cli):
    record = {"query_id": 17, **OLD["guide"]["q"]}
    path = dump({"17": record})
    assert cli("convert", "old.json", "new.jsonl").exit_code == 0
    assert json.loads(path.with_name("new.jsonl").read_text()) == {
        **OLD["guide"]["q"],
        "query_id": "17",
        "query": {"query_id": 17},
    }
    assert cli("convert", "old.json", "new.json").exit_code == 0
    assert json.loads(path.with_name("new.json").read_text()) == {"17": record}
    dump({"17": {**record, "query_id": 18}})
    result = cli("convert", "old.json", "new.jsonl", "--overwrite")
    assert result.exit_code == 2
    assert "'17': its query_id 18 has no place in .jsonl" in result.stderr


def test_what_other_programs_keep_beside_the_queries_stays(dump, cli):
    path = dump({"_stats": [1], **OLD["guide"], "_meta": {"seed": 1}})
    assert cli("convert", "old.json", "new.json").exit_code == 0
    new = json.loads(path.with_name("new.json").read_text())
    assert new == {"_stats": [1], **OLD["guide"], "_meta": {"seed": 1}}
    result = cli("convert", "old.json", "new.jsonl")
    assert result.exit_code == 2
    assert ".jsonl has no line for '_stats'" in result.stderr


# --- what is refused ---


def test_an_existing_file_is_replaced_only_when_asked(dump, cli):
    path = dump(OLD["guide"]).with_name("new.json")
    path.write_text("before")
    result = cli("convert", "old.json", "new.json")
    assert result.exit_code == 2
    assert result.stderr == (
        "pointer-rl: error: new.json: exists; remove it, or give --overwrite\n"
    )
    assert path.read_text() == "before"
    assert cli("convert", "old.json", "new.json", "--overwrite").exit_code == 0
    assert json.loads(path.read_text()) == OLD["guide"]


GOOD = json.dumps(OLD["guide"]["q"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "no query in it"),
        ('{"a": 3}', "'a': neither RL data"),
        ('{"a": {}}', "'a': neither RL data"),
        (f'{{"a": {GOOD}, "a": {GOOD}}}', "'a' occurs twice"),
        (f'{{"a": {GOOD}, "b": {{"beams": []}}}}', "'b': RL data and beam data in one file"),
        (f'{{"a": {GOOD}, "": {GOOD}}}', "query id ''"),
        (f'{{"a": {GOOD}, "_meta": 3}}', "'_meta' is not an object"),
        ('{"a": {"pointer_candidates": [], "x": 1e999}}', "'a' has a number that JSON cannot"),
        ('{"a": {"pointer_candidates": [], "x": NaN}}', "not finite at a/x"),
        (f'{{"a": {GOOD}, "b', "the JSON ends too early"),
        ("[]", "no query in it"),
        (
            '{"a": {"pointer_candidates": [{"pointer": [0], "pointer_global": "x"}]}}',
            "'a': candidate 0: pointer_global is not a list of rows",
        ),
        (
            '{"a": {"pointer_candidates": [{"pointer": [0], "pointer_global": [5]}, '
            '{"pointer": [1]}]}}',
            "'a': candidate 1: positions without pointer_global or candidate_pool_ids",
        ),
        (
            '{"a": {"candidate_pool_ids": [5], "pointer_candidates": [], "pool": [6]}}',
            "'a': candidate_pool_ids and pool differ",
        ),
        (
            '{"a": {"pointer_candidates": '
            '[{"pointer": [0], "pointer_global": [5], "pointer_pos": [1]}]}}',
            "'a': candidate 0: pointer_pos and pointer differ",
        ),
    ],
)
def test_what_cannot_be_converted_leaves_no_file(tmp_path, monkeypatch, cli, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.json").write_text(text)
    result = cli("convert", "old.json", "new.json")
    assert result.exit_code == 2
    assert result.stderr.startswith("pointer-rl: error: old.json: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert [each.name for each in tmp_path.iterdir()] == ["old.json"]


def test_files_that_cannot_be_are_one_line(dump, cli):
    dump(OLD["guide"])
    assert "none.json: cannot read it" in cli("convert", "none.json", "new.json").stderr
    assert "name a .json, .jsonl or .parquet" in cli("convert", "old.json", "new.csv").stderr
    assert cli("convert", "old.json").exit_code == 2


def test_an_interrupt_leaves_what_was_there(dump, monkeypatch):
    path = dump({**OLD["guide"], "r": OLD["guide"]["q"]})
    before = path.read_bytes()
    write = RecordWriter.write

    def interrupted(self, query_id, record):
        if query_id == "r":
            raise KeyboardInterrupt
        write(self, query_id, record)

    monkeypatch.setattr(RecordWriter, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert_file(path, path, overwrite=True)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["old.json"]


def test_the_library_raises_what_the_command_prints(dump):
    with pytest.raises(InputError, match="exists"):
        convert_file(dump(OLD["guide"]), dump(OLD["guide"]))


def test_converting_imports_no_torch(dump):
    dump(OLD["v4"])
    code = (
        "import sys\n"
        "from pointer_rl.cli.main import cli\n"
        "try:\n    cli(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = [name for name in ('torch', 'transformers', 'numpy') if name in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    for args in (["convert", "old.json", "new.jsonl"], ["convert", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr + done.stdout


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_run_writes_any_container_and_converting_it_gives_its_json(world, cli, suffix):
    assert world.generate().exit_code == 0
    expected = world.output.read_bytes()
    world.output = world.folder / f"rl{suffix}"
    assert world.generate().exit_code == 0
    assert cli("validate", str(world.output)).exit_code == 0
    converted = world.folder / "converted.json"
    assert cli("convert", str(world.output), str(converted)).exit_code == 0
    assert converted.read_bytes() == expected
