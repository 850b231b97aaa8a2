"""Beam data: records written and read, and Lever-LM's layout."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointer_rl import BeamDataset
from pointer_rl.errors import InputError
from pointer_rl.records.beams import Beam, read_beams, to_beam_record
from pointer_rl.records.formats import open_writer
from pointer_rl.records.layouts import detect_layout, upgrade_record
from pointer_rl.validate import validate_file

numbers = st.floats(-1e6, 1e6)
beams = st.builds(
    Beam,
    pointer=st.lists(st.integers(0, 2**40), max_size=4).map(tuple),
    score=numbers,
    step_scores=st.lists(numbers, max_size=4).map(tuple),
)
GOOD = {"pointer": [3, 1], "score": 1.5, "step_scores": [1.0, 0.5]}


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def upgraded(record):
    return upgrade_record(record, detect_layout(record))


# --- our own layout ---


@given(st.lists(beams, max_size=3))
def test_what_is_written_is_read_back(given_beams):
    record = json.loads(json.dumps(to_beam_record({}, given_beams)))
    assert list(read_beams(upgraded(record))) == given_beams


def test_the_layout_is_the_documented_one():
    beam = Beam((3, 1), 1.5, (1.0, 0.5))
    assert to_beam_record({"row": 4}, [beam], [1, 3, 7], [4]) == {
        "query": {"row": 4},
        "beams": [GOOD],
        "pool": [1, 3, 7],
        "excluded": [4],
    }
    assert to_beam_record({}, []) == {"query": {}, "beams": []}


@pytest.mark.parametrize("beam", [Beam((1,), math.nan, ()), Beam((1,), 1.0, (math.inf,))])
def test_scores_that_are_not_finite_are_not_written(tmp_path, beam):
    with pytest.raises(ValueError, match="JSON"), open_writer(tmp_path / "x.json") as writer:
        writer.write("a", to_beam_record({}, [beam]))
    assert list(tmp_path.iterdir()) == []


# --- Lever-LM's ---


@pytest.mark.parametrize(
    ("record", "query", "expected"),
    [
        (
            {"id_list": [[3, 1, 17], [5, 3, 17]], "score_list": [0.5, 2], "few_shot_num": 2},
            {"row": 17},
            [Beam((3, 1), 0.5, ()), Beam((5, 3), 2.0, ())],
        ),
        ({"id_list": [], "score_list": []}, None, []),
        (
            {
                "id_list": [[2, 19]],
                "score_list": [-1.5],
                "beams": [{"shots": [2]}],
                "query": {"question": "What?"},
            },
            {"question": "What?", "row": 19},
            [Beam((2,), -1.5, ())],
        ),
    ],
)
def test_lever_lms_layout_is_read(record, query, expected):
    record = upgraded(record)
    assert record.get("query") == query
    assert list(read_beams(record)) == expected


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"id_list": [[1, 17]], "score_list": []}, "not lists of the same length"),
        ({"id_list": [[1, 17], [2, 18]], "score_list": [1, 2]}, "do not all end with the query's"),
        ({"id_list": [[]], "score_list": [1]}, "do not all end with the query's"),
        ({"id_list": [["a", 17]], "score_list": [1]}, "id_list 0 is not a list of rows"),
        ({"id_list": [[1, 17]], "score_list": ["x"]}, 'score is "x", not of type number'),
        ({"id_list": [[1, 17]], "score_list": [1], "query": {"row": 3}}, "row is 17 by id_list"),
        ({"beams": [{"shots": [1, 2]}]}, "without id_list: the order"),
        ({"beams": 3}, "beams is not a list of objects"),
        ({"beams": [3]}, "beams is not a list of objects"),
        ({"beams": [{"pointer": [1.5], "score": 1}]}, "an item of pointer is 1.5, not of type"),
        ({"beams": [{"pointer": [-1], "score": 1}]}, "an item of pointer is -1, below 0"),
        ({"beams": [{"pointer": [1]}]}, "score is missing (/beams/0)"),
        ({"beams": [{**GOOD, "score": 10**400}]}, "beam 0: score and step_scores are no"),
        ({"beams": [{**GOOD, "step_scores": 1}]}, "step_scores is 1, not of type array"),
        ({"beams": [GOOD], "pool": ["a"]}, 'an item of pool is "a", not of type integer'),
    ],
)
def test_malformed_beam_data_is_refused_in_a_line(tmp_path, record, message):
    path = write(tmp_path / "x.json", {"good": {"beams": [GOOD]}, "17": record})
    with pytest.raises(InputError) as caught:
        BeamDataset(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: query '17': ")
    assert "\n" not in str(caught.value)


def test_a_score_too_large_for_a_float_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": {"beams": [{"pointer": [1], "score": 1e999}]}}')
    with pytest.raises(InputError, match="score is Infinity, not of type number"):
        BeamDataset(path)


# --- validating ---


def test_what_the_writer_writes_is_valid(tmp_path):
    path = tmp_path / "beams.jsonl"
    found = [Beam((3, 1), 1.5, (1.0, 0.5)), Beam((3,), 1, ())]
    with open_writer(path, {"schema_version": "1.0"}) as writer:
        writer.write("a", to_beam_record({"row": 4}, found, [1, 3, 7]))
        writer.write("b", to_beam_record({}, []))
    report = validate_file(path)
    assert (report.num_findings, report.queries, report.candidates) == (0, 2, {"beam": 2})
    assert report.notes == ["beam data: its form is checked, not its rows"]


@pytest.mark.parametrize(
    ("record", "pointer"),
    [
        ({"beams": 3}, "/a/beams"),
        ({"beams": [{"score": 1}]}, "/a/beams/0"),
        ({"beams": [{**GOOD, "pointer": [1, 1]}]}, "/a/beams/0/pointer"),
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
