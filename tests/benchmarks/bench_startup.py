"""How long `pointer-rl --help` takes, beside an empty Python. Goal: 0.25 s."""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import time

REPEATS = 9


def seconds(code: str) -> float:
    """Median wall time of a fresh interpreter."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])  # the first one fills the file cache


def main() -> None:
    """Print both and their ratio."""
    empty = seconds("pass")
    shown = seconds(
        "import sys; sys.argv[1:] = ['--help']; from pointer_rl.cli.main import main; main()"
    )
    print(f"{platform.machine()}, Python {platform.python_version()}, median of {REPEATS}")
    print(f"python -c pass      {empty:.3f} s")
    print(f"pointer-rl --help   {shown:.3f} s  ({shown / empty:.1f} × empty; goal 0.25 s)")


if __name__ == "__main__":
    main()
