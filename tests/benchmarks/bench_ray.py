"""What the executor `ray` costs: efficiency with workers that sleep, windows a second, memory.

    python tests/benchmarks/bench_ray.py [--workers 1 4 32]

First the driver alone, with made-up workers that answer at once: its work per window is what does
not get faster with more machines. Then Ray on this machine with a job that sleeps, so that any
number of workers run at once on few cores, and with windows that are empty.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from pointer_rl.session.windows import windows_of
from pointer_rl.types import Window
from pointer_rl_ray.channel import Done, Report
from pointer_rl_ray.running import FleetExecutor

SECONDS = 0.5
"""Time that a window takes."""
ROUNDS = 12
"""Windows for each worker."""


@dataclass(frozen=True)
class Sleep:
    """A job whose windows take as long."""

    seconds: float

    def run(self, window: Window) -> dict[int, dict[str, int]]:
        time.sleep(self.seconds)
        return {index: {"index": index} for index in window.todo}


class MadeUp:
    """Workers that are done at once; see `pointer_rl_ray.running.Fleet`."""

    def __init__(self, number: int) -> None:
        self._free = list(range(number))
        self._done: deque[tuple[int, dict[int, object]]] = deque()

    def free(self) -> list[int]:
        return list(self._free)

    def call(self, worker: int, method: str, order) -> None:
        self._free.remove(worker)
        self._done.append((worker, {index: {} for index in order.window.todo}))

    def wait(self, seconds: float) -> Iterator[tuple[int, Report]]:
        for _ in range(len(self._done)):
            worker, records = self._done.popleft()
            self._free.append(worker)
            yield worker, Report(Done(records))

    def put(self, packed):
        return packed

    def name(self, worker: int) -> str:
        return f"worker {worker}"

    def abandon(self, workers) -> None:
        assert not list(workers)


def seconds_of(executor, job, number: int) -> float:
    began = time.perf_counter()
    assert sum(1 for _ in executor.run(job, windows_of(range(number), 1))) == number
    return time.perf_counter() - began


def resident_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def simulate(workers: int, windows: int) -> None:
    executor = FleetExecutor(MadeUp(workers))
    seconds_of(executor, Sleep(0), 1000)
    before = resident_mb()
    took = seconds_of(executor, Sleep(0), windows)
    print(
        f"  {workers:>5,} workers, {windows:>9,} windows: {windows / took:>8,.0f} windows/s, "
        f"{resident_mb() - before:+.0f} MB"
    )


def ray_workers(number: int) -> None:
    from pointer_rl_ray.executor import RayExecutor
    from pointer_rl_ray.options import RayOptions

    executor = RayExecutor(RayOptions(num_workers=number))
    while len(executor._fleet.free()) < number:  # start-up does not count
        list(executor._fleet.wait(1.0))
    for _ in range(2):  # what each worker imports at its first window
        seconds_of(executor, Sleep(0), 4 * number)
    took = seconds_of(executor, Sleep(SECONDS), ROUNDS * number)
    ideal = ROUNDS * SECONDS
    print(f"  {number:>5} workers: {took:.2f} s for {ideal:.2f} s of sleep: {ideal / took:.3f}")
    empty = 200 * number
    print(f"        empty windows: {empty / seconds_of(executor, Sleep(0), empty):,.0f} a second")


def main() -> None:
    """Print all three."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 32])
    options = parser.parse_args()
    print(f"{platform.machine()}, Python {platform.python_version()}")
    print("the driver alone (goals: 1,000 windows/s, memory that does not grow with windows)")
    for workers, windows in ((8, 10_000), (1000, 20_000), (1000, 1_000_000)):
        simulate(workers, windows)
    print(f"Ray, windows of {SECONDS} s (goals: .95 with 4 workers, .90 with 32)")
    for number in options.workers:
        ray_workers(number)


if __name__ == "__main__":
    import bench_ray  # workers cannot import `Sleep` from `__main__`

    os.environ["PYTHONPATH"] = os.path.dirname(__file__)
    bench_ray.main()
