"""Examples in columns: of hundreds of thousands each takes some 200 bytes, and no object.

A dataset's queries and pool may be any sequences of examples. A tuple of `Example` takes some 600
each; what an `ExampleBuilder` builds keeps the same in columns, and makes an `Example` when it is
asked for one:

    builder = ExampleBuilder()
    for fields in read(path):
        builder.append(fields["image"], fields["question"], fields["answers"])
    examples = builder.build(partial(open_image, folder))
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any, Generic, TypeVar, overload

import numpy as np

from pointer_rl.types import Example, ImageRef

__all__ = ["ExampleBuilder", "ExampleColumns", "KeyIndex", "select", "values"]

_KEPT = 1024
"""Examples, and images, that stay made: more than the queries of a window show."""
_KEY_BYTES = 32
_SHA256 = re.compile(f"[0-9a-f]{{{2 * _KEY_BYTES}}}")

Mark = TypeVar("Mark", bound=Hashable)


class _TextColumn:
    """Texts as one stretch of UTF-8, and where each ends: 8 bytes a text beside its own."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._ends = array("q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, text: str) -> None:
        """Any string; half a surrogate pair comes back as it was, too."""
        self._bytes += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._bytes))

    def __getitem__(self, row: int) -> str:
        start, end = self._ends[row], self._ends[row + 1]
        return self._bytes[start:end].decode("utf-8", "surrogatepass")


class _IdColumn:
    """Ids as they are: 8 bytes each while all are integers, none while all are None."""

    def __init__(self) -> None:
        self._nones = 0
        self._numbers = array("q")
        self._mixed: list[int | str | None] = []
        """All ids, once they are neither all numbers nor all None."""

    def append(self, value: int | str | None) -> None:
        if not self._mixed:
            if value is None and not self._numbers:
                self._nones += 1
                return
            if isinstance(value, int) and -(2**63) <= value < 2**63 and not self._nones:
                self._numbers.append(value)
                return
            self._mixed = [*self._numbers, *[None] * self._nones]
            self._numbers, self._nones = array("q"), 0
        self._mixed.append(value)

    def __getitem__(self, row: int) -> int | str | None:
        if self._mixed:
            return self._mixed[row]
        return self._numbers[row] if self._numbers else None


class _AnswersColumn:
    """Tuples of strings, of which few are different: 4 bytes a string, and 12 a row."""

    _NONE = -1

    def __init__(self) -> None:
        self._starts = array("q")
        self._codes = array("i")
        """From a row's start on: how many strings it has, then their numbers."""
        self._strings: list[str] = []
        self._numbers: dict[str, int] = {}

    def append(self) -> None:
        """A row, to be filled later, in any order: VQA's annotations stand in any."""
        self._starts.append(self._NONE)

    def fill(self, row: int, answers: Iterable[str]) -> None:
        numbers = [self._number(answer) for answer in answers]
        self._starts[row] = len(self._codes)
        self._codes.extend([len(numbers), *numbers])

    def _number(self, answer: str) -> int:
        number = self._numbers.setdefault(answer, len(self._strings))
        if number == len(self._strings):
            self._strings.append(answer)
        return number

    def is_filled(self, row: int) -> bool:
        return self._starts[row] != self._NONE

    def close(self) -> None:
        """Nothing is filled any more."""
        self._numbers = {}

    def __getitem__(self, row: int) -> tuple[str, ...]:
        if not self.is_filled(row):
            return ()
        first = self._starts[row] + 1
        numbers = self._codes[first : first + self._codes[first - 1]]
        return tuple(self._strings[number] for number in numbers)


