"""Parquet: what is written is read back to the bit, and columns are what analysts expect."""

from __future__ import annotations

import json
import math

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointer_rl.errors import InputError, MissingExtraError
from pointer_rl.records.convert import convert_file
from pointer_rl.records.parquet import ParquetWriter
from pointer_rl.records.parquet_columns import LAYOUTS, ListOf, Struct
from pointer_rl.records.records import (
    RecordWriter,
    open_writer,
    read_meta,
    stream_members,
    stream_records,
)

# --- any record, there and back ---

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(0, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from(["\ud83d", -0.0, 2.0, 2**53 + 1, 2**63, 5e-324])
)
values = scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.text(max_size=3), scalars)


def objects(kind: Struct) -> st.SearchStrategy:
    """Objects that mostly, but not always, are what the columns are for, keys in any order."""

    def of(kind) -> st.SearchStrategy:
        if isinstance(kind, Struct):
            return objects(kind)
        return st.lists(of(kind.item), max_size=2) if isinstance(kind, ListOf) else scalars

    known = [st.tuples(st.just(key), of(each) | values) for key, each in kind.fields.items()]
    other = st.tuples(st.sampled_from(["", "é", "_keys", "_rest"]), values)
    return st.lists(st.one_of(*known, other), max_size=5).map(dict)


def records(kind: str) -> st.SearchStrategy:
    layout = LAYOUTS[kind]
    member = layout.fields[kind].item
    return st.builds(
        lambda members, others: {**others, kind: members},
        st.lists(objects(member), max_size=2),
        objects(layout).map(lambda value: {k: v for k, v in value.items() if k not in LAYOUTS}),
    )


def same(first, second) -> bool:
    """Equal with the types of numbers, the bits of floats and the order of keys."""
    return json.dumps(first) == json.dumps(second)


@pytest.mark.parametrize("kind", LAYOUTS)
@given(data=st.data())
def test_a_row_says_all_there_is_in_a_record(kind, data):
    record = data.draw(records(kind))
    cells, exact = LAYOUTS[kind].pack(record)
    assert exact
    assert same(LAYOUTS[kind].unpack(cells), record)


keys = st.text(min_size=1, max_size=4).filter(lambda key: key[0] != "_")


@pytest.mark.parametrize("kind", LAYOUTS)
@settings(max_examples=30)
@given(data=st.data(), meta=st.none() | st.dictionaries(st.text(max_size=3), values, max_size=2))
def test_a_file_is_read_back_as_it_was(tmp_path_factory, kind, data, meta):
    path = tmp_path_factory.mktemp("data") / "rl.parquet"
    content = data.draw(st.dictionaries(keys, records(kind), min_size=1, max_size=3))
    writer = ParquetWriter(path, meta)
    for key, record in content.items():
        writer.write(key, record)
    writer.close()
    expected = list(content.items())
    found = list(stream_records(path))
    assert same(found, ([] if meta is None else [("_meta", meta)]) + expected)
    assert same(read_meta(path), meta)


sound = st.dictionaries(
    keys,
    records("pointer_candidates").map(
        lambda record: {
            **{k: v for k, v in record.items() if k not in ("candidate_pool_ids", "query_id")},
            "pointer_candidates": [
                {k: v for k, v in each.items() if k not in ("pointer_pos", "pointer_global")}
                for each in record["pointer_candidates"]
            ],
        }
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=30)
@given(data=sound, meta=st.none() | st.dictionaries(st.text(max_size=3), values, max_size=2))
def test_json_to_parquet_to_jsonl_to_json_gives_the_same_bytes(tmp_path_factory, data, meta):
    folder = tmp_path_factory.mktemp("data")
    with RecordWriter(folder / "a.json", meta) as writer:
        for key, record in data.items():
            writer.write(key, record)
    for source, target in (
        ("a.json", "b.parquet"),
        ("b.parquet", "c.jsonl"),
        ("c.jsonl", "d.json"),
    ):
        convert_file(folder / source, folder / target)
    assert (folder / "d.json").read_bytes() == (folder / "a.json").read_bytes()


# --- for analysts ---

CANDIDATES = [
    {"pointer": [7, 22], "gen_method": "beam", "beam_rank": 0, "beam_score": -2, "mood": "odd"},
    {"pointer": [5, 18], "gen_method": "sample", "temperature": 1.0, "logprob_score": -2.03},
]
RECORD = {
    "query": {"query_id": "a", "question_id": 17, "gt_answers_raw": ["x", "y"]},
    "pointer_candidates": CANDIDATES,
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "rl.parquet"
    writer = ParquetWriter(path, {"seed": 3})
    writer.write("a", RECORD)
    writer.write("b", {"pointer_candidates": []})
    writer.write_aside("_stats", [1])
    writer.close()
    return path


def test_the_columns_are_typed_and_nested(path):
    table = pyarrow.parquet.read_table(path)
    assert table.column("query_id").to_pylist() == ["a", "b"]
    first, second = table.column("pointer_candidates").to_pylist()
    assert [each["beam_score"] for each in first] == [-2.0, None]
    assert [each["pointer"] for each in first] == [[7, 22], [5, 18]]
    assert second == []
    query = table.column("query").to_pylist()[0]
    assert (query["question_id"], query["gt_answers_raw"]) == ("17", ["x", "y"])


def test_pandas_sees_a_row_a_candidate_in_two_lines(path):
    pandas = pytest.importorskip("pandas")
    column = (
        pandas.read_parquet(path).set_index("query_id")["pointer_candidates"].explode().dropna()
    )
    candidates = pandas.DataFrame(column.tolist(), index=column.index)
    assert list(candidates["gen_method"].items()) == [("a", "beam"), ("a", "sample")]
    assert candidates["beam_score"].tolist()[0] == -2


def test_what_is_no_query_comes_first(path):
    assert list(stream_records(path))[:2] == [("_meta", {"seed": 3}), ("_stats", [1])]
    assert [member.line for member in stream_members(path)] == [1, 1, 1, 2]


def test_a_column_that_was_changed_is_believed(path):
    table = pyarrow.parquet.read_table(path)
    rows = table.to_pylist()
    rows[0]["pointer_candidates"][0]["beam_score"] = -3.5
    rows[0]["query"]["question_id"] = "18"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=table.schema), path)
    (_, record), *_ = [each for each in stream_records(path) if each[0] == "a"]
    assert record["pointer_candidates"][0]["beam_score"] == -3.5
    assert record["pointer_candidates"][0]["mood"] == "odd"
    assert record["query"]["question_id"] == "18"


