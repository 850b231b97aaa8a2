"""Queries, demonstrations and answers as text, for commands that show them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pointer_rl.cli.output import echo_wrapped

if TYPE_CHECKING:
    from pointer_rl.types import Example, ImageRef

ShowImage = Callable[["ImageRef", int], None]
"""Shows an image in the terminal, indented by so many columns."""


@dataclass(frozen=True)
class Page:
    """Prints queries and what they were shown, as far as the pool is known."""

    pool: Sequence[Example] | None = None
    """The pool's examples; None: only rows, and `ids`, are known."""
    ids: Sequence[str] | None = None
    """The ids of the pool's rows, if they are known without the examples."""
    show_image: ShowImage | None = None

    def query(
        self,
        id: str,
        question: str | None = None,
        image: ImageRef | None = None,
        answers: Sequence[str] = (),
    ) -> None:
        """Print a query, with the annotators' answers and how many gave each."""
        head = f"query {id}" + ("" if question is None else f": {question}")
        echo_wrapped(head, hanging=2, bold=True)
        if answers:
            many = len(answers) > 1
            counted = ", ".join(
                f"{answer} ({times})" if many else answer
                for answer, times in Counter(answers).most_common()
            )
            echo_wrapped(f"annotators: {counted}", indent=2, hanging=4)
        self._image(image, 2)

    def demonstrations(self, rows: Sequence[int], indent: int) -> None:
        """Print the demonstrations in the order in which they are shown."""
        if not rows:
            echo_wrapped("no demonstrations", indent=indent)
        for place, row in enumerate(rows, 1):
            self._demonstration(place, row, indent)

    def _demonstration(self, place: int, row: int, indent: int) -> None:
        number, below = f"{place}. row {row}", indent + 3
        if self.pool is None or row >= len(self.pool):
            known = self.ids[row : row + 1] if self.ids else ()
            echo_wrapped(" ".join([number, *(f"({id})" for id in known)]), indent=indent)
            return
        example = self.pool[row]
        echo_wrapped(
            f"{number} ({example.id}): {example.question} → {example.answer}",
            indent=indent,
            hanging=below,
        )
        self._image(example.image, below)

    def _image(self, image: ImageRef | None, indent: int) -> None:
        name = getattr(image, "name", None)  # an image that is drawn or downloaded has none
        if name is not None:
            echo_wrapped(name, indent=indent, hanging=indent, dim=True)
        if image is not None and self.show_image is not None:
            self.show_image(image, indent)


def quoted(text: object) -> str:
    """The text in quotation marks, so that blanks and line ends in it are seen."""
    return json.dumps(text, ensure_ascii=False)


def format_number(value: Any) -> str:
    """A score or a probability, in few digits."""
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)
