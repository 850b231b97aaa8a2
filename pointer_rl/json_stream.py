"""Read large JSON files piece by piece.

The standard library's decoder parses one value at a time out of a window of text. The window is
refilled when a value does not end in it. This is as fast as `json.load`, takes the memory of the
largest value, and gives exact line numbers. It also reports what `json.load` accepts silently:
repeated keys and NaN.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pointer_rl.errors import InputError

WINDOW = 1 << 18
"""Bytes read at a time. A longer value doubles the window."""
_TOKEN = 32
"""Only strings have longer tokens: an error nearer to the window's end than this may come from
where the window was cut, and one farther away is the file's."""

MAX_DEPTH = 200
"""Levels of nesting that a value may have. Where Python or a library of ours recurses, the limit
would be found too late."""

_skip_space = re.compile(r"[ \t\n\r]*").match
_skip_comma = re.compile(r"[ \t\n\r]*,[ \t\n\r]*").match


class Flaw(NamedTuple):
    """Something that JSON forbids or leaves ambiguous, although it can be parsed."""

    kind: str
    """"duplicate-key" or "not-finite"."""
    path: tuple[str | int, ...]
    """Its place in the value."""

    def describe(self, *parents: str | int) -> str:
        """Kind and place, for an error message."""
        kind = "a repeated key" if self.kind == "duplicate-key" else "a number that is not finite"
        return f"{kind} at {'/'.join(map(str, (*parents, *self.path)))}"


class Member(NamedTuple):
    """One `"key": value` of a file."""

    key: str
    value: Any
    line: int
    """The line on which it begins, from 1."""
    flaws: tuple[Flaw, ...] = ()


def stream_members(path: Path) -> Iterator[Member]:
    """Yield the members of the object in a `.json` file, or one member per line of a `.jsonl` file.

    A line of `.jsonl` is a record whose `query_id` becomes the key, or an object with one member,
    such as `{"_meta": …}`. A `.json` file may also be a list of such records and objects. Repeated
    keys are yielded each time. Raises InputError, with line and column, for a file that is not
    UTF-8, not JSON, or JSON of another form.
    """
    with _open(path) as file:
        if path.suffix == ".jsonl":
            yield from _parse_lines(path, file)
            return
        reader = _Reader(path, file)
        if reader.peek() == "[":
            for line in reader.open_items():
                value, flaws = reader.value()
                yield _as_member(value, flaws, path, line)
            return
        for key, line in reader.open_members("an object of query id → record"):
            value, flaws = reader.value()
            yield Member(key, value, line, flaws)


def stream_items(path: Path, key: str) -> Iterator[Any]:
    """Yield the items of the list that is the member `key` of the object in a `.json` file.

    Other lists are skipped item by item, so that memory is bounded by the largest item. Yields
    nothing if the member is absent. Raises InputError, with line and column, for a file that is not
    UTF-8, not JSON, or JSON of another form. NaN is not JSON either; of repeated keys the last one
    counts.
    """
    with _open(path) as file:
        reader = _Reader(path, file)
        for found, _ in reader.open_members():
            if found == key:
                yield from reader.items()
            else:
                reader.skip_value()


def find_member(path: Path, key: str) -> Any:
    """Return the value of the member `key` of the object in a `.json` file; None if it is absent.

    The file is read up to this member. Memory and errors are those of `stream_items`.
    """
    with _open(path) as file:
        reader = _Reader(path, file)
        for found, _ in reader.open_members():
            if found == key:
                return reader.finite_value()
            reader.skip_value()
    return None


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    if path.is_fifo():
        raise InputError(f"{path}: a pipe cannot be read twice: save it to a file first")
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise InputError(f"{path}: cannot read it ({error.strerror})") from error


# --- parsing a value --------------------------------------------------------------------------


class _Parser:
    """A JSON decoder that also reports a value's flaws."""

    def __init__(self) -> None:
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant
        )
        self._repeated: dict[int, tuple[dict[str, Any], list[str]]] = {}
        """Identity of an object → the object, which keeps its identity, and its repeated keys."""
        self._constants = False

    def parse(self, text: str, start: int) -> tuple[Any, tuple[Flaw, ...], int]:
        """Return the value that begins at `start`, its flaws, and the position of its end."""
        self._repeated.clear()
        self._constants = False
        value, end = self._decoder.raw_decode(text, start)
        if text.count("[", start, end) + text.count("{", start, end) > MAX_DEPTH:
            check_depth(value)
        flaws = tuple(self._find(value, ())) if self._repeated or self._constants else ()
        return value, flaws, end

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) == len(pairs):
            return value
        counts = Counter(key for key, _ in pairs)
        repeats = [key for key, count in counts.items() for _ in range(count - 1)]
        self._repeated[id(value)] = value, repeats
        return value

    def _constant(self, name: str) -> float:
        self._constants = True
        return float(name)

    def _find(self, value: Any, path: tuple[str | int, ...]) -> Iterator[Flaw]:
        if isinstance(value, dict):
            for key in self._repeated.get(id(value), (value, []))[1]:
                yield Flaw("duplicate-key", (*path, key))
            for key, item in value.items():
                yield from self._find(item, (*path, key))
        elif isinstance(value, list):
            for index, item in enumerate(value):
                yield from self._find(item, (*path, index))
        elif isinstance(value, float) and not math.isfinite(value):
            yield Flaw("not-finite", path)


