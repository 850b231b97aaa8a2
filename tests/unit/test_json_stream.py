"""Streaming yields the same values as `json.loads` and names the place of what is not JSON."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointer_rl import json_stream
from pointer_rl.errors import InputError
from pointer_rl.json_stream import Flaw, find_member, stream_items, stream_members
from pointer_rl.records.formats import stream_records

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
).filter(lambda value: "Infinity" not in json.dumps(value))


@pytest.fixture(params=[3, 40, 1 << 18])
def window(request, monkeypatch):
    """Some windows are so small that every token is cut somewhere."""
    monkeypatch.setattr(json_stream, "WINDOW", request.param)


@settings(max_examples=60, deadline=None)
@given(
    data=st.dictionaries(st.text(), values, max_size=6),
    indent=st.sampled_from([None, 0, 3]),
    ascii_only=st.booleans(),
    size=st.sampled_from([1, 7, 50, 1 << 18]),
)
def test_members_equal_what_json_loads_returns(tmp_path_factory, data, indent, ascii_only, size):
    path = tmp_path_factory.mktemp("data") / "x.json"
    text = json.dumps(data, indent=indent, ensure_ascii=ascii_only)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "WINDOW", size)
        members = list(stream_members(path))
    assert [(member.key, member.value) for member in members] == list(data.items())
    assert [member.flaws for member in members] == [()] * len(data)


@pytest.mark.usefixtures("window")
def test_a_members_line_is_where_it_begins(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(
        '\n{"a":\n 1,\n\n"b": {"x":\n"é\\n"}, "c": 3\n,"d": "' + "z" * 99 + '",\n"e":1}'
    )
    assert [(member.key, member.line) for member in stream_members(path)] == [
        ("a", 2),
        ("b", 5),
        ("c", 6),
        ("d", 7),
        ("e", 8),
    ]


@pytest.mark.usefixtures("window")
def test_flaws_have_their_place(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": 1, "a": [{"b": 1, "b": 2}, NaN], "c": {"d": -Infinity}, "e": {}}')
    assert [(member.key, member.flaws) for member in stream_members(path)] == [
        ("a", ()),
        ("a", (Flaw("duplicate-key", (0, "b")), Flaw("not-finite", (1,)))),
        ("c", (Flaw("not-finite", ("d",)),)),
        ("e", ()),
    ]


@pytest.mark.usefixtures("window")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1, column 1: found nothing, where an object"),
        (" \n ", "line 2, column 2: found nothing"),
        ("[\n1]", 'line 2: not a record with a string "query_id"'),
        ('[{"query_id": "a"}', "line 1, column 19: the JSON ends too early"),
        ("[] 3", "line 1, column 4: not JSON (more text after the list"),
        ("3", "found no JSON object"),
        ("{", "line 1, column 2: the JSON ends too early"),
        ('{"a": {"b": "x', "line 1, column 15: the JSON ends too early"),
        ('{"a":\n 1', "line 2, column 3: the JSON ends too early"),
        ('{"a": 1,', "line 1, column 9: the JSON ends too early"),
        ('{"a": 1,}', "line 1, column 9: not JSON (Expecting property name"),
        ('{"a": 1}\n x', "line 2, column 2: not JSON (more text"),
        ("{3: 1}", "line 1, column 2: not JSON (Expecting property name"),
        ('{"a" 1}', "not JSON (Expecting ':'"),
        ('{"a": 1 "b": 2}', "line 1, column 9: not JSON (Expecting ','"),
        ('{"a": tru}', "line 1, column 7: not JSON (Expecting value)"),
        ('{"a": "x\ty"}', "not JSON (Invalid control character"),
        ('{"a": ' + "[" * 200_000, "cannot parse this member"),
        ('{"a": ' + "9" * 5000 + "}", "cannot parse this member"),
    ],
)
def test_a_parse_error_is_one_line_with_its_place(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        list(stream_members(path))
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: line ")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("window")
def test_a_byte_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes('{"é": "'.encode() + b"\xff")
    with pytest.raises(InputError, match=r"x\.json: not UTF-8 at byte 8"):
        list(stream_members(path))
    path.write_bytes(b'{"\xc3": 1}')  # half a character, and with some windows at their end
    with pytest.raises(InputError, match=r"not UTF-8 at byte 2"):
        list(stream_members(path))
    path.write_bytes('{"a": 1}'.encode("utf-16"))
    with pytest.raises(InputError, match=r"not UTF-8 at byte 0"):
        list(stream_members(path))


@pytest.mark.usefixtures("window")
def test_a_byte_order_mark_is_skipped(tmp_path):
    for name in ("x.json", "x.jsonl"):
        path = tmp_path / name
        path.write_bytes(b'\xef\xbb\xbf{"query_id": "a"}')
        assert len(list(stream_members(path))) == 1


def test_a_malformed_file_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "WINDOW", 64)
    path = tmp_path / "x.json"
    path.write_bytes(b'{"a": [1, oops], "' + b" " * 500 + b"\xff")
    with pytest.raises(InputError, match="column 11: not JSON"):
        list(stream_members(path))


def test_repeated_keys_are_yielded_each_time(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": 1, "_meta": {}, "a": 2}')
    assert [each[:2] for each in stream_members(path)] == [("a", 1), ("_meta", {}), ("a", 2)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a":\n {"b": NaN}}', "line 1: a number that is not finite at a/b"),
        ('{\n"a": [{"b": 1, "b": 1}]}', "line 2: a repeated key at a/0/b"),
    ],
)
def test_ambiguous_records_are_refused(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        list(stream_records(path))


# --- lists in a member ---


@settings(max_examples=60, deadline=None)
@given(
    items=st.lists(values, max_size=6),
    others=st.dictionaries(st.text().filter(lambda key: key != "wanted"), values, max_size=3),
    first=st.booleans(),
    indent=st.sampled_from([None, 0, 3]),
    size=st.sampled_from([1, 7, 50, 1 << 18]),
)
def test_items_equal_what_json_loads_returns(tmp_path_factory, items, others, first, indent, size):
    path = tmp_path_factory.mktemp("data") / "x.json"
    wanted = {"wanted": items}
    content = {**wanted, **others} if first else {**others, **wanted}
    path.write_text(json.dumps(content, indent=indent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "WINDOW", size)
        assert list(stream_items(path, "wanted")) == items
        for key, value in content.items():
            assert find_member(path, key) == value
        assert find_member(path, "absent") is None
    assert list(stream_items(path, "absent")) == []


@pytest.mark.usefixtures("window")
def test_repeated_lists_are_yielded_each_time(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": [1 ,\n2\t,{"b": [3, {}]}], "c": [4], "a": [5]}')
    assert list(stream_items(path, "a")) == [1, 2, {"b": [3, {}]}, 5]


@pytest.mark.usefixtures("window")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "line 1, column 1: found a list, where an object belongs"),
        ('{"a":\n{}}', "line 2, column 1: found an object, where a list belongs"),
        ('{"a": 3}', "line 1, column 7: found another value, where a list belongs"),
        ('{"a": [1, 2', "line 1, column 12: the JSON ends too early"),
        ('{"a": [1, 2}', "line 1, column 12: not JSON (Expecting ',' delimiter)"),
        ('{"a": [1,\n 2, oops, 3]}', "line 2, column 5: not JSON (Expecting value)"),
        ('{"a": [1, 2,]}', "line 1, column 13: not JSON (Expecting value)"),
        ('{"a": [1, 2]} 5', "line 1, column 15: not JSON (more text"),
        ('{"a": [1,\n{"b": NaN}, 3]}', "line 2: not JSON (NaN or Infinity)"),
        ('{"a": [1,\n{"b": -Infinity}]}', "line 2: not JSON (NaN or Infinity)"),
        ('{"b": [1, oops, 3], "a": []}', "line 1, column 11: not JSON (Expecting value)"),
    ],
)
def test_a_parse_error_in_a_list_is_one_line_with_its_place(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        list(stream_items(path, "a"))
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: line ")


def test_memory_is_bounded_by_the_largest_item(tmp_path):
    path = tmp_path / "x.json"
    item = json.dumps({"answers": ["red"] * 20})
    path.write_text('{"a": [' + ", ".join([item] * 40_000) + "]}")
    assert path.stat().st_size > 6_000_000
    tracemalloc.start()
    for key in ("a", "b"):  # a list that is read, and one that is skipped
        assert sum(1 for _ in stream_items(path, key)) in (40_000, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.usefixtures("window")
def test_a_list_of_records_is_read_as_their_lines_are(tmp_path):
    items = ['{"_meta": {"s": 1}}', '{"query_id": "a", "x": [1]}', '{"b": {"x": 2, "x": 3}}']
    (tmp_path / "x.json").write_text("[" + ",\n".join(items) + "]")
    (tmp_path / "x.jsonl").write_text("\n".join(items))
    members = list(stream_members(tmp_path / "x.json"))
    assert members == list(stream_members(tmp_path / "x.jsonl"))
    assert [member[:3] for member in members] == [
        ("_meta", {"s": 1}, 1),
        ("a", {"x": [1]}, 2),
        ("b", {"x": 3}, 3),
    ]
    assert members[2].flaws == (Flaw("duplicate-key", ("x",)),)


# --- .jsonl ---


def test_a_line_is_a_record(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(
        '{"_meta": {"s": NaN}}\n\n{"query_id": "a", "x": 1, "x": 2}\n {"x": 2, "query_id": "a"} '
    )
    assert [tuple(member) for member in stream_members(path)][1:] == [
        ("a", {"x": 2}, 3, (Flaw("duplicate-key", ("x",)),)),
        ("a", {"x": 2}, 4, ()),
    ]
    first = next(stream_members(path))
    assert (first.key, first.line, first.flaws) == ("_meta", 1, (Flaw("not-finite", ("s",)),))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"query_id": "a"', r"line 2, column 17: not JSON"),
        (b'{"query_id": "a"} {}', r"line 2, column 19: not JSON \(more text"),
        (b'{"query_id": 3}', r'line 2: not a record with a string "query_id"'),
        (b"[]", r'line 2: not a record with a string "query_id"'),
        (b'{"a": 3}', r"line 2: not a record .*, nor \{query id: record\}"),
        (b'{"a": {}, "b": {}}', r"line 2: not a record .*, nor \{query id: record\}"),
        (b'"\xff"', r"line 2: not UTF-8"),
        (b"[" * 200_000, r"line 2: cannot parse this line"),
    ],
)
def test_a_line_that_is_not_a_record_is_named(tmp_path, line, message):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"query_id": "a"}\n' + line)
    with pytest.raises(InputError, match=message):
        list(stream_members(path))
