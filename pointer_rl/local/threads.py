"""How many CPU threads torch uses while a model runs: one for small models.

The threads of a small model mostly wait for each other, and on a machine that does anything else
they wait long (figures: docs/explanation/engine.md). Outside the model's run torch keeps its own
number, so that loading a backend changes nothing that is trained in the same process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch

T = TypeVar("T")

SMALL = 20_000_000
"""A model of fewer parameters than this runs on one thread."""
_placed: ContextVar[list[int]] = ContextVar("_placed")


@contextmanager
def placed_on_cpu() -> Iterator[list[int]]:
    """Collect the number of parameters of each model that is placed on a CPU inside."""
    token = _placed.set([])
    try:
        yield _placed.get()
    finally:
        _placed.reset(token)


def note_placed(model: torch.nn.Module | Any, device: torch.device) -> None:
    """Let an enclosing `placed_on_cpu` know of a model."""
    if device.type == "cpu" and (placed := _placed.get(None)) is not None:
        placed.append(sum(each.numel() for each in model.parameters()))


def choose_threads(placed: list[int]) -> int | None:
    """Threads for models of these numbers of parameters; None: torch's own number.

    That is also what OMP_NUM_THREADS says, where it is set.
    """
    small = bool(placed) and max(placed) < SMALL
    return 1 if small and "OMP_NUM_THREADS" not in os.environ else None


def run_in_threads(results: Iterator[T], threads: int | None) -> Iterator[T]:
    """The same results, each computed with so many threads; None: torch's own number."""
    if threads is None:
        yield from results
        return
    while True:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            result = next(results)
        except StopIteration:
            return
        finally:
            torch.set_num_threads(before)
        yield result
