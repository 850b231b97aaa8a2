"""What a dataset loader promises: `pointer_rl.types.Dataset`."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pointer_rl.errors import InputError, first_line
from pointer_rl.testing.examine import Check, examine
from pointer_rl.testing.findings import (
    Broken,
    NotApplicable,
    Result,
    Subject,
    raise_findings,
    require,
)
from pointer_rl.types import Dataset, Example

__all__ = ["check_dataset", "examine_dataset"]

Datasets = Subject[Dataset]

_LOOKED_AT = 8
"""How many pictures of a split are opened."""


def check_dataset(factory: Callable[..., Dataset], options: Any = None) -> None:
    """Raise ContractError unless the dataset that `factory(options)` loads keeps its contract.

    Reads every example, and opens a few pictures.
    """
    __tracebackhide__ = True
    subject = Subject("dataset", factory, options)
    raise_findings(subject, examine(subject, _FOUNDATIONS, _FURTHER))


def examine_dataset(factory: Callable[..., Dataset], options: Any) -> Iterator[Result]:
    """Likewise, a result for each check."""
    return examine(Subject("dataset", factory, options), _FOUNDATIONS, _FURTHER)


def _splits(dataset: Dataset) -> dict[str, Sequence[Example]]:
    return {"queries": dataset.queries, "pool": dataset.pool}


def _some(examples: Sequence[Example]) -> list[Example]:
    """From the whole length of it."""
    step = max(1, len(examples) // _LOOKED_AT)
    return [examples[row] for row in range(0, len(examples), step)][:_LOOKED_AT]


def _is_dataset(subject: Datasets) -> None:
    made = subject.made
    require(
        isinstance(made, Dataset),
        f"the factory gave a {type(made).__name__}: return pointer_rl.types.Dataset",
    )
    require(
        isinstance(made.name, str) and bool(made.name),
        f"its name is {made.name!r}: give it one, for messages and metadata",
    )
    for split, examples in _splits(made).items():
        require(
            isinstance(examples, Sequence),
            f"its {split} are a {type(examples).__name__}: give a tuple, a list or another "
            "Sequence, which has a length and slices",
        )
    require(len(made.queries) > 0, "it has no queries: raise InputError that says where it looked")


def _examples(subject: Datasets) -> None:
    for split, examples in _splits(subject.made).items():
        for row, example in enumerate(examples):
            where = f"row {row} of the {split}"
            require(
                isinstance(example, Example),
                f"{where} is a {type(example).__name__}: make it an Example",
            )
            require(
                example.row == row,
                f"{where} says row={example.row}: count each split from 0, for embeddings and "
                "pointers are found by it",
            )
            require(
                isinstance(example.question, str),
                f"{where} has the question {example.question!r}: make it a str",
            )
            require(
                isinstance(example.answers, tuple)
                and all(isinstance(answer, str) for answer in example.answers),
                f"{where} has the answers {example.answers!r}: make them a tuple of str, one an "
                "annotator",
            )


def _ids(subject: Datasets) -> None:
    for split, examples in _splits(subject.made).items():
        rows: dict[str, int] = {}
        for row, example in enumerate(examples):
            require(
                isinstance(example.id, str) and bool(example.id) and example.id[0] != "_",
                f"row {row} of the {split} has the id {example.id!r}: make it a str that is not "
                "empty and does not begin with _, for it is a key of RL data",
            )
            require(
                example.id not in rows,
                f"rows {rows.get(example.id)} and {row} of the {split} have one id, "
                f"{example.id!r}: give each example its own, or refuse the file with InputError",
            )
            rows[example.id] = row


def _pool_is_answered(subject: Datasets) -> None:
    if not subject.made.pool:
        raise NotApplicable("it has no pool")
    for row, example in enumerate(subject.made.pool):
        require(
            bool(example.answers),
            f"row {row} of the pool has no answers: a demonstration shows one, so leave it out",
        )


def _pictures(subject: Datasets) -> None:
    for split, examples in _splits(subject.made).items():
        for example in _some(examples):
            where = f"the picture of example {example.id} of the {split}"
            try:
                key, picture = example.image.key, example.image.open()
            except InputError as error:
                raise Broken(
                    f"{where} cannot be opened ({first_line(error)}): mend the data"
                ) from error
            except Exception as error:
                raise Broken(
                    f"{where} raised {type(error).__name__} ({first_line(error)}): raise "
                    "InputError for a picture that is none; ImageFile and ImageBytes do"
                ) from error
            require(
                isinstance(key, str) and bool(key) and key == example.image.key,
                f"{where} has the key {key!r}: make it a hash of the content, always the same",
            )
            require(
                getattr(picture, "mode", None) == "RGB",
                f"{where} opens as {getattr(picture, 'mode', type(picture).__name__)}: "
                "convert it to RGB",
            )


def _pickles(subject: Datasets) -> None:
    for split, examples in _splits(subject.made).items():
        some = _some(examples)
        try:
            copies = pickle.loads(pickle.dumps(some))
            kept = all(a.image.key == b.image.key for a, b in zip(some, copies, strict=True))
        except Exception as error:
            raise Broken(
                f"its {split} cannot be pickled ({first_line(error)}), so that no other process "
                "can be handed them: let an image hold a path or bytes, nothing that is open"
            ) from error
        require(kept, f"pictures of the {split} have another key after pickle: hash the content")


def _same_again(subject: Datasets) -> None:
    again = _splits(subject.make())
    for split, examples in _splits(subject.made).items():
        require(
            [_told(each) for each in examples] == [_told(each) for each in again[split]],
            f"loaded again its {split} are others, or in another order: sort what a folder or a "
            "set gives, and draw from a seed that is an option",
        )


def _told(example: Example) -> tuple[object, ...]:
    return (example.id, example.question, example.answers, example.question_id, example.image_id)


_FOUNDATIONS: dict[str, Check[Datasets]] = {
    "is a dataset": _is_dataset,
    "examples are whole, rows count from 0": _examples,
}
_FURTHER: dict[str, Check[Datasets]] = {
    "ids are unique": _ids,
    "the pool has answers": _pool_is_answered,
    "pictures open": _pictures,
    "examples can be pickled": _pickles,
    "loads the same again": _same_again,
}
