"""How memory grows with a file: what reads and writes RL data, on 2,000 and on 200,000 queries.

    python tests/benchmarks/bench_data.py [--queries 200000] [--candidates 4]

Each measurement is a process of its own; "resident" is the most that it ever had. What streams
remembers ids alone, so its growth is some hundred bytes a query. `BeamDataset` holds the data: from
its growth follows what VQAv2's 443,000 queries with 15 candidates each would take.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pointer_rl.records.formats import open_writer

POOL = 9_000
SMALL = 2_000
STREAMS_MB = 50
"""Goal: growth of what streams."""
CANDIDATE_BYTES = 33
"""What arrays hold of a candidate of two shots while they are read; the rest is a query's."""
VQAV2 = (443_000, 15)
VQAV2_MB = 400
"""Goal: what `BeamDataset` holds of so many queries and candidates each."""
PROBE = """
import resource, sys
from pathlib import Path
source, target = map(Path, sys.argv[1:3])
{work}
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
READ = "from pointer_rl.records.beam_dataset import BeamDataset\nBeamDataset(source / 'rl.json')"
CONVERT = """
from pointer_rl.records.convert import convert_file
convert_file(source / 'rl.json', target / 'out.{suffix}')
"""
STREAMS = {
    "validate": (
        "from pointer_rl.validate import validate_file\n"
        "assert not validate_file(source / 'rl.json').num_findings"
    ),
    "convert .json .jsonl": CONVERT.format(suffix="jsonl"),
    "convert .json .parquet": CONVERT.format(suffix="parquet"),
    "merge, two shards": (
        "from pointer_rl.records.merge import merge_files\n"
        "merge_files([source / '1.jsonl', source / '2.jsonl'], target / 'out.json')"
    ),
    "rescore": (
        "from pointer_rl.records.rescore import rescore_file\n"
        "rescore_file(source / 'rl.json', target / 'out.json')"
    ),
}


def write(folder: Path, queries: int, candidates: int) -> None:
    """A valid file, and the same as two shards."""
    rng = random.Random(0)
    meta = {
        "schema_version": "1.0",
        "dataset": {"name": "bench", "pool_size": POOL, "shared_pool": False},
        "metric": {"name": "exact", "version": "1"},
        "shots": 2,
    }
    shards = [
        open_writer(folder / f"{number}.jsonl", {**meta, "shard": f"{number}/2"})
        for number in (1, 2)
    ]
    with open_writer(folder / "rl.json", meta) as writer:
        for index in range(queries):
            record = _record(index, candidates, rng)
            for each in (writer, shards[index % 2]):
                each.write(f"query {index}", record)
    for shard in shards:
        shard.close()


def _record(index: int, candidates: int, rng: random.Random) -> dict[str, object]:
    rows = rng.sample(range(POOL), 2 * candidates)
    return {
        "query": {"query_id": f"query {index}", "image_id": index, "gt_answers_raw": ["a", "b"]},
        "excluded": [index % POOL],
        "pointer_candidates": [
            {
                "pointer": rows[2 * number : 2 * number + 2],
                "gen_method": "sample",
                "logprob_score": -rng.random(),
                "temperature": 1.0,
                "vqa_pred_answer": "a",
                "vqa_correct": 1,
                "vqa_acc_score": 1.0,
                "vqa_raw_generation": "a",
            }
            for number in range(candidates)
        ],
    }


def resident(work: str, source: Path) -> float:
    """MB of a fresh process that does the work."""
    with tempfile.TemporaryDirectory() as target:
        command = [sys.executable, "-c", PROBE.format(work=work), str(source), target]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(queries: Sequence[int], candidates: int) -> dict[str, list[float]]:
    """What was done → MB for each number of queries."""
    found: dict[str, list[float]] = {}
    for number in queries:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), number, candidates)
            size = (Path(folder) / "rl.json").stat().st_size / 1e6
            print(f"{number:,} queries of {candidates} candidates: {size:,.1f} MB", flush=True)
            for name, work in {**STREAMS, "BeamDataset": READ}.items():
                found.setdefault(name, []).append(resident(work, Path(folder)))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=200_000)
    parser.add_argument("--candidates", type=int, default=4)
    given = parser.parse_args()
    found = measure((SMALL, given.queries), given.candidates)
    for name in STREAMS:
        small, large = found[name]
        grown = f"grew {large - small:5.1f} MB (goal {STREAMS_MB})"
        print(f"{name:24} {small:6.1f} → {large:6.1f} MB resident, {grown}")
    small, large = found["BeamDataset"]
    queries, candidates = VQAV2
    grown = (large - small) * 2**20 / (given.queries - SMALL)
    each = grown + (candidates - given.candidates) * CANDIDATE_BYTES
    print(
        f"{'BeamDataset':24} {small:6.1f} → {large:6.1f} MB resident, {grown:.0f} bytes a query; "
        f"so {queries * each / 2**20:.0f} MB for {queries:,} × {candidates} (goal {VQAV2_MB})"
    )


if __name__ == "__main__":
    main()
