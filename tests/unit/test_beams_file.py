"""Beam data: the writer, the reader, and Lever-LM's layout."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointer_rl.errors import InputError
from pointer_rl.records.beams import Beam, BeamRecord, BeamWriter, stream_beams
from pointer_rl.validate import validate_file

numbers = st.floats(-1e6, 1e6)
beams = st.builds(
    Beam,
    pointer=st.lists(st.integers(0, 2**40), max_size=4).map(tuple),
    score=numbers,
    step_scores=st.lists(numbers, max_size=4).map(tuple),
)
records = st.builds(
    BeamRecord,
    query_id=st.text(min_size=1).filter(lambda key: key[0] != "_"),
    query=st.dictionaries(st.text(), st.integers() | st.text()),
    beams=st.lists(beams, max_size=3).map(tuple),
    pool=st.none() | st.lists(st.integers(0, 99)).map(tuple),
)
GOOD = {"pointer": [3, 1], "score": 1.5, "step_scores": [1.0, 0.5]}


def write(path, content):
    path.write_text(json.dumps(content))
    return path


# --- our own layout ---


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@given(st.lists(records, max_size=4, unique_by=lambda record: record.query_id))
def test_what_is_written_is_read_back(tmp_path_factory, suffix, given_records):
    path = tmp_path_factory.mktemp("data") / f"beams{suffix}"
    with BeamWriter(path, {"seed": 0}) as writer:
        for each in given_records:
            writer.add(each.query_id, each.query, each.beams, each.pool)
    assert list(stream_beams(path)) == given_records


def test_the_format_is_the_documented_one(tmp_path):
    path = tmp_path / "beams.json"
    with BeamWriter(path, {"seed": 0}) as writer:
        writer.add("a", {"row": 4}, [Beam((3, 1), 1.5, (1.0, 0.5))], [1, 3, 7])
        writer.add("b", {}, [], None)
    assert json.loads(path.read_text()) == {
        "_meta": {"seed": 0},
        "a": {"query": {"row": 4}, "beams": [GOOD], "pool": [1, 3, 7]},
        "b": {"query": {}, "beams": []},
    }


def test_an_existing_file_is_replaced_only_when_asked(tmp_path):
    path = tmp_path / "beams.json"
    path.write_text("before")
    with pytest.raises(InputError, match=r"beams\.json: exists"):
        BeamWriter(path)
    with BeamWriter(path, overwrite=True) as writer:
        writer.add("a", {}, [])
        assert path.read_text() == "before"
    assert [each.query_id for each in stream_beams(path)] == ["a"]


def _write_and_raise(writer):
    with writer:
        writer.add("a", {}, [])
        raise KeyboardInterrupt


def test_an_interrupt_keeps_what_is_done(tmp_path):
    path = tmp_path / "beams.json"
    with pytest.raises(KeyboardInterrupt):
        _write_and_raise(BeamWriter(path))
    assert [each.query_id for each in stream_beams(path)] == ["a"]
    BeamWriter(tmp_path / "other.json").discard()
    assert [each.name for each in tmp_path.iterdir()] == ["beams.json"]


@pytest.mark.parametrize("beam", [Beam((1,), math.nan, ()), Beam((1,), 1.0, (math.inf,))])
def test_scores_that_are_not_finite_are_not_written(tmp_path, beam):
    with (
        pytest.raises(ValueError, match="InfoScores are finite"),
        BeamWriter(tmp_path / "x.json") as writer,
    ):
        writer.add("a", {}, [beam])
    assert list(tmp_path.iterdir()) == []


# --- Lever-LM's ---


def test_lever_lms_layout_is_read(tmp_path):
    path = write(
        tmp_path / "lever.json",
        {
            "_stats": 1,
            "17": {"id_list": [[3, 1, 17], [5, 3, 17]], "score_list": [0.5, 2], "few_shot_num": 2},
            "18": {"id_list": [], "score_list": []},
            "19": {
                "id_list": [[2, 19]],
                "score_list": [-1.5],
                "beams": [{"shots": [2]}],
                "query": {"question": "What?"},
            },
        },
    )
    assert list(stream_beams(path)) == [
        BeamRecord("17", {"row": 17}, (Beam((3, 1), 0.5, ()), Beam((5, 3), 2.0, ())), None),
        BeamRecord("18", {}, (), None),
        BeamRecord("19", {"question": "What?", "row": 19}, (Beam((2,), -1.5, ()),), None),
    ]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"id_list": [[1, 17]], "score_list": []}, "no lists of the same length"),
        ({"id_list": [[1, 17], [2, 18]], "score_list": [1, 2]}, "do not all end with the query's"),
        ({"id_list": [[]], "score_list": [1]}, "do not all end with the query's"),
        ({"id_list": [["a", 17]], "score_list": [1]}, "id_list 0 is no list of rows"),
        ({"id_list": [[1, 17]], "score_list": ["x"]}, "beam 0: score and step_scores are no"),
        ({"id_list": [[1, 17]], "score_list": [1], "query": {"row": 3}}, "row is 17 by id_list"),
        ({"beams": [{"shots": [1, 2]}]}, "without id_list: the order"),
        ({"beams": 3}, "beams is no list of objects"),
        ({"beams": [3]}, "beams is no list of objects"),
        ({"beams": [{"pointer": [1.5], "score": 1}]}, "beam 0: pointer is no list of rows"),
        ({"beams": [{"pointer": [-1], "score": 1}]}, "beam 0: pointer is no list of rows"),
        ({"beams": [{"pointer": [1]}]}, "beam 0: score and step_scores are no"),
        ({"beams": [{**GOOD, "score": 10**400}]}, "beam 0: score and step_scores are no"),
        ({"beams": [{**GOOD, "step_scores": 1}]}, "beam 0: score and step_scores are no"),
        ({"beams": [GOOD], "pool": ["a"]}, "pool is no list of rows"),
        ({"pointer_candidates": []}, "this is no beam data"),
        ([], "this is no beam data"),
    ],
)
def test_what_is_no_beam_data_is_said_in_a_line(tmp_path, record, message):
    path = write(tmp_path / "x.json", {"good": {"beams": [GOOD]}, "17": record})
    with pytest.raises(InputError) as caught:
        list(stream_beams(path))
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: query '17': ")
    assert "\n" not in str(caught.value)


def test_a_score_too_large_for_a_float_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": {"beams": [{"pointer": [1], "score": 1e999}]}}')
    with pytest.raises(InputError, match="no finite numbers"):
        list(stream_beams(path))


# --- validating ---


def test_what_the_writer_writes_is_valid(tmp_path):
    path = tmp_path / "beams.jsonl"
    with BeamWriter(path, {"schema_version": "1.0"}) as writer:
        writer.add("a", {"row": 4}, [Beam((3, 1), 1.5, (1.0, 0.5)), Beam((3,), 1, ())], [1, 3, 7])
        writer.add("b", {}, [])
    report = validate_file(path)
    assert (report.num_findings, report.queries, report.candidates) == (0, 2, {"beam": 2})
    assert report.notes == ["beam data: its form is checked, not its rows"]


@pytest.mark.parametrize(
    ("record", "pointer"),
    [
        ({"beams": 3}, "/a/beams"),
        ({"beams": [{"score": 1}]}, "/a/beams/0"),
        ({"beams": [{**GOOD, "pointer": [1, 1]}]}, "/a/beams/0/pointer"),
        ({"beams": [{**GOOD, "pointer": []}]}, "/a/beams/0/pointer"),
        ({"beams": [{**GOOD, "score": None}]}, "/a/beams/0/score"),
        ({"beams": [{**GOOD, "step_scores": ["x"]}]}, "/a/beams/0/step_scores/0"),
        ({"beams": [GOOD], "pool": [1, 1]}, "/a/pool"),
        ({"beams": [GOOD], "excluded": [-1]}, "/a/excluded/0"),
        ({"beams": [GOOD], "query": 3}, "/a/query"),
    ],
)
def test_what_is_not_valid_is_found(tmp_path, record, pointer):
    (finding,) = validate_file(write(tmp_path / "x.json", {"a": record})).findings
    assert finding.pointer == pointer


def test_beam_data_among_rl_data_is_found(tmp_path):
    content = {"a": {"pointer_candidates": []}, "b": {"beams": [GOOD]}}
    (finding,) = validate_file(write(tmp_path / "x.json", content)).findings
    assert (finding.rule, finding.pointer) == ("layout", "/b")
    assert "files of their own" in finding.fix