class ExampleBuilder(Generic[Mark]):
    """Takes the fields of one example after the other."""

    def __init__(self) -> None:
        self._questions = _TextColumn()
        self._answers = _AnswersColumn()
        self._ids, self._question_ids, self._image_ids = _IdColumn(), _IdColumn(), _IdColumn()
        self._images = array("i")
        self._image_of: dict[Mark, int] = {}

    def __len__(self) -> int:
        return len(self._questions)

    def append(
        self,
        image: Mark,
        question: str,
        answers: Iterable[str] | None = None,
        *,
        id: int | str | None = None,
        question_id: int | str | None = None,
        image_id: int | str | None = None,
    ) -> None:
        """The next row. `image` is what its image is made of; rows with an equal one share it.

        `answers` may come later (`answer`); `id` defaults to the question_id, else to the row.
        """
        self._images.append(self._image_of.setdefault(image, len(self._image_of)))
        self._questions.append(question)
        self._answers.append()
        self._ids.append(id)
        self._question_ids.append(question_id)
        self._image_ids.append(image_id)
        if answers is not None:
            self.answer(len(self) - 1, answers)

    def answer(self, row: int, answers: Iterable[str]) -> None:
        """The answers of a row that was appended without."""
        self._answers.fill(row, answers)

    def is_answered(self, row: int) -> bool:
        """Whether it has been given its answers."""
        return self._answers.is_filled(row)

    def id(self, row: int) -> str:
        """Of the row's example."""
        return _id(self._ids[row], self._question_ids[row], row)

    def index(self) -> KeyIndex:
        """Rows by id, of what was appended so far."""
        return KeyIndex(map(self.id, range(len(self))), self.id)

    def build(self, make_image: Callable[[Mark], ImageRef]) -> ExampleColumns:
        """What was appended, and no more can be.

        make_image: from what `append` was given; it may be called for an image again. Where the
        dataset is to be pickled it must be picklable (`functools.partial` of a function is).
        """
        self._answers.close()
        columns = _Columns(
            (self._ids, self._question_ids, self._image_ids),
            (self._questions, self._answers, self._images),
            _Images(make_image, _compact(self._image_of), len(self._image_of)),
        )
        self._image_of = {}
        return ExampleColumns(columns, range(len(self)))


def _compact(marks: Iterable[Any]) -> Any:
    """The values in order, as few bytes as their type allows."""
    every = list(marks)
    if all(isinstance(each, str) for each in every):
        texts = _TextColumn()
        for each in every:
            texts.append(each)
        return texts
    ids = _IdColumn()
    for each in every:
        ids.append(each)
    return ids


def _id(id: int | str | None, question_id: int | str | None, row: int) -> str:
    if id is not None:
        return str(id)
    return str(row if question_id is None else question_id)


class _Images:
    """References to images by number, made when asked for; some stay made.

    Of those that do not, the keys that they had found stay, in 32 bytes each: no file is hashed for
    every trial that shows it.
    """

    def __init__(self, make: Callable[[Any], ImageRef], marks: Any, number: int) -> None:
        self._given = make, marks, number
        self._make, self._marks = make, marks
        self._made: dict[int, ImageRef] = {}
        self._keys = bytearray(_KEY_BYTES * number)
        """Zeros where none was found."""

    def __reduce__(self) -> tuple[type[_Images], tuple[Any, ...]]:
        return _Images, self._given

    def __getitem__(self, number: int) -> ImageRef:
        image = self._made.get(number)
        if image is None:
            if len(self._made) == _KEPT:
                self._let_go()
            image = self._make(self._marks[number])
            key = self._keys[number * _KEY_BYTES : (number + 1) * _KEY_BYTES]
            if any(key):
                vars(image)["key"] = key.hex()  # where a `cached_property` looks
            self._made[number] = image
        return image

    def _let_go(self) -> None:
        for number, image in self._made.items():
            key = getattr(image, "__dict__", {}).get("key", "")
            if _SHA256.fullmatch(key):
                self._keys[number * _KEY_BYTES : (number + 1) * _KEY_BYTES] = bytes.fromhex(key)
        self._made.clear()


