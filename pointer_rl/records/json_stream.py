"""Large JSON files, a top-level member at a time.

`json` itself parses each member out of a window of the decoded file, which is refilled when a
member does not end in it: as fast as `json.load`, in the memory of the largest member, with exact
line numbers, and with what `json.load` passes over in silence (repeated keys, NaN) reported.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pointer_rl.errors import InputError
from pointer_rl.records.parquet import stream_parquet

__all__ = ["Flaw", "Member", "stream_members"]

WINDOW = 1 << 18
"""Bytes read at a time; a longer member doubles it."""
_TOKEN = 32
"""No token but a string is longer: an error nearer to the window's end may be the cut itself."""

_skip_space = re.compile(r"[ \t\n\r]*").match


class Flaw(NamedTuple):
    """What JSON forbids or makes ambiguous, yet parses."""

    kind: str
    """"duplicate-key" or "not-finite"."""
    path: tuple[str | int, ...]
    """Where in the member's value."""


class Member(NamedTuple):
    """One `"key": value` of a file."""

    key: str
    value: Any
    line: int
    """Where it begins, from 1."""
    flaws: tuple[Flaw, ...] = ()


def stream_members(path: Path) -> Iterator[Member]:
    """Members of the object in a `.json` file; or, of a `.jsonl` file, a member a line.

    A line of `.jsonl` is `{"_meta": …}`, or a record with its `query_id`, which is the key. A
    `.parquet` file has rows for lines.
    Keys that occur twice come out twice. Raises InputError, naming line and column, for what is no
    UTF-8, no JSON, or JSON of another form.
    """
    if path.suffix == ".parquet":
        yield from (Member(*each) for each in stream_parquet(path))
        return
    try:
        with open(path, "rb") as file:
            yield from _lines(path, file) if path.suffix == ".jsonl" else _members(path, file)
    except OSError as error:
        raise InputError(f"{path}: cannot read it ({error.strerror})") from error


# --- parsing a value --------------------------------------------------------------------------


class _Parser:
    """A JSON decoder that remembers which flaws the last value had."""

    def __init__(self) -> None:
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant
        )
        self._repeated: list[tuple[dict[str, Any], str]] = []
        self._constants = False

    def parse(self, text: str, start: int) -> tuple[Any, int]:
        """The value that begins at `start`, and where it ends."""
        self._repeated.clear()
        self._constants = False
        return self._decoder.raw_decode(text, start)

    def flaws(self, value: Any) -> tuple[Flaw, ...]:
        """Those of the value just parsed."""
        if not self._repeated and not self._constants:
            return ()
        return tuple(self._find(value, ()))

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) == len(pairs):
            return value
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                self._repeated.append((value, key))
            seen.add(key)
        return value

    def _constant(self, name: str) -> float:
        self._constants = True
        return float(name)

    def _find(self, value: Any, path: tuple[str | int, ...]) -> Iterator[Flaw]:
        if isinstance(value, dict):
            for owner, key in self._repeated:
                if owner is value:
                    yield Flaw("duplicate-key", (*path, key))
            for key, item in value.items():
                yield from self._find(item, (*path, key))
        elif isinstance(value, list):
            for index, item in enumerate(value):
                yield from self._find(item, (*path, index))
        elif isinstance(value, float) and not math.isfinite(value):
            yield Flaw("not-finite", path)


# --- .json ------------------------------------------------------------------------------------


