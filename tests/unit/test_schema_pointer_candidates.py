"""The schema: what it accepts and rejects, and that two validators agree on it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pointer_rl_schemas
from pointer_rl.validate.schema import SchemaChecker

SCHEMA = pointer_rl_schemas.load("pointer_candidates")
FAST = jsonschema_rs.Draft202012Validator(SCHEMA)
REFERENCE = jsonschema.Draft202012Validator(SCHEMA)
RECORD = SchemaChecker("pointer_candidates", "record")
META = SchemaChecker("pointer_candidates", "meta")
STORED = Path(__file__).parents[1] / "data" / "versions"

SEED_EXAMPLE = json.loads("""
{
  "query_id": {
    "pointer_candidates": [
      {
        "pointer": [7, 22],
        "gen_method": "beam",
        "beam_rank": 0,
        "beam_score": 2.13,
        "logprob_score": -1.56,
        "temperature": null,
        "vqa_pred_answer": "a book",
        "vqa_correct": 1,
        "vqa_acc_score": 1.0
      },
      {
        "pointer": [5, 18],
        "gen_method": "sample",
        "beam_rank": null,
        "beam_score": null,
        "logprob_score": -2.03,
        "temperature": 1.0,
        "vqa_pred_answer": "a notebook",
        "vqa_correct": 1,
        "vqa_acc_score": 0.9
      },
      {
        "pointer": [3, 9],
        "gen_method": "random",
        "beam_rank": null,
        "beam_score": null,
        "logprob_score": null,
        "temperature": null,
        "vqa_pred_answer": "a phone",
        "vqa_correct": 0,
        "vqa_acc_score": 0.0
      }
    ]
  }
}
""")


def test_it_is_a_draft_2020_12_schema_with_a_version():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert SCHEMA["$id"].endswith(":pointer_candidates:1.0")


def test_every_example_is_valid_and_the_seed_format_is_among_them():
    assert SEED_EXAMPLE in SCHEMA["examples"]
    for example in SCHEMA["examples"]:
        assert FAST.is_valid(example)
        assert REFERENCE.is_valid(example)


def test_every_field_is_described():
    def fields(node: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(node, dict):
            for key, value in node.items():
                if key in ("if", "then", "else", "examples"):
                    continue
                if key == "properties":
                    yield from value.items()
                yield from fields(value)

    undescribed = [
        name
        for name, field in fields(SCHEMA)
        if "description" not in field
        and "description" not in SCHEMA["$defs"].get(field.get("$ref", "").rsplit("/", 1)[-1], {})
    ]
    assert undescribed == []


@pytest.mark.parametrize(
    "candidate",
    [
        {"gen_method": "my_plugin", "beam_rank": 2, "anything": {"goes": [1]}},
        {"gen_method": "retrieval", "similarity_score": 0.5},
        {"gen_method": "random"},
        {"gen_method": "sample", "temperature": 0.7, "logprob_score": 0, "top_p": 0.9},
    ],
)
def test_methods_need_no_more_than_their_own_fields(candidate):
    outcome = {"vqa_pred_answer": "", "vqa_correct": 0, "vqa_acc_score": 0}
    record = {"pointer_candidates": [{"pointer": [0], **candidate, **outcome}]}
    assert FAST.is_valid({"q": record})


def test_a_failed_evaluation_needs_no_outcome():
    failed = {"pointer": [0], "gen_method": "x", "eval_failed": True}
    assert FAST.is_valid({"q": {"pointer_candidates": [failed]}})


def test_keys_that_begin_with_an_underscore_are_no_queries():
    assert FAST.is_valid({"_meta": {"from": "elsewhere"}, "_notes": [1, 2]})
    assert not FAST.is_valid({"notes": [1, 2]})
    assert not FAST.is_valid({"_meta": {"schema_version": "2.0"}})


def _places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value)
    places = []
    for key, child in children:
        places.append((*path, key))
        if isinstance(child, (dict, list)):
            places += _places(child, (*path, key))
    return places


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.sampled_from([0.0, 1.0, 0.5, -0.5, 2.5, 1e-7]),
    st.sampled_from(["", "beam", "sample", "random", "retrieval", "1.3"]),
    st.lists(st.integers(-1, 3), max_size=3),
    st.dictionaries(st.sampled_from(["name", "version"]), st.text(max_size=2), max_size=2),
)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([(n, p) for n, e in enumerate(SCHEMA["examples"]) for p in _places(e)]),
    st.one_of(st.just("delete"), VALUES.map(lambda value: ("replace", value))),
)
def test_two_validators_agree_on_every_changed_example(place, change):
    number, path = place
    document = copy.deepcopy(SCHEMA["examples"][number])
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    if change == "delete":
        del parent[path[-1]]
    else:
        parent[path[-1]] = change[1]
    assert FAST.is_valid(document) == REFERENCE.is_valid(document)
    for key, value in document.items():
        checker = META if key == "_meta" else RECORD
        reported = {(fault.path, fault.rule) for fault in checker.faults(value)}
        assert bool(reported) != REFERENCE.is_valid({key: value})
        assert {path for path, _ in reported} == {
            fault.path for fault in checker.faults(value, limit=0)
        }


def test_the_stored_copies_of_this_version_are_up_to_date():
    for name in ("pointer_candidates", "beams"):
        folder = STORED / pointer_rl_schemas.version(name) / "schemas"
        assert json.loads((folder / f"{name}.schema.json").read_text()) == pointer_rl_schemas.load(
            name
        )


def test_a_pointer_may_be_empty():
    outcome = {"vqa_pred_answer": "", "vqa_correct": 0, "vqa_acc_score": 0}
    candidate = {"pointer": [], "gen_method": "sample", "temperature": 1, "logprob_score": -1}
    assert FAST.is_valid({"q": {"pointer_candidates": [{**candidate, **outcome}]}})
    beams = jsonschema_rs.Draft202012Validator(pointer_rl_schemas.load("beams"))
    assert beams.is_valid({"q": {"beams": [{"pointer": [], "score": 0, "step_scores": []}]}})