class _Columns:
    """All rows of a split, whichever of them are looked at."""

    def __init__(self, ids: Any, contents: Any, images: _Images) -> None:
        self._given = ids, contents, images
        self._ids, self._question_ids, self._image_ids = ids
        self._questions, self._answers, self._image_of = contents
        self._images = images
        self.example = lru_cache(_KEPT)(self.make)
        self.values: dict[str, Callable[[int], Any]] = {
            "id": self._id,
            "question": self._questions.__getitem__,
            "answers": self._answers.__getitem__,
            "image_id": self._image_ids.__getitem__,
        }
        """Field → its value in a row."""

    def __reduce__(self) -> tuple[type[_Columns], tuple[Any, ...]]:
        return _Columns, self._given

    def _id(self, row: int) -> str:
        return _id(self._ids[row], self._question_ids[row], row)

    def make(self, row: int) -> Example:
        return Example(
            id=self._id(row),
            row=row,
            image=self._images[self._image_of[row]],
            question=self._questions[row],
            answers=self._answers[row],
            question_id=self._question_ids[row],
            image_id=self._image_ids[row],
        )


class ExampleColumns(Sequence[Example]):
    """Examples, each made when it is asked for; those asked for last stay made.

    Examples of one image share its reference while it stays made, and its key (a SHA-256) for good.
    Equal to any sequence of the same examples. Threads may share it.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, columns: _Columns, rows: Sequence[int]) -> None:
        """Of `ExampleBuilder.build`, and of slices."""
        self._columns = columns
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> ExampleColumns: ...
    def __getitem__(self, index: int | slice) -> Example | ExampleColumns:
        if isinstance(index, slice):
            return ExampleColumns(self._columns, self._rows[index])
        return self._columns.example(self._rows[index])

    def __iter__(self) -> Iterator[Example]:
        # Not kept: a walk over all would only drive out what is.
        return map(self._columns.make, self._rows)

    def values(self, field: str) -> Iterator[Any]:
        """Of "id", "question", "answers" or "image_id", without making the examples."""
        return map(self._columns.values[field], self._rows)

    def select(self, indices: Iterable[int]) -> ExampleColumns:
        """Those at these indices, in this order; they keep their `row`."""
        return ExampleColumns(self._columns, array("q", (self._rows[each] for each in indices)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"<{len(self):,} examples>"


class KeyIndex:
    """Rows by key, in 16 bytes a row: a dict of hundreds of thousands of strings takes 200.

    By the keys' hashes; whether a key is really there is asked of the rows.
    """

    def __init__(self, keys: Iterable[str], key_of: Callable[[int], str]) -> None:
        """keys: of all rows, in their order; key_of: of a row."""
        self.key_of = key_of
        hashes = np.fromiter(map(hash, keys), np.int64)
        self._rows = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._rows]

    def rows(self, key: str) -> list[int]:
        """Those that have this key, ascending."""
        first, last = (self._hashes.searchsorted(hash(key), side) for side in ("left", "right"))
        return [row for row in self._rows[first:last].tolist() if self.key_of(row) == key]

    @cached_property
    def most(self) -> int:
        """At least as many as the rows of any key."""
        return int(np.unique(self._hashes, return_counts=True)[1].max(initial=0))

    def repeated(self) -> tuple[int, int] | None:
        """Two rows that have one key, the earlier first. None: all keys differ."""
        alike = self._rows[1:][self._hashes[1:] == self._hashes[:-1]]
        for row in np.sort(alike).tolist():
            found = self.rows(self.key_of(row))
            if len(found) > 1:
                return found[0], found[1]
        return None


def values(examples: Sequence[Example], field: str) -> Iterator[Any]:
    """A field ("id", "question", "answers", "image_id") of each; of columns without making them."""
    if isinstance(examples, ExampleColumns):
        return examples.values(field)
    return (getattr(each, field) for each in examples)


def select(examples: Sequence[Example], rows: Iterable[int]) -> Sequence[Example]:
    """Those at these rows, in this order; of columns without making them."""
    if isinstance(examples, ExampleColumns):
        return examples.select(rows)
    return [examples[row] for row in rows]
