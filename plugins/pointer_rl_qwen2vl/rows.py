"""Requests as rows for the shared engine, and the rows' results as the requests' results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pointer_rl.local.batching import OVERFLOW, Result, make_response
from pointer_rl.local.decoding import Generation
from pointer_rl.types import BackendError, ImageRef
from pointer_rl_qwen2vl.inputs import TokenisedRequest


@dataclass(frozen=True, eq=False)
class Row:
    """A prompt and the work that follows it: a request, or a part of one with many answers."""

    request: TokenisedRequest
    elements: list[int]
    """The prompt: tokens (≥ 0) and images (< 0). Equal images have equal numbers."""
    answers: range
    """Indices of the request's answers to score."""
    generates: bool

    @property
    def answer_tokens(self) -> list[list[int]]:
        """Tokens of the answers to score."""
        return [self.request.answers[index] for index in self.answers]

    def halves(self) -> tuple[Row, ...]:
        """Split the work into two rows. A row that cannot be split is returned alone."""
        if self.generates and self.answers:
            return (
                Row(self.request, self.elements, range(0), True),
                Row(self.request, self.elements, self.answers, False),
            )
        if len(self.answers) < 2:
            return (self,)
        middle = len(self.answers) // 2
        parts = (self.answers[:middle], self.answers[middle:])
        return tuple(Row(self.request, self.elements, part, False) for part in parts)


@dataclass(frozen=True)
class RowResult:
    """The result of a row."""

    row: Row
    prompt_tokens: int
    generation: Generation | None
    scores: list[float]
    overflows: bool
    """The model's output was not finite. The other fields are then meaningless."""


class SortedRows:
    """The rows of some requests, sorted so that rows with a common prefix are neighbours."""

    def __init__(
        self,
        requests: Sequence[TokenisedRequest],
        *,
        generates: bool,
        image_token_id: int,
        answer_tokens: int,
    ) -> None:
        """A request with more than about `answer_tokens` tokens to score becomes several rows."""
        numbers: dict[str, int] = {}
        images: dict[int, tuple[str, ImageRef]] = {}
        self.rows: list[Row] = []
        for request in requests:
            remaining = iter(request.images)
            elements = list(request.token_ids)
            for place, token in enumerate(elements):
                if token == image_token_id:
                    key, image = next(remaining)
                    number = numbers.setdefault(key, -1 - len(numbers))
                    images.setdefault(number, (key, image))
                    elements[place] = number
            for part in _parts(request.answers, answer_tokens):
                self.rows.append(Row(request, elements, part, generates and part.start == 0))
        # The sort is stable: rows of equal prompts keep their order.
        self.rows.sort(key=lambda row: row.elements)
        used = dict.fromkeys(each for row in self.rows for each in row.elements if each < 0)
        self.images = [images[number] for number in used]
        """The distinct images with their keys, in the order of their first use."""
        self.image_indices = {number: index for index, number in enumerate(used)}
        """Image element → its index in `images`."""


def _parts(answers: Sequence[Sequence[int]], most: int) -> Iterator[range]:
    """Ranges of answers with about `most` tokens each. One empty range if there are no answers."""
    start = tokens = 0
    for index, answer in enumerate(answers):
        if tokens and tokens + len(answer) > most:
            yield range(start, index)
            start, tokens = index, 0
        tokens += len(answer)
    yield range(start, len(answers))


@dataclass
class _Unfinished:
    generation: Generation | None = None
    scores: dict[int, float] = field(default_factory=dict)


class ResultAssembler:
    """Assembles requests' results from their rows' results."""

    def __init__(self, requests: Sequence[TokenisedRequest], *, generates: bool) -> None:
        self._generates = generates
        self._unfinished = {request.index: _Unfinished() for request in requests}

    def add(self, result: RowResult) -> Iterator[tuple[int, Result]]:
        """Add a row's result. Yields the request's result once all its rows are there."""
        row = result.row
        if result.overflows:
            yield from self.fail(row, OVERFLOW)
            return
        unfinished = self._unfinished.get(row.request.index)
        if unfinished is None:
            return  # Another row of the request has failed.
        unfinished.scores.update(zip(row.answers, result.scores, strict=True))
        if row.generates:
            unfinished.generation = result.generation
        generated = unfinished.generation is not None or not self._generates
        answers = range(len(row.request.answers))
        if generated and len(unfinished.scores) == len(answers):
            del self._unfinished[row.request.index]
            yield (
                row.request.index,
                make_response(
                    unfinished.generation,
                    [unfinished.scores[index] for index in answers],
                    prompt_tokens=result.prompt_tokens,
                    images=len(row.request.images),
                ),
            )

    def fail(self, row: Row, message: str) -> Iterator[tuple[int, Result]]:
        """Yield an error for the row's request, unless it has already failed."""
        if self._unfinished.pop(row.request.index, None) is not None:
            yield row.request.index, BackendError(message)
