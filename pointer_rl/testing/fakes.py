"""Small stand-ins to test a plugin with: examples, a dataset, a backend, a policy and others."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from PIL import Image

from pointer_rl.datasets.images import ImageBytes
from pointer_rl.errors import InputError
from pointer_rl.selectors import PointerConfig, PointerSelector, SelectorPolicy
from pointer_rl.types import (
    BackendError,
    Dataset,
    Example,
    Judgement,
    Message,
    Pool,
    Prompt,
    QueryBatch,
    Request,
    Response,
)

_COLOURS = ("red", "green", "blue", "yellow", "black", "white")
_SIZES = ((48, 48), (72, 40), (40, 64))
"""Width and height in pixels: the images of a batch rarely have one size."""


def example(row: int, answer: str = "yes", **fields: Any) -> Example:
    """An example with three equal answers, and an image of bytes that no decoder reads.

    `fields` replaces fields of `Example`.
    """
    given: dict[str, Any] = {
        "id": f"e{row}",
        "row": row,
        "image": ImageBytes(str(fields.get("id", row)).encode(), f"image {row}"),
        "question": f"question {row}",
        "answers": (answer,) * 3,
        **fields,
    }
    return Example(**given)


@lru_cache(maxsize=1)
def tiny_dataset() -> Dataset:
    """Four queries and a pool of eight: small images of one colour with a bar in another.

    Each question about one of the colours has ten answers, of which two disagree.
    """
    return Dataset(
        name="tiny",
        queries=tuple(_tiny_example("q", row, row) for row in range(4)),
        pool=tuple(_tiny_example("p", row, row + 4) for row in range(8)),
    )


def _tiny_example(split: str, row: int, number: int) -> Example:
    ground = _COLOURS[number % len(_COLOURS)]
    bar = _COLOURS[(number + 1 + number // len(_COLOURS)) % len(_COLOURS)]
    about_bar = number % 2 == 1
    answer = bar if about_bar else ground
    question = "what colour is the bar in this image?" if about_bar else "what colour is it?"
    return Example(
        id=f"{split}{row}",
        row=row,
        image=ImageBytes(_png(ground, bar, _SIZES[number % len(_SIZES)]), f"image {number}"),
        question=question,
        answers=(answer,) * 8 + (f"{answer} colour", "no idea"),
        question_id=number,
        image_id=number,
    )


def _png(ground: str, bar: str, size: tuple[int, int]) -> bytes:
    image = Image.new("RGB", size, ground)
    image.paste(bar, (0, size[1] // 3, size[0] // 2, size[1] // 2))
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    return encoded.getvalue()


@dataclass
class UnreadableImage:
    """An image that cannot be opened; it counts the attempts."""

    key: str = "unreadable"
    opened: int = 0

    def open(self) -> Image.Image:
        """Raises InputError."""
        self.opened += 1
        raise InputError("unreadable.png: not a readable image")


class PlainPrompt:
    """All images, then `answers of the demonstrations | question`; parse strips."""

    def build(self, query: Example, demonstrations: Sequence[Example]) -> Prompt:
        shown = " ".join(each.answer for each in demonstrations)
        images = (*(each.image for each in demonstrations), query.image)
        return Prompt((Message("user", (*images, f"{shown} | {query.question}")),))

    def parse(self, text: str) -> str:
        return text.strip()


class EqualMetric:
    """Correct if equal to the first annotator's answer."""

    version = "1"

    def normalise(self, answer: str) -> str:
        return answer.lower()

    def judge(self, answer: str, answers: Sequence[str]) -> Judgement:
        if not answers:
            raise InputError("no annotator answered: there is nothing to compare with")
        right = answer == answers[0]
        return Judgement(right, float(right))


def _last_word(text: str) -> str:
    return text.split()[-1]


class FakeBackend:
    """Answers with a function of the prompt's text (default: its last word), last request first.

    The log-probability of an answer is minus its length. `asked` keeps all requests.
    """

    fingerprint = "fake"

    def __init__(self, answer: Callable[[str], str | BackendError] = _last_word) -> None:
        self._answer = answer
        self.asked: list[Request] = []

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, Response | BackendError]]:
        self.asked += requests
        for index in reversed(range(len(requests))):
            request = requests[index]
            answer = self._answer(request.prompt.text)
            if isinstance(answer, BackendError):
                yield index, answer
                continue
            for stop in request.decoding.stop if request.decoding else ():
                answer = answer.partition(stop)[0]
            yield index, Response(answer, tuple(-float(len(each)) for each in request.score))


def batch(queries: Sequence[Example], pool_size: int, shots: int = 2, dim: int = 4) -> QueryBatch:
    """The queries with random embeddings [B, dim]; every row of the pool is allowed."""
    generator = torch.Generator().manual_seed(0)
    return QueryBatch(
        queries,
        torch.randn(len(queries), dim, generator=generator),
        torch.ones(len(queries), pool_size, dtype=torch.bool),
        shots,
    )


def pool(examples: Sequence[Example], dim: int = 4) -> Pool:
    """The examples with random embeddings [K, dim]."""
    generator = torch.Generator().manual_seed(1)
    return Pool(examples, torch.randn(len(examples), dim, generator=generator))


def fake_policy(dim: int = 4) -> SelectorPolicy:
    """A policy of an untrained selector for embeddings of size `dim`."""
    config = PointerConfig(d_model=dim, hidden_dim=dim, num_layers=1, num_heads=1, history="gated")
    return SelectorPolicy(PointerSelector.seeded(config, seed=0))
