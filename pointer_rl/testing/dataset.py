"""Tests of a dataset loader: `pointer_rl.types.Dataset`."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import SkipTest

from pointer_rl.errors import InputError, first_line
from pointer_rl.testing.plugin import PluginTests, check_type, explain
from pointer_rl.types import Dataset, Example

_OPENED = 8
"""How many images of a split are opened."""


class DatasetTests(PluginTests[Dataset]):
    """Reads every example, and opens a few images."""

    kind = "dataset"
    how_to_repeat = (
        "sort what a folder or a set gives, and draw from a seed that is an option, so that it "
        "loads the same examples in the same order"
    )

    def use(self, made: Dataset) -> dict[str, Any]:
        """The content of every example."""
        check_type(made, Dataset, "the factory", "pointer_rl.types.Dataset")
        assert isinstance(made.name, str) and made.name, (
            f"its name is {made.name!r}: give it one, for messages and metadata"
        )
        for split, examples in _splits(made):
            assert isinstance(examples, Sequence), (
                f"its {split} are a {type(examples).__name__}: give a tuple, a list or another "
                "Sequence, which has a length and slices"
            )
        assert len(made.queries), "it has no queries: raise InputError that says where it looked"
        return {
            f"row {row} of the {split}": _read(example, row, split)
            for split, examples in _splits(made)
            for row, example in enumerate(examples)
        }

    def test_ids_are_unique(self) -> None:
        """An id is a key of RL data."""
        for split, examples in _splits(self.made):
            rows: dict[str, int] = {}
            for row, example in enumerate(examples):
                first = rows.setdefault(example.id, row)
                assert first == row, (
                    f"rows {first} and {row} of the {split} have one id, {example.id!r}: give "
                    "each example its own, or refuse the file with InputError"
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
        for split, examples in _splits(self.made):
            for example in _some(examples):
                what = f"the image of example {example.id} of the {split}"
                fix = "raise InputError if it cannot be decoded; ImageFile and ImageBytes do"
                try:
                    with explain(what, fix, InputError):
                        key, image = example.image.key, example.image.open()
                except InputError as error:
                    raise AssertionError(
                        f"{what} cannot be opened ({first_line(error)}): repair the data"
                    ) from error
                assert isinstance(key, str) and key and key == example.image.key, (
                    f"{what} has the key {key!r}: make it a hash of the content, always the same"
                )
                mode = getattr(image, "mode", type(image).__name__)
                assert mode == "RGB", f"{what} opens as {mode}: convert it to RGB"

    def test_examples_can_be_pickled(self) -> None:
        """Another process can receive them."""
        fix = "let an image hold a path or bytes, nothing that is open, for other processes"
        for split, examples in _splits(self.made):
            some = _some(examples)
            with explain(f"pickle cannot copy its {split}: it", fix):
                copies = pickle.loads(pickle.dumps(some))
                same = all(a.image.key == b.image.key for a, b in zip(some, copies, strict=True))
            assert same, f"images of the {split} have another key after pickle: hash the content"


def _read(example: Example, row: int, split: str) -> tuple[object, ...]:
    """The fields of an example without its image. Fails unless they have the right types."""
    what = f"row {row} of the {split}"
    assert isinstance(example, Example), f"{what} is a {type(example).__name__}: make it an Example"
    assert example.row == row, (
        f"{what} says row={example.row}: count each split from 0, because embeddings and pointers "
        "refer to it"
    )
    assert isinstance(example.id, str) and example.id and example.id[0] != "_", (
        f"{what} has the id {example.id!r}: make it a str that is not empty and does not begin "
        "with _, because it is a key of RL data"
    )
    assert isinstance(example.question, str), (
        f"{what} has the question {example.question!r}: make it a str"
    )
    answers = example.answers
    assert isinstance(answers, tuple) and all(isinstance(each, str) for each in answers), (
        f"{what} has the answers {answers!r}: make them a tuple of str, one an annotator"
    )
    return (example.id, example.question, answers, example.question_id, example.image_id)


def _splits(dataset: Dataset) -> Iterator[tuple[str, Sequence[Example]]]:
    yield "queries", dataset.queries
    yield "pool", dataset.pool


def _some(examples: Sequence[Example]) -> Sequence[Example]:
    """A few examples, spread over all of them."""
    step = max(1, len(examples) // _OPENED)
    return [examples[row] for row in range(0, len(examples), step)][:_OPENED]