def check_depth(value: Any) -> None:
    """Raise ValueError for a value with more than MAX_DEPTH levels of lists and objects."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            item
            for each in level
            if isinstance(each, (list, dict))
            for item in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return
    raise ValueError(f"more than {MAX_DEPTH} levels of nesting")


def parse_json(text: str | bytes) -> Any:
    """Parse a foreign JSON value, such as a whole small file. Raises ValueError, with the reason.

    NaN, infinities and more than MAX_DEPTH levels are refused. Of repeated keys the last counts.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError(str(error)) from error
    check_depth(value)
    return value


# --- .json ------------------------------------------------------------------------------------


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name}, which JSON lacks")


_scan: Callable[[str, int], tuple[Any, int]]
_scan = json.JSONDecoder(parse_constant=_refuse_constant).scan_once  # type: ignore[attr-defined]
"""The C function behind `raw_decode`. Raises StopIteration where no value begins."""


class _Reader:
    """Reads one file. A window of its text is in memory, consumed up to a position."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._parser = _Parser()
        self._text = ""
        self._position = 0
        self._ended = False
        self._bytes = 0
        self._line = 1
        self._counted = 0  # newlines before this position are included in _line
        self._column = 1  # column of the window's first character

    # Objects, lists and values. Each method consumes what it returns.

    def open_members(self, wanted: str = "an object") -> Iterator[tuple[str, int]]:
        """Yield each key of the file's object and its line. The caller consumes the key's value."""
        more = self._begin("{", "}", wanted)
        while more:
            if self.peek() != '"':
                raise self._not_json(self._position, "Expecting property name in double quotes")
            line = self._line_here()
            key, _ = self.value()
            self._take(":", "Expecting ':' delimiter")
            yield key, line
            more = self._take(",}", "Expecting ',' delimiter") == ","
        self._end("the object")

    def open_items(self) -> Iterator[int]:
        """Yield the line of each item of the file's list. The caller consumes the item."""
        more = self._begin("[", "]", "a list")
        while more:
            self.peek()
            yield self._line_here()
            more = self._take(",]", "Expecting ',' delimiter") == ","
        self._end("the list")

    def items(self) -> Iterator[Any]:
        """Yield each item of a list."""
        more = self._begin("[", "]", "a list")
        while more:
            yield from self._whole_items()
            yield self.finite_value()
            more = self._take(",]", "Expecting ',' delimiter") == ","

    def _whole_items(self) -> Iterator[Any]:
        """Yield the items that the window holds with the comma after them, three times as fast.

        Stops before anything else: an item at the window's end, a list's last item, or an error.
        """
        self.peek()
        text, position = self._text, self._position
        try:
            while True:
                value, end = _scan(text, position)
                if text.startswith(", ", end):
                    position = end + 2
                elif comma := _skip_comma(text, end):
                    position = comma.end()
                else:
                    return
                self._position = position
                yield value
        except (StopIteration, RecursionError, ValueError):
            return

    def value(self) -> tuple[Any, tuple[Flaw, ...]]:
        """Return a value and its flaws, reading on while the window's end cuts it off."""
        self.peek()
        while True:
            try:
                value, flaws, end = self._parser.parse(self._text, self._position)
            except json.JSONDecodeError as error:
                unterminated = error.msg.startswith("Unterminated string")
                if self._ended or not (unterminated or error.pos > len(self._text) - _TOKEN):
                    at = len(self._text) if unterminated else error.pos
                    raise self._not_json(at, error.msg) from error
            except (RecursionError, ValueError) as error:
                raise self._error(f"cannot parse this member ({error})") from error
            else:
                # A number may be cut, at the latest after "e+", which the decoder leaves.
                if end + len("e+") < len(self._text) or self._ended:
                    self._position = end
                    return value, flaws
            self._extend()

    def finite_value(self) -> Any:
        """Return a value. Raises InputError for NaN and infinities."""
        self.peek()
        line = self._line_here()
        value, flaws = self.value()
        for flaw in flaws:
            if flaw.kind == "not-finite":
                raise InputError(f"{self._path}: line {line}: not JSON (NaN or Infinity)")
        return value

    def skip_value(self) -> None:
        """Read past a value; past a list item by item."""
        if self.peek() == "[":
            for _ in self.items():
                pass
        else:
            self.value()

    # Characters.

    def peek(self) -> str:
        """Skip white space and return the next character; "" at the end of the file."""
        while True:
            self._position = _space(self._text, self._position)
            if self._position < len(self._text):
                return self._text[self._position]
            if self._ended:
                return ""
            self._extend()

    def _take(self, characters: str, problem: str) -> str:
        found = self.peek()
        if not found or found not in characters:
            raise self._not_json(self._position, problem)
        self._position += 1
        return found

    def _end(self, what: str) -> None:
        if self.peek():
            raise self._error(f"not JSON (more text after {what} has ended)")

    def _begin(self, opening: str, closing: str, wanted: str) -> bool:
        """Open an object or a list. Returns whether anything is in it."""
        found = self.peek()
        if found != opening:
            other = "no JSON object" if opening == "{" else "another value"
            what = {"[": "a list", "{": "an object", "": "nothing"}.get(found, other)
            raise self._error(f"found {what}, where {wanted} belongs")
        self._position += 1
        if self.peek() != closing:
            return True
        self._position += 1
        return False

    # The window.

    def _extend(self) -> None:
        """Drop what has been consumed and read on; what is left at least doubles."""
        self._line_here()
        self._column = self._column_here()
        self._text = self._text[self._position :]
        self._position = self._counted = 0
        data = self._file.read(max(WINDOW, len(self._text)))
        self._ended = not data
        try:
            self._text += self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            byte = self._bytes - (len(error.object) - len(data)) + error.start
            raise InputError(
                f"{self._path}: not UTF-8 at byte {byte:,}; save it as UTF-8"
            ) from error
        self._bytes += len(data)

    def _line_here(self) -> int:
        self._line += self._text.count("\n", self._counted, self._position)
        self._counted = self._position
        return self._line

    def _column_here(self) -> int:
        newline = self._text.rfind("\n", 0, self._position)
        return self._position - newline if newline >= 0 else self._column + self._position

    def _error(self, problem: str) -> InputError:
        return InputError(
            f"{self._path}: line {self._line_here()}, column {self._column_here()}: {problem}"
        )

    def _not_json(self, at: int, problem: str) -> InputError:
        if at >= len(self._text.rstrip()):
            self._position = len(self._text)
            return self._error("the JSON ends too early; the file was cut off, restore it")
        self._position = at
        return self._error(f"not JSON ({problem})")


