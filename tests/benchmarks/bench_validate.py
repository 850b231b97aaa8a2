"""Validating 50 MB of RL data (15,000 queries × 12 candidates) against `json.load`ing it.

    python tests/benchmarks/bench_validate.py [--queries 15000]

Each measurement is a process of its own: seconds of CPU, and all the memory that was resident.
Medians of five runs, taken in turn.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from pointer_rl.datasets.images import ImageBytes
from pointer_rl.records.formats import open_writer
from pointer_rl.records.records import to_record
from pointer_rl.types import Candidate, Example, Outcome

POOL = 9_000
ANSWERS = [f"answer {number}" for number in range(300)]
PROBE = """
import resource, sys, time
from pathlib import Path
{setup}
begin = time.process_time()
{work}
print(time.process_time() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
REPEATS = 5
GOAL = "validate, schema and rules"
WAYS = {
    "json.load": ("import json", "json.load(open(sys.argv[1], 'rb'))"),
    GOAL: (
        "from pointer_rl.validate import ValidationConfig, validate_file",
        "report = validate_file(Path(sys.argv[1]), ValidationConfig(recompute=False))\n"
        "assert not report.num_findings",
    ),
    "validate, accuracy judged again": (
        "from pointer_rl.validate import validate_file",
        "report = validate_file(Path(sys.argv[1]))\nassert not report.num_findings",
    ),
}


def write(path: Path, queries: int) -> None:
    """A valid file in which every rule can be checked."""
    rng = random.Random(0)
    meta = {
        "schema_version": "1.0",
        "dataset": {"name": "bench", "pool_size": POOL, "shared_pool": True},
        "metric": {"name": "exact", "version": "1"},
        "shots": 2,
    }
    with open_writer(path, meta) as writer:
        for number in range(queries):
            answers = tuple(rng.choices(ANSWERS, k=10))
            image = ImageBytes(b"", "none")
            question = "What is the thing on the left of the table?"
            query = Example(f"q{number}", POOL + number, image, question, answers, number, number)
            rows = rng.sample(range(POOL), 24)
            judged = [
                (_candidate(index, (rows[2 * index], rows[2 * index + 1]), rng), outcome)
                for index, outcome in enumerate(_outcome(answers, rng) for _ in range(12))
            ]
            writer.write(query.id, to_record(query, judged, normalise=str.lower))


def _candidate(index: int, pointer: tuple[int, int], rng: random.Random) -> Candidate:
    logprob = -9 * rng.random()
    if index < 5:
        return Candidate(pointer, "beam", index, logprob, logprob)
    if index < 10:
        return Candidate(pointer, "sample", logprob_score=logprob, temperature=1.3, top_p=1.0)
    return Candidate(pointer, "random")


def _outcome(answers: tuple[str, ...], rng: random.Random) -> Outcome:
    answer = rng.choice([answers[0], "something else"])
    correct = answer in answers
    return Outcome(f"{answer} Question", answer, correct, float(correct), rng.random())


def measure(path: Path, setup: str, work: str) -> tuple[float, float]:
    """(seconds, MB)"""
    command = [sys.executable, "-c", PROBE.format(setup=setup, work=work), str(path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds, memory = map(float, output.split())
    return seconds, memory


def main() -> None:
    """Measure each way and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=15_000)
    queries = parser.parse_args().queries
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rl.json"
        write(path, queries)
        print(f"{path.stat().st_size / 1e6:.1f} MB, {queries:,} queries; medians of {REPEATS}")
        rounds = [{name: measure(path, *way) for name, way in WAYS.items()} for _ in range(REPEATS)]
    loading = median(each["json.load"][0] for each in rounds)
    for name in WAYS:
        seconds, memory = (median(each[name][part] for each in rounds) for part in (0, 1))
        goal = "  (goals: 1.5 ×, 60 MB)" if name == GOAL else ""
        print(f"{name:33} {seconds:6.2f} s {seconds / loading:5.2f} × {memory:7.1f} MB{goal}")


if __name__ == "__main__":
    main()
