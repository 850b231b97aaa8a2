"""Hypothesis strategies that spoil valid files: first their structure, then their bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st


def nested(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


class Valid(list):
    """The documents to begin with. Failures do not print them."""

    def __repr__(self) -> str:
        return "VALID"


class Doubled(dict):
    """An object whose keys are all written twice."""

    def items(self):
        return [*super().items(), *super().items()]


ODD = Valid(
    (
        *(None, True, False, 0, 1, -1, 2, 0.5, 1.5, 7.0, -0.0, 1e308, -1e308, 1e-320),
        *(2**31, 2**53 + 1, 2**63, 10**12, 10**19, 10**400, -(10**400), math.nan, math.inf),
        *("", "1", "false", "_", "\ud800", "\x00", "a\n\x1b]0;b\x07\u2028", "é" * 3000, "beam"),
        *("1.0", "1/2", "9/9", "1.999999999", "sample", "error"),
        *([], {}, [[]], [1, 1], [1, 1.0], [True], [None], [-1], ["\udfff"], [1e308], [{}], {"": 1}),
        *(nested(180), nested(230), nested(300), nested(900)),
    )
)


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, the value's own included, down to a depth of 12."""
    yield place
    if len(place) == 12:
        return
    if isinstance(value, dict):
        value = dict.items(value)
    elif isinstance(value, list):
        value = enumerate(value)
    else:
        return
    for key, item in value:
        yield from places(item, (*place, key))


def copied(value: Any) -> Any:
    """A copy of a JSON value, however deep."""
    return json.loads(json.dumps(value))


def spoil(draw: Any, document: Any) -> Any:
    """Change one place of a document."""
    *parents, last = draw(st.sampled_from(Valid(places(document))[1:]))
    owner = document
    for part in parents:
        owner = owner[part]
    old = owner.get(last) if isinstance(owner, dict) else owner[last]
    match draw(st.sampled_from(["odd", "odd", "drop", "wrap", "rename", "move", "double", "add"])):
        case "drop":
            del owner[last]
        case "wrap":
            owner[last] = draw(
                st.sampled_from([[old], {"a": old}, str(old)[:99], [old, copied(old)]])
            )
        case "rename" if isinstance(owner, dict):
            name = draw(
                st.sampled_from(["", "_x", "\ud800", "query_id", "row", "beams", "id_list"])
            )
            owner[name] = owner.pop(last)
        case "move":
            *others, end = draw(st.sampled_from(Valid(places(document))[1:]))
            other = document
            for part in others:
                other = other[part]
            other[end] = copied(old)
        case "double" if isinstance(old, dict):
            owner[last] = Doubled(old)
        case "add" if isinstance(owner, list):
            owner.insert(last, copied(draw(st.sampled_from(ODD))))
        case _:
            owner[last] = copied(draw(st.sampled_from(ODD)))
    return document


@st.composite
def documents(draw: Any, valid: Valid) -> Any:
    """A spoiled copy of one of these documents; sometimes the document itself."""
    document = copied(draw(st.sampled_from(valid)))
    for _ in range(draw(st.integers(0, 3))):
        if document:
            document = spoil(draw, document)
    return document


@st.composite
def spoiled(draw: Any, data: bytes, *, least: int = 0) -> bytes:
    """The data with up to three slices flipped, cut out, doubled or replaced, or cut off."""
    for _ in range(draw(st.integers(least, 3))):
        start = draw(st.integers(0, max(0, len(data) - 1)))
        end = start + draw(st.sampled_from([1, 1, 2, 4, 8, 64]))
        part = data[start:end]
        match draw(st.sampled_from(["flip", "flip", "cut", "double", "replace", "end"])):
            case "flip":
                bit = 1 << draw(st.integers(0, 7))
                data = data[:start] + bytes(each ^ bit for each in part[:1]) + data[start + 1 :]
            case "cut":
                data = data[:start] + data[end:]
            case "double":
                data = data[:end] + part + data[end:]
            case "replace":
                other = draw(st.sampled_from([b"\xff" * len(part), b"\0" * len(part), b"[", b'"']))
                data = data[:start] + other + data[end:]
            case "end":
                data = data[:start]
    return data


def as_json(document: Any, *, lines: bool = False) -> bytes:
    """The document as .json or .jsonl; what JSON forbids is written all the same."""
    if not lines or not isinstance(document, dict):
        return json.dumps(document).encode()
    return b"".join(
        json.dumps({"_meta": value} if key == "_meta" else _line(key, value)).encode() + b"\n"
        for key, value in document.items()
    )


def _line(key: str, value: Any) -> Any:
    return {"query_id": key, **value} if isinstance(value, dict) else value
