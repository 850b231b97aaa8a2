"""Small hand-written stand-ins for what a plugin is used with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pointer_rl.datasets.images import ImageBytes
from pointer_rl.errors import InputError
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

if TYPE_CHECKING:
    from pointer_rl.selectors import SelectorPolicy

__all__ = ["EqualMetric", "FakeBackend", "PlainPrompt", "batch", "example", "fake_policy", "pool"]


def example(row: int, answer: str = "yes", **fields: Any) -> Example:
    """An example that three annotators answered alike; its image is bytes that no decoder reads.

    `fields` are those of `Example` that are to be otherwise.
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


class PlainPrompt:
    """The pictures, then `shown answers | question`; parse strips."""

    def build(self, query: Example, demonstrations: Sequence[Example]) -> Prompt:
        shown = " ".join(each.answer for each in demonstrations)
        images = (*(each.image for each in demonstrations), query.image)
        return Prompt((Message("user", (*images, f"{shown} | {query.question}")),))

    def parse(self, text: str) -> str:
        return text.strip()


class EqualMetric:
    """Right when equal to the first answer."""

    version = "1"

    def normalise(self, answer: str) -> str:
        return answer.lower()

    def judge(self, answer: str, answers: Sequence[str]) -> Judgement:
        if not answers:
            raise InputError("nobody answered: there is nothing to compare with")
        right = answer == answers[0]
        return Judgement(right, float(right))


def _last_word(text: str) -> str:
    return text.split()[-1]


class FakeBackend:
    """Answers with a function of the prompt's text (its last word); last request first.

    An answer's log-probability is minus its length.
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
    """The queries with random embeddings [B, dim]; they may choose any row of the pool."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return QueryBatch(
        queries,
        torch.randn(len(queries), dim, generator=generator),
        torch.ones(len(queries), pool_size, dtype=torch.bool),
        shots,
    )


def pool(examples: Sequence[Example], dim: int = 4) -> Pool:
    """The examples with random embeddings [K, dim]."""
    import torch

    generator = torch.Generator().manual_seed(1)
    return Pool(examples, torch.randn(len(examples), dim, generator=generator))


def fake_policy(dim: int = 4) -> SelectorPolicy:
    """An untrained selector for embeddings of that size: its masks, beams and draws are real."""
    from pointer_rl.selectors import PointerSelector, SelectorConfig, SelectorPolicy

    config = SelectorConfig(d_model=dim, hidden_dim=dim, num_layers=1, num_heads=1, history="gated")
    return SelectorPolicy(PointerSelector.seeded(config, seed=0))
