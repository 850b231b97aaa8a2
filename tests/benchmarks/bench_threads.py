"""The engine on one CPU thread and on two, by the size of the model, in turn in each round.

Trials and models are those of bench_engine.py. Wall time, so it depends on what else runs.
"""

from __future__ import annotations

import os
import platform
import statistics
import time

import torch
from bench_engine import ask, enlarged, larger, session, trials

from pointer_rl.types import Request
from pointer_rl_qwen2vl.backend import Qwen2VLBackend
from pointer_rl_qwen2vl.checkpoint import Checkpoint, load_checkpoint
from pointer_rl_qwen2vl.options import Qwen2VLOptions

ROUNDS = 3
THREADS = (1, 2)


def measure(checkpoint: Checkpoint, windows: list[list[Request]]) -> None:
    """Print the medians, and whether the number of threads changes a digit."""
    seconds: dict[int, list[float]] = {number: [] for number in THREADS}
    found = {}
    for _ in range(ROUNDS):
        for number in THREADS:
            backend = Qwen2VLBackend(checkpoint, threads=number)
            start = time.perf_counter()
            found[number] = ask(backend, windows)
            seconds[number].append(time.perf_counter() - start)
    size = sum(each.numel() for each in checkpoint.model.parameters()) / 1e6
    rates = (
        f"{number}: {len(found[number]) / statistics.median(seconds[number]):.3g} trials/s"
        for number in THREADS
    )
    same = "bit-identical" if found[1] == found[2] else "other last digits"
    print(f"{size:.0f}M parameters, threads {', '.join(rates)}; results: {same}", flush=True)


def main() -> None:
    """Measure, print."""
    load = os.getloadavg()[0]
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f}, torch {torch.__version__}"
    )
    bench = session(24)
    assert bench.dataset.companions is not None
    small = load_checkpoint(Qwen2VLOptions(model=bench.dataset.companions.model, device="cpu"))
    measure(small, trials(bench))
    measure(larger(small), trials(session(1), enlarged))


if __name__ == "__main__":
    main()
