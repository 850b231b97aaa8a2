"""Work that is split when the device runs out of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from pointer_rl.errors import first_line

T = TypeVar("T")
R = TypeVar("R")


def run_in_halves(
    items: Sequence[T],
    run: Callable[[Sequence[T]], Sequence[R]],
    *,
    on_split: Callable[[Sequence[T]], None],
    on_failure: Callable[[T, str], R],
) -> Iterator[R]:
    """Yield the results of `run(items)`. If memory runs out, run each half of the items instead.

    `on_split` is called with items that did not fit, before their halves are tried. `on_failure`
    makes the result of an item that does not fit alone, from the item and the error's first line.
    """
    try:
        results = run(items)
    except torch.OutOfMemoryError as error:
        message = first_line(error)
    else:
        yield from results
        return
    # Not in the `except` block: there the traceback still holds the tensors of the failed pass.
    torch.cuda.empty_cache()
    if len(items) == 1:
        yield on_failure(items[0], message)
        return
    on_split(items)
    middle = (len(items) + 1) // 2
    for half in (items[:middle], items[middle:]):
        yield from run_in_halves(half, run, on_split=on_split, on_failure=on_failure)
