"""Small hand-written stand-ins, shared by the suites."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from pointer_rl.images import ImageBytes
from pointer_rl.types import (
    BackendError,
    Example,
    Judgement,
    Message,
    Pool,
    Prompt,
    QueryBatch,
    Request,
    Response,
)


def example(row: int, answer: str = "yes", **fields) -> Example:
    """An example whose question is its id and whose image is bytes of its own."""
    given = {
        "id": f"e{row}",
        "row": row,
        "image": ImageBytes(str(fields.get("id", row)).encode(), f"image {row}"),
        "question": f"question {row}",
        "answers": (answer,) * 3,
        **fields,
    }
    return Example(**given)


class PlainPrompt:
    """`shown answers | question`; parse strips."""

    def build(self, query: Example, demonstrations: Sequence[Example]) -> Prompt:
        shown = " ".join(each.answer for each in demonstrations)
        return Prompt((Message("user", (f"{shown} | {query.question}",)),))

    def parse(self, text: str) -> str:
        return text.strip()


class EqualMetric:
    """Right when equal to the first answer."""

    version = "1"

    def normalise(self, answer: str) -> str:
        return answer.lower()

    def judge(self, answer: str, answers: Sequence[str]) -> Judgement:
        right = answer == answers[0]
        return Judgement(right, float(right))


class FakeBackend:
    """Answers with a function of the prompt's text; last request first."""

    fingerprint = "fake"

    def __init__(self, answer: Callable[[str], str | BackendError]) -> None:
        self._answer = answer
        self.asked: list[Request] = []

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, Response | BackendError]]:
        self.asked += requests
        for index in reversed(range(len(requests))):
            result = self._answer(requests[index].prompt.text)
            if not isinstance(result, BackendError):
                result = Response(result, tuple(-float(len(a)) for a in requests[index].score))
            yield index, result


class CopyBackend(FakeBackend):
    """Answers with the last demonstration's answer; fails for an image that does not open."""

    fingerprint = "copy"

    def __init__(self) -> None:
        super().__init__(lambda text: text.split("Short answer:")[-2].split(" Question:")[0])

    def run(self, requests):
        for index, result in super().run(requests):
            try:
                for image in requests[index].prompt.images:
                    image.open()
            except Exception as error:
                result = BackendError(str(error))
            yield index, result


def batch(queries: Sequence[Example], pool_size: int, shots: int = 2, dim: int = 4) -> QueryBatch:
    generator = torch.Generator().manual_seed(0)
    return QueryBatch(
        queries,
        torch.randn(len(queries), dim, generator=generator),
        torch.ones(len(queries), pool_size, dtype=torch.bool),
        shots,
    )


def pool(examples: Sequence[Example], dim: int = 4) -> Pool:
    generator = torch.Generator().manual_seed(1)
    return Pool(examples, torch.randn(len(examples), dim, generator=generator))
