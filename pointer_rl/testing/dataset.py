"""Tests of a dataset loader: `pointer_rl.types.Dataset`."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from unittest import SkipTest

from pointer_rl.errors import InputError, first_line
from pointer_rl.testing.plugin import PluginTests
from pointer_rl.types import Dataset, Example

_OPENED = 8
"""How many images of a split are opened."""


class DatasetTests(PluginTests[Dataset]):
    """Reads every example, and opens a few images."""

    kind = "dataset"

    @property
    def splits(self) -> dict[str, Sequence[Example]]:
        """The queries and the pool, by name."""
        return _splits(self.made)

    def test_is_a_dataset(self) -> None:
        """The factory returns a named `Dataset` with queries."""
        made = self.made
        assert isinstance(made, Dataset), (
            f"the factory gave a {type(made).__name__}: return pointer_rl.types.Dataset"
        )
        assert isinstance(made.name, str) and made.name, (
            f"its name is {made.name!r}: give it one, for messages and metadata"
        )
        for split, examples in self.splits.items():
            assert isinstance(examples, Sequence), (
                f"its {split} are a {type(examples).__name__}: give a tuple, a list or another "
                "Sequence, which has a length and slices"
            )
        assert len(made.queries), "it has no queries: raise InputError that says where it looked"

    def test_examples_are_complete_and_rows_count_from_0(self) -> None:
        """Every field of an example has its type, and `row` is its position."""
        for split, row, example in self._examples():
            where = f"row {row} of the {split}"
            assert isinstance(example, Example), (
                f"{where} is a {type(example).__name__}: make it an Example"
            )
            assert example.row == row, (
                f"{where} says row={example.row}: count each split from 0, because embeddings and "
                "pointers refer to it"
            )
            assert isinstance(example.question, str), (
                f"{where} has the question {example.question!r}: make it a str"
            )
            answers = example.answers
            assert isinstance(answers, tuple) and all(isinstance(each, str) for each in answers), (
                f"{where} has the answers {answers!r}: make them a tuple of str, one an annotator"
            )

    def test_ids_are_unique(self) -> None:
        """An id is a key of RL data."""
        rows: dict[tuple[str, str], int] = {}
        for split, row, example in self._examples():
            assert isinstance(example.id, str) and example.id and example.id[0] != "_", (
                f"row {row} of the {split} has the id {example.id!r}: make it a str that is not "
                "empty and does not begin with _, because it is a key of RL data"
            )
            first = rows.setdefault((split, example.id), row)
            assert first == row, (
                f"rows {first} and {row} of the {split} have one id, {example.id!r}: give each "
                "example its own, or refuse the file with InputError"
            )

    def test_the_pool_has_answers(self) -> None:
        """A demonstration shows an answer."""
        if not self.made.pool:
            raise SkipTest("it has no pool")
        for row, example in enumerate(self.made.pool):
            assert example.answers, (
                f"row {row} of the pool has no answers: a demonstration shows one, so leave it out"
            )

    def test_images_open(self) -> None:
        """Images decode to RGB, and have a key that stays."""
        for split, examples in self.splits.items():
            for example in _some(examples):
                where = f"the image of example {example.id} of the {split}"
                try:
                    key, image = example.image.key, example.image.open()
                except InputError as error:
                    raise AssertionError(
                        f"{where} cannot be opened ({first_line(error)}): repair the data"
                    ) from error
                except Exception as error:
                    raise AssertionError(
                        f"{where} raised {type(error).__name__} ({first_line(error)}): raise "
                        "InputError for an image that cannot be decoded; ImageFile and ImageBytes "
                        "do"
                    ) from error
                assert isinstance(key, str) and key and key == example.image.key, (
                    f"{where} has the key {key!r}: make it a hash of the content, always the same"
                )
                mode = getattr(image, "mode", type(image).__name__)
                assert mode == "RGB", f"{where} opens as {mode}: convert it to RGB"

    def test_examples_can_be_pickled(self) -> None:
        """Another process can receive them."""
        for split, examples in self.splits.items():
            some = _some(examples)
            try:
                copies = pickle.loads(pickle.dumps(some))
                same = all(a.image.key == b.image.key for a, b in zip(some, copies, strict=True))
            except Exception as error:
                raise AssertionError(
                    f"its {split} cannot be pickled ({first_line(error)}), so no other process "
                    "can receive them: let an image hold a path or bytes, nothing that is open"
                ) from error
            assert same, f"images of the {split} have another key after pickle: hash the content"

    def test_loads_the_same_again(self) -> None:
        """The same options give the same examples in the same order."""
        again = _splits(self.make())
        for split, examples in self.splits.items():
            assert [*map(_content, examples)] == [*map(_content, again[split])], (
                f"loaded again its {split} are others, or in another order: sort what a folder or "
                "a set gives, and draw from a seed that is an option"
            )

    def _examples(self) -> Iterator[tuple[str, int, Example]]:
        for split, examples in self.splits.items():
            for row, example in enumerate(examples):
                yield split, row, example


def _splits(dataset: Dataset) -> dict[str, Sequence[Example]]:
    return {"queries": dataset.queries, "pool": dataset.pool}


def _some(examples: Sequence[Example]) -> list[Example]:
    """A few examples, spread over all of them."""
    step = max(1, len(examples) // _OPENED)
    return [examples[row] for row in range(0, len(examples), step)][:_OPENED]


def _content(example: Example) -> tuple[object, ...]:
    return (example.id, example.question, example.answers, example.question_id, example.image_id)
