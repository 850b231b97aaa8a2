"""The plugin of bench_generate: any number of queries, kept nowhere; a backend without model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pointer_rl.hookspecs import hookimpl
from pointer_rl.types import Dataset, Example, Response

POOL = 512
WORDS = ("yes", "no", "two", "red", "dog", "left", "tennis", "white")


@dataclass(frozen=True)
class Picture:
    """An image that is never opened."""

    number: int

    @property
    def key(self) -> str:
        return hashlib.sha256(b"%d" % self.number).hexdigest()

    def open(self):
        raise AssertionError("the backend looks at no image")


class Items(Sequence):
    """Examples, made when they are asked for."""

    def __init__(self, rows: range, name: str) -> None:
        self._rows = rows
        self._name = name

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return Items(self._rows[index], self._name)
        row = self._rows[index]
        answers = tuple(WORDS[(row + k // 4) % len(WORDS)] for k in range(10))
        return Example(
            id=f"{self._name}{row}",
            row=row,
            image=Picture(row),
            question=f"What is number {row} in the middle of this picture?",
            answers=answers,
            image_id=f"{self._name}{row}",
        )


@dataclass(frozen=True, kw_only=True)
class Options:
    """How many."""

    queries: int
    """Queries."""


def dataset(options: Options) -> Dataset:
    pool = [Items(range(POOL), "p")[row] for row in range(POOL)]
    return Dataset("synthetic", Items(range(options.queries), "q"), pool)


class Backend:
    fingerprint = "synthetic"

    def run(self, requests):
        for index, request in enumerate(requests):
            yield index, Response(WORDS[len(request.prompt.messages[-1].parts[-1]) % len(WORDS)])


@hookimpl
def pointer_rl_register_backends(register):
    register("synthetic", Backend, summary="answers at once")


@hookimpl
def pointer_rl_register_datasets(register):
    register("synthetic", dataset, options=Options, summary="any number of queries")


SOURCE = Path(__file__).read_text(encoding="utf-8")