def test_rows_made_elsewhere_need_no_bookkeeping(tmp_path):
    path = tmp_path / "made.parquet"
    candidates = [{"pointer": [1, 2], "gen_method": "mine", "eval_error": None}]
    rows = [{"query_id": "q", "pointer_candidates": candidates}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert list(stream_records(path)) == [
        ("q", {"pointer_candidates": [{"pointer": [1, 2], "gen_method": "mine"}]})
    ]


def test_row_groups_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("pointer_rl.records.parquet._GROUP", 3)
    path = tmp_path / "rl.parquet"
    writer = ParquetWriter(path)
    for number in range(4):
        writer.write(f"q{number}", RECORD)
    writer.close()
    assert pyarrow.parquet.ParquetFile(path).num_row_groups == 2
    assert len(list(stream_records(path))) == 4


# --- what is refused ---


def rewrite(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"a": 1}], "it lacks columns query_id and pointer_candidates or beams"),
        (
            [{"query_id": "q", "beams": [], "split": "x"}],
            "the column split is none of pointer-rl's",
        ),
        (
            [{"query_id": "q", "pointer_candidates": [{"pointer": [1], "mine": 2}]}],
            "the column pointer_candidates.mine is none of pointer-rl's",
        ),
        ([{"query_id": "q", "beams": "[]"}], "the column beams is of the type string"),
        ([{"query_id": None, "beams": []}], "row 1: its query_id is no string"),
        ([{"query_id": "q", "beams": [{"score": math.inf}]}], "row 1: a number that is not finite"),
        ([{"query_id": "q", "beams": [], "_rest": "["}], "row 1: _rest is no JSON"),
        ([{"query_id": "q", "beams": [], "_keys": "3"}], "row 1: _keys is no JSON list of keys"),
    ],
)
def test_other_files_are_refused_in_a_line(tmp_path, rows, message):
    path = tmp_path / "x.parquet"
    rewrite(path, rows)
    with pytest.raises(InputError) as caught:
        list(stream_records(path))
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_what_is_no_parquet_is_refused_in_a_line(tmp_path):
    path = tmp_path / "x.parquet"
    for content in (b"", b"{}", b"PAR1" + b"x" * 60 + b"PAR1"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot read it as Parquet") as caught:
            read_meta(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot read it as Parquet"):
        read_meta(tmp_path / "none.parquet")


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("key", ["beam_score", "other"])
def test_numbers_that_are_not_finite_are_not_written(tmp_path, key, value):
    writer = open_writer(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"not finite|JSON compliant"):
        writer.write("q", {"pointer_candidates": [{key: value}]})
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_half_written_file_leaves_nothing(tmp_path):
    writer = ParquetWriter(tmp_path / "x.parquet")
    writer.write("q", RECORD)
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_without_pyarrow_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("pointer_rl.records.parquet.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pointer-rl\[parquet\]'"):
        ParquetWriter(tmp_path / "x.parquet")
    with pytest.raises(MissingExtraError, match=r"Parquet needs the package pyarrow"):
        list(stream_records(tmp_path / "x.parquet"))