# --- .jsonl -----------------------------------------------------------------------------------


def _parse_lines(path: Path, file: BinaryIO) -> Iterator[Member]:
    parser = _Parser()
    for number, data in enumerate(file, start=1):
        where = f"{path}: line {number}"
        try:
            text = data.decode("utf-8-sig" if number == 1 else "utf-8")
            begin = _space(text, 0)
            if begin == len(text):
                continue
            value, flaws, end = parser.parse(text, begin)
            end = _space(text, end)
            if end < len(text):
                raise json.JSONDecodeError("more text after the object has ended", text, end)
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: not UTF-8; save it as UTF-8") from error
        except json.JSONDecodeError as error:
            raise InputError(f"{where}, column {error.pos + 1}: not JSON ({error.msg})") from error
        except (RecursionError, ValueError) as error:
            raise InputError(f"{where}: cannot parse this line ({error})") from error
        if isinstance(value, dict):
            value.pop("_crc32", None)  # a journal has it in each line
        yield _as_member(value, flaws, path, number)


_IN_RECORDS = {"query_id", "query", "pointer_candidates", "beams"}
"""Members of records, which are no query ids."""


def _as_member(value: Any, flaws: tuple[Flaw, ...], path: Path, line: int) -> Member:
    """The member that a line, or an item of a list, stands for."""
    if isinstance(value, dict):
        if isinstance(value.get("query_id"), str):
            return Member(value.pop("query_id"), value, line, flaws)
        if len(value) == 1:
            [(key, record)] = value.items()
            if key == "_meta" or (isinstance(record, dict) and key not in _IN_RECORDS):
                flaws = tuple(Flaw(kind, place[1:]) for kind, place in flaws)
                return Member(key, record, line, flaws)
    raise InputError(
        f'{path}: line {line}: not a record with a string "query_id", nor {{query id: record}}'
    )


def _space(text: str, position: int) -> int:
    match = _skip_space(text, position)
    assert match is not None
    return match.end()