class _Window:
    """A stretch of a file's text, and where in the file it stands."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.text = ""
        self.ended = False
        self._path = path
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._bytes = 0
        self._line = 1
        self._counted = 0  # newlines before this position are in _line
        self._column = 1  # of the window's first character

    def extend(self) -> None:
        """Read on, as much again as there is."""
        data = self._file.read(max(WINDOW, len(self.text)))
        self.ended = not data
        try:
            self.text += self._decoder.decode(data, final=self.ended)
        except UnicodeDecodeError as error:
            byte = self._bytes - (len(error.object) - len(data)) + error.start
            raise InputError(
                f"{self._path}: not UTF-8 at byte {byte:,}; save it as UTF-8"
            ) from error
        self._bytes += len(data)

    def drop(self, end: int) -> None:
        """Forget the text before `end`."""
        self.line(end)
        self._column = self._column_of(end)
        self.text = self.text[end:]
        self._counted = 0

    def line(self, at: int) -> int:
        """The line of a position; asked for in ascending order."""
        self._line += self.text.count("\n", self._counted, at)
        self._counted = at
        return self._line

    def error(self, at: int, what: str) -> InputError:
        return InputError(
            f"{self._path}: line {self.line(at)}, column {self._column_of(at)}: {what}"
        )

    def _column_of(self, at: int) -> int:
        newline = self.text.rfind("\n", 0, at)
        return at - newline if newline >= 0 else self._column + at


class _Parsed(NamedTuple):
    key: str
    value: Any
    begin: int
    end: int
    last: bool


def _members(path: Path, file: BinaryIO) -> Iterator[Member]:
    window = _Window(path, file)
    position = _open_object(window)
    if window.text[position] == "}":
        _expect_end(window, position + 1)
        return
    parser = _Parser()
    while True:
        try:
            member = _parse_member(parser, window.text, position)
            flaws = parser.flaws(member.value)
        except json.JSONDecodeError as error:
            unterminated = error.msg.startswith("Unterminated string")
            if not window.ended and (unterminated or error.pos > len(window.text) - _TOKEN):
                window.drop(position)
                window.extend()
                position = 0
                continue
            if unterminated or error.pos >= len(window.text.rstrip()):
                raise window.error(
                    len(window.text), "the JSON ends too early; the file was cut off, restore it"
                ) from error
            raise window.error(error.pos, f"not JSON ({error.msg})") from error
        except (RecursionError, ValueError) as error:
            raise window.error(position, f"cannot parse this member ({error})") from error
        yield Member(member.key, member.value, window.line(member.begin), flaws)
        position = member.end
        if member.last:
            _expect_end(window, position)
            return


def _open_object(window: _Window) -> int:
    """Where the first key, or the closing brace, stands."""
    position = _next(window, 0)
    found = window.text[position : position + 1]
    if found != "{":
        what = {"[": "a list", "": "nothing"}.get(found, "no JSON object")
        raise window.error(position, f"found {what}, where an object of query id → record belongs")
    position = _next(window, position + 1)
    if position == len(window.text):
        raise window.error(position, "the JSON ends too early; the file was cut off, restore it")
    return position


def _expect_end(window: _Window, position: int) -> None:
    position = _next(window, position)
    if position < len(window.text):
        raise window.error(position, "not JSON (more text after the object has ended)")


def _next(window: _Window, position: int) -> int:
    """The next position that holds no space; the text's length at the end of the file."""
    while True:
        match = _skip_space(window.text, position)
        assert match is not None
        position = match.end()
        if position < len(window.text) or window.ended:
            return position
        window.extend()


def _parse_member(parser: _Parser, text: str, position: int) -> _Parsed:
    """`"key": value` and the comma or brace after it. Raises json.JSONDecodeError."""
    begin = _space(text, position)
    if text[begin : begin + 1] != '"':
        raise json.JSONDecodeError("Expecting property name in double quotes", text, begin)
    key, position = parser.parse(text, begin)
    position = _space(text, position)
    if text[position : position + 1] != ":":
        raise json.JSONDecodeError("Expecting ':' delimiter", text, position)
    value, position = parser.parse(text, _space(text, position + 1))
    position = _space(text, position)
    delimiter = text[position : position + 1]
    if delimiter not in (",", "}"):
        raise json.JSONDecodeError("Expecting ',' delimiter", text, position)
    return _Parsed(key, value, begin, position + 1, delimiter == "}")


def _space(text: str, position: int) -> int:
    match = _skip_space(text, position)
    assert match is not None
    return match.end()


# --- .jsonl -----------------------------------------------------------------------------------


def _lines(path: Path, file: BinaryIO) -> Iterator[Member]:
    parser = _Parser()
    for number, data in enumerate(file, start=1):
        where = f"{path}: line {number}"
        try:
            text = data.decode("utf-8-sig" if number == 1 else "utf-8")
            begin = _space(text, 0)
            if begin == len(text):
                continue
            value, end = parser.parse(text, begin)
            end = _space(text, end)
            if end < len(text):
                raise json.JSONDecodeError("more text after the object has ended", text, end)
            flaws = parser.flaws(value)
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: not UTF-8; save it as UTF-8") from error
        except json.JSONDecodeError as error:
            raise InputError(f"{where}, column {error.pos + 1}: not JSON ({error.msg})") from error
        except (RecursionError, ValueError) as error:
            raise InputError(f"{where}: cannot parse this line ({error})") from error
        if isinstance(value, dict) and value.keys() == {"_meta"}:
            flaws = tuple(Flaw(kind, place[1:]) for kind, place in flaws)
            yield Member("_meta", value["_meta"], number, flaws)
            continue
        if not isinstance(value, dict) or not isinstance(value.get("query_id"), str):
            raise InputError(f'{where}: not a record with a string "query_id"')
        yield Member(value.pop("query_id"), value, number, flaws)
