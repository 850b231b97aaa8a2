"""A window of jobs as rows for the shared engine, and rows' results as jobs' results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pointer_rl.local.decoding import Generation
from pointer_rl.types import BackendError, ImageRef
from pointer_rl_qwen2vl.jobs import OVERFLOW, Job, Result, respond

__all__ = ["Gathering", "Outcome", "Row", "Window"]


@dataclass(frozen=True, eq=False)
class Row:
    """A prompt and what is to be done after it: a job, or a part of one with many answers."""

    job: Job
    elements: list[int]
    """The prompt: tokens (≥ 0) and images (< 0), equal numbers for equal images."""
    answers: range
    """Which of the job's answers are scored."""
    generates: bool

    @property
    def answer_tokens(self) -> list[list[int]]:
        """The answers' tokens."""
        return [self.job.answers[index] for index in self.answers]

    def halves(self) -> tuple[Row, ...]:
        """The same in two rows, as far as it can be parted; else itself alone."""
        if self.generates and self.answers:
            return (
                Row(self.job, self.elements, range(0), True),
                Row(self.job, self.elements, self.answers, False),
            )
        if len(self.answers) < 2:
            return (self,)
        middle = len(self.answers) // 2
        parts = (self.answers[:middle], self.answers[middle:])
        return tuple(Row(self.job, self.elements, part, False) for part in parts)


@dataclass(frozen=True)
class Outcome:
    """What came of a row."""

    row: Row
    prompt_tokens: int
    generation: Generation | None
    scores: list[float]
    overflows: bool
    """The model's output was no number: the rest means nothing."""


class Window:
    """The rows of some jobs, those with common beginnings side by side."""

    def __init__(
        self, jobs: Sequence[Job], *, generates: bool, image_token_id: int, answer_tokens: int
    ) -> None:
        """answer_tokens: of a row, about; a job with more to score becomes several rows."""
        numbers: dict[str, int] = {}
        images: dict[int, tuple[str, ImageRef]] = {}
        self.rows: list[Row] = []
        for job in jobs:
            remaining = iter(job.images)
            elements = list(job.token_ids)
            for place, token in enumerate(elements):
                if token == image_token_id:
                    key, image = next(remaining)
                    number = numbers.setdefault(key, -1 - len(numbers))
                    images.setdefault(number, (key, image))
                    elements[place] = number
            for part in _parts(job.answers, answer_tokens):
                self.rows.append(Row(job, elements, part, generates and part.start == 0))
        # Python sorts stably: rows of equal prompts stay in the order given.
        self.rows.sort(key=lambda row: row.elements)
        used = dict.fromkeys(each for row in self.rows for each in row.elements if each < 0)
        self.images = [images[number] for number in used]
        """The distinct images with their keys, in the order of their first use."""
        self.places = {number: place for place, number in enumerate(used)}
        """Where in that list each image element is."""


def _parts(answers: Sequence[Sequence[int]], most: int) -> Iterator[range]:
    """Runs of answers with about so many tokens; one without any where there are no answers."""
    start = tokens = 0
    for index, answer in enumerate(answers):
        if tokens and tokens + len(answer) > most:
            yield range(start, index)
            start, tokens = index, 0
        tokens += len(answer)
    yield range(start, len(answers))


@dataclass
class _Open:
    job: Job
    generation: Generation | None = None
    scores: dict[int, float] = field(default_factory=dict)


class Gathering:
    """Puts rows' results together: a job is done when its last row is."""

    def __init__(self, jobs: Sequence[Job], *, generates: bool) -> None:
        self._generates = generates
        self._open = {job.index: _Open(job) for job in jobs}

    def add(self, outcome: Outcome) -> Iterator[tuple[int, Result]]:
        """A row's outcome; the job's result, if it is done."""
        row = outcome.row
        if outcome.overflows:
            yield from self.fail(row, OVERFLOW)
            return
        job = self._open.get(row.job.index)
        if job is None:
            return  # another row of it has failed
        job.scores.update(zip(row.answers, outcome.scores, strict=True))
        if row.generates:
            job.generation = outcome.generation
        complete = job.generation is not None or not self._generates
        if complete and len(job.scores) == len(row.job.answers):
            del self._open[row.job.index]
            ordered = [job.scores[index] for index in range(len(row.job.answers))]
            yield respond(row.job, outcome.prompt_tokens, job.generation, ordered)

    def fail(self, row: Row, message: str) -> Iterator[tuple[int, Result]]:
        """The job fails, unless it has already."""
        if self._open.pop(row.job.index, None) is not None:
            yield row.job.index, BackendError(message)
