"""The definition of the fields, the JSON schemas and the engine's types say the same."""

from __future__ import annotations

import dataclasses

import pytest

import pointer_rl_schemas
from pointer_rl.records.beams import Beam
from pointer_rl.records.fields import BEAM, CANDIDATE, OUTCOME_KEYS, QUERY, RECORDS, Objects
from pointer_rl.types import Candidate, Outcome

RL = pointer_rl_schemas.load("pointer_candidates")["$defs"]
BEAMS = pointer_rl_schemas.load("beams")["$defs"]
JSON_NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def json_types(described, definitions) -> set[str]:
    """The JSON types that a property of a schema accepts."""
    if "$ref" in described:
        return json_types(definitions[described["$ref"].rpartition("/")[2]], definitions)
    if "enum" in described:
        return {JSON_NAMES[type(each)] for each in described["enum"]}
    types = described["type"]
    return {types} if isinstance(types, str) else set(types)


@pytest.mark.parametrize(
    ("fields", "definitions", "name"),
    [(QUERY, RL, "query"), (CANDIDATE, RL, "candidate"), (BEAM, BEAMS, "beam")],
)
def test_the_schema_has_the_same_properties(fields, definitions, name):
    properties = definitions[name]["properties"]
    assert properties.keys() == fields.keys()
    for key, field in fields.items():
        found = json_types(properties[key], definitions)
        if field.type.is_list:
            assert found == {"array"}, key
            found = json_types(properties[key]["items"], definitions)
        if field.presence == "nullable":
            assert "null" in found, key
        if field.presence == "required":
            assert "null" not in found, key
        assert found - {"null"} == set(field.type.json), key


@pytest.mark.parametrize(("kind", "definitions"), [("pointer_candidates", RL), ("beams", BEAMS)])
def test_the_schema_has_the_same_keys_of_a_record(kind, definitions):
    properties = definitions["record"]["properties"]
    assert properties.keys() == RECORDS[kind].keys()
    for key, type_ in RECORDS[kind].items():
        of_one = {"object"} if isinstance(type_, Objects) else set(type_.json)
        expected = {"array"} if type_.is_list else of_one
        assert json_types(properties[key], definitions) == expected, key


def test_the_schema_requires_and_forbids_the_same_fields_of_an_outcome():
    rule = RL["outcome-fields"]
    assert set(rule["then"]["properties"]) == set(OUTCOME_KEYS)
    required = [CANDIDATE[key].key for key in OUTCOME_KEYS if CANDIDATE[key].presence == "required"]
    assert rule["else"]["required"] == required


@pytest.mark.parametrize(("fields", "types"), [(CANDIDATE, (Candidate, Outcome)), (BEAM, (Beam,))])
def test_every_attribute_is_defined_once(fields, types):
    defined = [each.attribute for each in fields.values() if each.attribute is not None]
    assert sorted(defined) == sorted(each.name for one in types for each in dataclasses.fields(one))
