"""Parquet: no data is lost, and columns are what analysts expect."""

from __future__ import annotations

import json
import math
import random

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointer_rl.errors import InputError, MissingExtraError
from pointer_rl.records.fields import RECORDS, Field, Objects
from pointer_rl.records.formats import open_writer, read_meta, stream_members, stream_records
from pointer_rl.records.parquet import ParquetWriter

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


def objects(kinds) -> st.SearchStrategy:
    """Objects that mostly, but not always, are what the columns are for, keys in any order."""

    def of(kind) -> st.SearchStrategy:
        kind = kind.type if isinstance(kind, Field) else kind
        item = objects(kind.fields) if isinstance(kind, Objects) else scalars
        return st.lists(item, max_size=2) if kind.is_list else item

    known = [st.tuples(st.just(key), of(kind) | values) for key, kind in kinds.items()]
    other = st.tuples(st.sampled_from(["", "é", "_keys", "_rest", "extra", "0"]), values)
    return st.lists(st.one_of(*known, other), max_size=5).map(dict)


def records(kind: str) -> st.SearchStrategy:
    return st.builds(
        lambda members, others: {**others, kind: members},
        st.lists(objects(RECORDS[kind][kind].fields), max_size=2),
        objects(RECORDS[kind]).map(
            lambda value: {k: v for k, v in value.items() if k not in RECORDS}
        ),
    )


def same(found, expected, kinds) -> bool:
    """Equal, but for null against nothing where the definition knows the key."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in found.keys() | expected.keys():
            kind = kinds.get(key) if kinds else None
            missing = key not in found or key not in expected
            if missing and (kind is None or (found.get(key), expected.get(key)) != (None, None)):
                return False
            inner = kind.fields if isinstance(kind, Objects) else None
            if not same(found.get(key), expected.get(key), inner):
                return False
        return True
    if isinstance(expected, list) and isinstance(found, list) and kinds:
        return len(found) == len(expected) and all(
            same(one, other, kinds) for one, other in zip(found, expected, strict=True)
        )
    return found == expected and (isinstance(found, bool) == isinstance(expected, bool))


keys = st.text(min_size=1, max_size=4).filter(lambda key: key[0] != "_")


@pytest.mark.parametrize("kind", RECORDS)
@settings(max_examples=150)
@given(data=st.data(), meta=st.none() | st.dictionaries(st.text(max_size=3), values, max_size=2))
def test_no_data_is_lost(tmp_path_factory, kind, data, meta):
    path = tmp_path_factory.mktemp("data") / "rl.parquet"
    content = data.draw(st.dictionaries(keys, records(kind), min_size=1, max_size=3))
    with open_writer(path, meta) as writer:
        for key, record in content.items():
            writer.write(key, record)
    found = dict(stream_records(path))
    assert found.pop("_meta", None) == meta == read_meta(path)
    assert list(found) == list(content)
    for key, record in content.items():
        assert same(found[key], record, RECORDS[kind])


def test_same_tells_records_apart():
    kinds = RECORDS["pointer_candidates"]
    record = {"pointer_candidates": [{"pointer": [1], "mine": 2}], "query": {"row": 3}}
    assert same({**record, "pool": None}, record, kinds)
    assert not same({**record, "mine": None}, record, kinds)
    assert not same({**record, "query": {}}, record, kinds)
    assert not same({**record, "query": {"row": 4}}, record, kinds)
    for other in ([], [{"pointer": [1]}], [{"pointer": [2], "mine": 2}]):
        assert not same({**record, "pointer_candidates": other}, record, kinds)


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
    with ParquetWriter(path, {"seed": 3}) as writer:
        writer.write("a", RECORD)
        writer.write("b", {"pointer_candidates": []})
        writer.write_aside("_stats", [1])
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


def test_one_column_holds_what_the_others_cannot(path):
    table = pyarrow.parquet.read_table(path)
    assert table.column_names[-1] == "extra"
    first, second = table.column("extra").to_pylist()
    assert json.loads(first) == {
        "query": {"question_id": 17},
        "pointer_candidates": {"0": {"mood": "odd"}},
    }
    assert second is None
    assert not {"_keys", "_rest"} & set(table.column_names)
    assert dict(stream_records(path))["a"]["query"]["question_id"] == 17


def test_pandas_sees_a_row_a_candidate_in_two_lines(path):
    pandas = pytest.importorskip("pandas")
    column = (
        pandas.read_parquet(path).set_index("query_id")["pointer_candidates"].explode().dropna()
    )
    candidates = pandas.DataFrame(column.tolist(), index=column.index)
    assert list(candidates["gen_method"].items()) == [("a", "beam"), ("a", "sample")]
    assert candidates["beam_score"].tolist()[0] == -2


def test_keys_that_are_not_queries_come_first(path):
    assert list(stream_records(path))[:2] == [("_meta", {"seed": 3}), ("_stats", [1])]
    assert [member.line for member in stream_members(path)] == [1, 1, 1, 2]


def test_a_column_that_was_changed_wins_over_extra(path):
    table = pyarrow.parquet.read_table(path)
    rows = table.to_pylist()
    rows[0]["pointer_candidates"][0]["beam_score"] = -3.5
    rows[0]["query"]["question_id"] = "18"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=table.schema), path)
    (_, record), *_ = [each for each in stream_records(path) if each[0] == "a"]
    assert record["pointer_candidates"][0]["beam_score"] == -3.5
    assert record["pointer_candidates"][0]["mood"] == "odd"
    assert record["query"]["question_id"] == "18"


def test_rows_made_elsewhere_need_no_extra_column(tmp_path):
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
    with ParquetWriter(path) as writer:
        for number in range(4):
            writer.write(f"q{number}", RECORD)
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
        ([{"query_id": "q", "beams": [1]}], "the column beams is of the type int64"),
        ([{"query_id": "q", "beams": [], "query": 3}], "the column query is of the type int64"),
        ([{"query_id": None, "beams": []}], "row 1: its query_id is not a string"),
        ([{"query_id": "q", "beams": [{"score": math.inf}]}], "row 1: a number that is not finite"),
        ([{"query_id": "q", "beams": [], "_rest": "["}], "row 1: _rest is not JSON"),
        ([{"query_id": "q", "beams": [], "_keys": "3"}], "row 1: _keys is not a JSON list of keys"),
        ([{"query_id": "q", "beams": [], "extra": "[]"}], "row 1: extra is not a JSON object"),
        ([{"query_id": "q", "beams": [], "extra": 3}], "row 1: extra is not JSON"),
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


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("parquet") / "x.parquet"
    with open_writer(path, {"seed": 1, "dataset": {"name": "d"}}) as writer:
        for row in range(40):
            candidate = {"pointer": [row, row + 1], "vqa_acc_score": row / 7, "odd": row}
            writer.write(f"q{row}", {"pointer_candidates": [candidate]})
    return path.read_bytes(), list(stream_records(path))


def test_a_flipped_bit_is_noticed(whole, tmp_path):
    content, records = whole
    rng = random.Random(0)
    path = tmp_path / "damaged.parquet"
    for _ in range(300):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            found = list(stream_records(path))
        except InputError:
            continue
        assert found == records


def test_without_pyarrow_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("pointer_rl.records.parquet.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pointer-rl\[parquet\]'"):
        ParquetWriter(tmp_path / "x.parquet")
    with pytest.raises(MissingExtraError, match=r"Parquet needs the package pyarrow"):
        list(stream_records(tmp_path / "x.parquet"))
