"""The promise of docs/explanation/compatibility.md: files of every version stay readable and valid.

tests/data/versions has, for each version of the schema, small files that follow it and the schema
as it was; `older` has the layouts before the first version. Files are added, never changed. A
Parquet file has the same content as the JSON file of its name.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pointer_rl_schemas
from pointer_rl.records.beam_dataset import BeamDataset
from pointer_rl.records.convert import convert_file
from pointer_rl.records.formats import stream_records
from pointer_rl.validate import ValidationConfig, validate_file

VERSIONS = Path(__file__).parents[1] / "data" / "versions"
STORED = sorted(path for path in VERSIONS.glob("*.*/*") if path.is_file())
PARQUET = [path for path in STORED if path.suffix == ".parquet"]
OLDER = sorted(VERSIONS.glob("older/*.json"))
SCHEMAS = sorted(VERSIONS.glob("*.*/schemas/*.schema.json"))
NAMES = [str(path.relative_to(VERSIONS)) for path in STORED]


def test_every_version_has_files_and_its_schemas():
    versions = {pointer_rl_schemas.version(name) for name in ("pointer_candidates", "beams")}
    assert versions <= {path.parent.name for path in STORED}
    assert versions <= {path.parents[1].name for path in SCHEMAS}
    assert {path.stem for path in OLDER} == {"guide", "v4", "k64", "lever_beams"}


@pytest.mark.parametrize("path", STORED, ids=NAMES)
def test_a_stored_file_is_valid(path):
    report = validate_file(path, ValidationConfig(pool_size=600))
    assert [finding.message for finding in report.findings] == []
    assert report.queries


@pytest.mark.parametrize("path", STORED, ids=NAMES)
def test_a_stored_file_is_read_and_converted_as_it_is(path, tmp_path):
    dataset = BeamDataset(path)
    converted = convert_file(path, tmp_path / "new.jsonl")
    assert not converted.upgraded
    assert list(stream_records(tmp_path / "new.jsonl")) == list(stream_records(path))
    assert BeamDataset(tmp_path / "new.jsonl").rewards.tolist() == dataset.rewards.tolist()


@pytest.mark.parametrize("path", PARQUET, ids=lambda path: path.stem)
def test_parquet_holds_what_its_json_file_holds(path):
    """These have the columns `_keys` and `_rest`, which are not written any more."""
    columns = pyarrow.parquet.read_schema(path).names
    assert {"_keys", "_rest"} <= set(columns)
    found, expected = (list(stream_records(each)) for each in (path, path.with_suffix(".json")))
    assert json.dumps(found) == json.dumps(expected)  # with types of numbers and order of keys


@pytest.mark.parametrize("path", OLDER, ids=lambda path: path.stem)
def test_an_older_layout_is_read_and_what_it_becomes_is_valid(path, tmp_path):
    before = BeamDataset(path)
    convert_file(path, tmp_path / "new.json")
    after = BeamDataset(tmp_path / "new.json")
    assert after.pointers.tolist() == before.pointers.tolist()
    assert after.rewards.tolist() == before.rewards.tolist()
    report = validate_file(tmp_path / "new.json", ValidationConfig(pool_size=600))
    assert report.findings == []


# --- what was valid stays valid ---


def _places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value)
    places = []
    for key, child in children:
        places.append((*path, key))
        if isinstance(child, (dict, list)):
            places += _places(child, (*path, key))
    return places


def _documents(name: str) -> list[Any]:
    examples: list[Any] = pointer_rl_schemas.load(name)["examples"]
    stored = [dict(stream_records(path)) for path in STORED]
    return examples + [each for each in stored if jsonschema_rs.is_valid(_schema(name), each)]


def _schema(name: str) -> Any:
    return pointer_rl_schemas.load(name)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 3),
    st.sampled_from([0.0, 0.5, -0.5, 2.5, "", "beam", "sample", "random", "1.9", "2/3"]),
    st.lists(st.integers(-1, 3), max_size=2),
    st.dictionaries(st.sampled_from(["name", "version"]), st.text(max_size=2), max_size=2),
)


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: str(path.relative_to(VERSIONS)))
@settings(max_examples=150)
@given(data=st.data())
def test_today_accepts_what_an_earlier_schema_accepts(path, data):
    name = path.name.removesuffix(".schema.json")
    earlier, today = (
        jsonschema_rs.Draft202012Validator(each)
        for each in (json.loads(path.read_text()), _schema(name))
    )
    document = copy.deepcopy(data.draw(st.sampled_from(_documents(name))))
    for _ in range(data.draw(st.integers(1, 2))):
        *parents, last = data.draw(st.sampled_from(_places(document)))
        parent = document
        for key in parents:
            parent = parent[key]
        parent[last] = data.draw(VALUES)
    if earlier.is_valid(document):
        assert today.is_valid(document)
