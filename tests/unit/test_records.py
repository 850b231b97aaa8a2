"""RL data in memory and on disk."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointer_rl.datasets.images import ImageBytes
from pointer_rl.errors import InputError
from pointer_rl.records.formats import FORMATS, open_writer, read_meta, stream_records
from pointer_rl.records.layouts import detect_layout
from pointer_rl.records.records import from_record, to_record
from pointer_rl.types import Candidate, Example, Outcome

QUERY = Example("q/1", 4, ImageBytes(b"", "none"), "What?", ("Yes", "yes"), 11, "i1")
RECORD = {"pointer_candidates": []}
JUDGED = [
    (Candidate((7, 22), "beam", 0, 2.5, -1.5), Outcome("a", "a", False, 0.0, 0.5, 0.25)),
    (Candidate((1,), "sample", None, None, -2.0, 1.0, 0.9, 0.5), Outcome(failure="timeout")),
]

numbers = st.floats(-1e6, 1e6)
candidates = st.builds(
    Candidate,
    pointer=st.lists(st.integers(0, 2**40), max_size=4, unique=True).map(tuple),
    gen_method=st.text(min_size=1, max_size=6),
    beam_rank=st.none() | st.integers(0, 9),
    beam_score=st.none() | numbers,
    logprob_score=st.none() | st.floats(-1e3, 0),
    temperature=st.none() | st.floats(0.1, 3),
    top_p=st.none() | st.floats(0.1, 1),
    similarity_score=st.none() | numbers,
)
outcomes = st.one_of(
    st.builds(Outcome, failure=st.text()),
    st.builds(
        Outcome,
        raw_generation=st.none() | st.text(),
        answer=st.text(),
        correct=st.booleans(),
        accuracy=st.floats(0, 1),
        gt_prob=st.none() | st.floats(0, 1),
        rel_score=st.none() | st.floats(0, 1),
    ),
)


# --- to and from records ---


@settings(deadline=None)
@given(st.lists(st.tuples(candidates, outcomes), max_size=4))
def test_a_record_holds_everything_about_its_candidates(judged):
    record = json.loads(json.dumps(to_record(QUERY, judged), allow_nan=False))
    assert from_record(record) == judged


def test_a_judged_candidate_is_written_as_in_the_seed_format():
    candidate = Candidate((7, 22), "beam", beam_rank=0, beam_score=2.13, logprob_score=-1.56)
    outcome = Outcome(answer="a book", correct=True, accuracy=1.0)
    record = to_record(QUERY, [(candidate, outcome)])
    assert json.dumps(record["pointer_candidates"]) == (
        '[{"pointer": [7, 22], "gen_method": "beam", "beam_rank": 0, "beam_score": 2.13, '
        '"logprob_score": -1.56, "temperature": null, "vqa_pred_answer": "a book", '
        '"vqa_correct": 1, "vqa_acc_score": 1.0}]'
    )


def test_fields_that_the_seed_format_lacks_come_after_it():
    candidate = Candidate((1,), "sample", temperature=1.0, top_p=0.9, similarity_score=0.5)
    outcome = Outcome("a book Question", "a book", False, 0.0, gt_prob=0.25, rel_score=0.5)
    (value,) = to_record(QUERY, [(candidate, outcome)])["pointer_candidates"]
    assert list(value)[9:] == [
        *("top_p", "similarity_score", "vqa_raw_generation", "vqa_gt_prob", "vqa_rel_score"),
    ]


def test_a_failed_evaluation_has_no_outcome():
    failed = (Candidate((1,), "random"), Outcome(failure="timeout"))
    (value,) = to_record(QUERY, [failed])["pointer_candidates"]
    assert list(value)[6:] == ["eval_failed", "eval_error"]
    assert (value["eval_failed"], value["eval_error"]) == (True, "timeout")


def test_a_candidate_that_was_never_judged_has_an_empty_outcome():
    values = [{"pointer": [], "gen_method": "x"}, {"pointer": [1], "gen_method": "x"}]
    (shown, outcome), (_, failed) = from_record(
        {"pointer_candidates": [values[0], {**values[1], "eval_failed": True, "eval_error": None}]}
    )
    assert (shown.pointer, outcome) == ((), Outcome())
    assert failed == Outcome(failure="unknown")


def test_the_query_is_described():
    assert to_record(QUERY, [], normalise=str.lower)["query"] == {
        "query_id": "q/1",
        "question_id": 11,
        "image_id": "i1",
        "row": 4,
        "question": "What?",
        "gt_answers_raw": ["Yes", "yes"],
        "gt_answers_norm": ["yes", "yes"],
    }
    assert "gt_answers_norm" not in to_record(QUERY, [])["query"]


def test_rows_written_as_floats_are_read_as_rows():
    value = {"pointer": [7.0], "gen_method": "x", "eval_failed": True}
    ((candidate, _),) = from_record({"pointer_candidates": [value]})
    assert candidate.pointer == (7,)
    assert isinstance(candidate.pointer[0], int)


# --- writing ---


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@settings(max_examples=40, deadline=None)  # fsync takes what it takes
@given(
    data=st.dictionaries(
        st.text(min_size=1).filter(lambda key: key[0] != "_"),
        st.dictionaries(
            st.text().filter(lambda key: key != "query_id"),
            st.integers() | st.text() | st.lists(st.booleans()),
        ),
        max_size=5,
    ),
    meta=st.none() | st.dictionaries(st.text(), st.integers()),
)
def test_what_is_written_is_read_back(tmp_path_factory, suffix, data, meta):
    path = tmp_path_factory.mktemp("data") / f"rl{suffix}"
    with open_writer(path, meta) as writer:
        for key, record in data.items():
            writer.write(key, record)
    expected = list(data.items())
    assert list(stream_records(path)) == ([] if meta is None else [("_meta", meta)]) + expected
    assert read_meta(path) == meta
    if suffix == ".json":
        assert json.loads(path.read_text("utf-8")) == dict(stream_records(path))


def test_a_record_is_a_line(tmp_path):
    path = tmp_path / "rl.json"
    with open_writer(path, {"seed": 0}) as writer:
        writer.write("é", RECORD)
        writer.write("b", RECORD)
    assert path.read_bytes().decode() == (
        '{\n"_meta": {"seed": 0},\n"é": {"pointer_candidates": []},\n'
        '"b": {"pointer_candidates": []}\n}\n'
    )
    assert [each.name for each in tmp_path.iterdir()] == ["rl.json"]


def test_half_a_surrogate_pair_survives(tmp_path):
    path = tmp_path / "rl.json"
    with open_writer(path) as writer:
        writer.write("q", {"raw": "\ud83d"})
    assert dict(stream_records(path)) == {"q": {"raw": "\ud83d"}}


def test_nothing_appears_before_it_is_whole(tmp_path):
    path = tmp_path / "rl.json"
    path.write_text("before")
    writer = open_writer(path)
    writer.write("q", RECORD)
    assert path.read_text() == "before"
    writer.close()
    writer.close()
    assert dict(stream_records(path)) == {"q": RECORD}


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("suffix", FORMATS)
def test_an_exception_leaves_what_was_there(tmp_path, suffix, error):
    path = tmp_path / f"rl{suffix}"
    path.write_text("before")

    def write():
        with open_writer(path, {"seed": 1}) as writer:
            writer.write("q", RECORD)
            raise error

    with pytest.raises(error):
        write()
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [(path.name, "before")]


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_container_holds_the_same_records(tmp_path, suffix):
    """With candidates of every kind, an empty pointer among them."""
    path = tmp_path / f"rl{suffix}"
    record = to_record(QUERY, [(Candidate((), "zero"), Outcome(None, "x", True, 1.0)), *JUDGED])
    with open_writer(path, {"seed": 1}) as writer:
        writer.write("q/1", record)
        writer.write_encoded("q/2", json.dumps(record).encode())
    assert list(stream_records(path)) == [("_meta", {"seed": 1}), ("q/1", record), ("q/2", record)]
    assert json.dumps(dict(stream_records(path))["q/1"]) == json.dumps(record)
    assert read_meta(path) == {"seed": 1}


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_query_that_occurs_twice_is_refused(tmp_path, suffix):
    path = tmp_path / f"rl{suffix}"
    with open_writer(path) as writer:
        writer.write("q", RECORD)
        writer.write("q", RECORD)
    with pytest.raises(InputError, match=f"rl{suffix}: 'q' occurs twice; keep one of them"):
        list(stream_records(path))


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"name a \.json, \.jsonl or \.parquet file to write"):
        open_writer(tmp_path / "rl.csv")


def test_missing_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "rl.json"
    open_writer(path).close()
    assert json.loads(path.read_text()) == {}


def test_a_folder_that_cannot_be_written_is_found_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"rl\.json: cannot be written"):
        open_writer(tmp_path / "file" / "rl.json")
    with pytest.raises(InputError, match="is a folder"):
        open_writer(tmp_path)


@pytest.mark.parametrize("key", ["_q", ""])
def test_an_id_that_would_be_no_query_is_refused(tmp_path, key):
    with pytest.raises(InputError, match="another id"), open_writer(tmp_path / "x.json") as writer:
        writer.write(key, RECORD)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"rl{suffix}"
    path.write_text("before")
    writer = open_writer(path)
    writer.write("q", RECORD)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pointer_rl.files.os.fsync", full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left"):
        writer.close()
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [(path.name, "before")]


@pytest.mark.parametrize("suffix", FORMATS)
def test_nan_in_meta_leaves_no_file(tmp_path, suffix):
    with pytest.raises(ValueError, match="JSON"):
        open_writer(tmp_path / f"x{suffix}", {"seed": math.nan})
    assert list(tmp_path.iterdir()) == []


def test_nan_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON"), open_writer(tmp_path / "x.json") as writer:
        writer.write("q", {"score": math.nan})
    assert list(tmp_path.iterdir()) == []


# --- _meta and layouts ---


def test_meta_is_found_wherever_it_stands(tmp_path):
    path = tmp_path / "rl.json"
    path.write_text('{"a": {"b": "_meta"}, "c": {}, "_meta": {"seed": 3}}')
    assert read_meta(path) == {"seed": 3}
    path.write_text('{"a": {"_meta": 1}, "c": {}}')
    assert read_meta(path) is None


def test_meta_is_found_across_the_blocks_that_are_searched(tmp_path, monkeypatch):
    monkeypatch.setattr("pointer_rl.records.formats.WINDOW", 4)
    path = tmp_path / "rl.json"
    path.write_text('{"a": {}, "_meta": {"seed": 3}}')
    assert read_meta(path) == {"seed": 3}


CANDIDATE = {"pointer": [1], "gen_method": "beam"}


@pytest.mark.parametrize(
    ("record", "layout"),
    [
        ({"pointer_candidates": [CANDIDATE]}, "pointer_candidates"),
        ({"pointer_candidates": []}, "pointer_candidates"),
        ({"id_list": [[1, 2, 0]], "score_list": [0.5]}, "beam"),
        ({"pointer_candidates": [{**CANDIDATE, "pointer_pos": [1]}]}, "v4"),
        ({"pointer_candidates": [{**CANDIDATE, "pointer_global": [9]}]}, "k64"),
        ({"pointer_candidates": [CANDIDATE], "candidate_pool_ids": [9, 8]}, "k64"),
        (
            {"pointer_candidates": [{**CANDIDATE, "pointer_pos": [1], "pointer_global": [9]}]},
            "k64",
        ),
        ([1], "pointer_candidates"),
        ({"pointer_candidates": 3}, "pointer_candidates"),
    ],
)
def test_layouts_are_told_apart(record, layout):
    assert detect_layout(record) == layout


def test_paths_of_other_kinds_name_themselves(tmp_path: Path):
    with pytest.raises(InputError, match=r"no\.json: cannot read it \(No such file"):
        list(stream_records(tmp_path / "no.json"))
    with pytest.raises(InputError, match="cannot read it"):
        list(stream_records(tmp_path))
