"""How many CPU threads torch uses while a model runs: one for small models.

The threads of a small model mostly wait for each other, and on a machine that does anything else
they wait long (figures: docs/explanation/engine.md). Outside the model's run torch keeps its own
number, so that loading a backend changes nothing that is trained in the same process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, TypeVar

import torch

T = TypeVar("T")

SMALL = 20_000_000
"""A model of fewer parameters than this runs on one thread."""


def choose_threads(model: Any, threads: int | None) -> int | None:
    """Threads for a torch model: those that were asked for, or 1 for a small model on a CPU.

    None: torch's own number, which is what OMP_NUM_THREADS says, where it is set.
    """
    if threads is not None or "OMP_NUM_THREADS" in os.environ or model.device.type != "cpu":
        return threads
    small = sum(each.numel() for each in model.parameters()) < SMALL
    return 1 if small else None


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
