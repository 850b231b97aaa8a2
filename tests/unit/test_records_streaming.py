"""Streaming: the same values as `json.loads`, and clear words for what is no JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointer_rl.errors import InputError
from pointer_rl.records import json_stream
from pointer_rl.records.formats import stream_records
from pointer_rl.records.json_stream import Flaw, stream_members

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
).filter(lambda value: "Infinity" not in json.dumps(value))


@pytest.fixture(params=[3, 40, 1 << 18])
def window(request, monkeypatch):
    """Windows so small that every token is cut somewhere."""
    monkeypatch.setattr(json_stream, "WINDOW", request.param)


@settings(max_examples=60, deadline=None)
@given(
    data=st.dictionaries(st.text(), values, max_size=6),
    indent=st.sampled_from([None, 0, 3]),
    ascii_only=st.booleans(),
    size=st.sampled_from([1, 7, 50, 1 << 18]),
)
def test_members_are_what_json_loads(tmp_path_factory, data, indent, ascii_only, size):
    path = tmp_path_factory.mktemp("data") / "x.json"
    text = json.dumps(data, indent=indent, ensure_ascii=ascii_only)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "WINDOW", size)
        members = list(stream_members(path))
    assert [(member.key, member.value) for member in members] == list(data.items())
    assert [member.flaws for member in members] == [()] * len(data)


@pytest.mark.usefixtures("window")
def test_lines_are_those_on_which_members_begin(tmp_path):
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
def test_flaws_are_placed(tmp_path):
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
        ("[1]", "line 1, column 1: found a list, where an object of query id"),
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
def test_what_cannot_be_parsed_is_said_in_a_line(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        list(stream_members(path))
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: line ")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("window")
def test_what_is_not_utf8_is_named_by_its_byte(tmp_path):
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
def test_a_byte_order_mark_is_passed_over(tmp_path):
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


def test_keys_that_occur_twice_come_out_twice(tmp_path):
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
def test_records_whose_content_would_be_a_guess_are_refused(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        list(stream_records(path))


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
        (b'"\xff"', r"line 2: not UTF-8"),
        (b"[" * 200_000, r"line 2: cannot parse this line"),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path, line, message):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"query_id": "a"}\n' + line)
    with pytest.raises(InputError, match=message):
        list(stream_members(path))
