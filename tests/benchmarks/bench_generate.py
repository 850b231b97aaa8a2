"""What `generate` costs beside the VLM, and its memory: with a backend that answers at once.

    python tests/benchmarks/bench_generate.py [--queries N]

For 2,000 and N (200,000) queries of VQA files, a pool of 512 and 10 random candidates a query, each
in a process of its own: candidates a CPU second (one thread) when everything is asked and when
everything comes from the store (median of three, for 2,000), next to the limit: hashing each prompt
and reading its response from the store, which cannot be left out. And by how much the resident
memory of N queries exceeds that of 2,000, loading and embeddings of 16 values included. Last, the
memory of an example, and how much of it are its strings.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.synthetic import SOURCE, write_vqa
from plugin_folder import install

SMALL, POOL, CANDIDATES, DIM = 2_000, 512, 10, 16
GOAL_RATE, GOAL_GROWTH, GOAL_EXAMPLE = 18_000, 150, 400


def options_of(folder: Path, queries: int) -> dict[str, object]:
    """Of the dataset `vqa`. The files are written when they are not there."""
    file = folder / f"{queries}.json"
    if not file.exists():
        own = write_vqa(folder, f"q{queries}", queries)
        pool = write_vqa(folder, f"p{queries}", POOL)
        names = {**own, **{f"pool_{kind}": name for kind, name in pool.items()}}
        file.write_text(json.dumps(names))
    return {"root": str(folder), "image_name": "{image_id}.jpg", **json.loads(file.read_text())}


def measure(folder: Path, queries: int, output: str) -> None:
    """In a process of its own: print seconds, candidates and the most memory."""
    import numpy as np
    import torch

    from pointer_rl.generate.run import GenerateRun, run_generate
    from pointer_rl.session.observer import Observer
    from pointer_rl.session.session import PluginRef, SessionOptions

    torch.set_num_threads(1)
    for name, rows in (("q", queries), ("c", POOL)):
        path = folder / f"{name}{rows}.npy"
        if not path.exists():
            rng = np.random.default_rng(rows)
            np.save(path, rng.standard_normal((rows, DIM), dtype=np.float32))
    run = GenerateRun(
        output_path=folder / output,
        session=SessionOptions(
            dataset=PluginRef("vqa", options_of(folder, queries)),
            backend=PluginRef("synthetic"),
            prompt=PluginRef("short-answer"),
            metric=PluginRef("vqa"),
            query_emb=folder / f"q{queries}.npy",
            cand_emb=folder / f"c{POOL}.npy",
            cache=folder / "responses.sqlite",
        ),
        generators=[PluginRef("random", {"num": CANDIDATES})],
    )

    class Clock(Observer):
        begun = 0.0

        def start(self, *_about: object, **_more: object) -> None:
            self.begun = time.process_time()

    clock = Clock()
    summary = run_generate(run, clock)
    seconds = time.process_time() - clock.begun
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        json.dumps(
            {
                "seconds": seconds,
                "candidates": summary.all.candidates,
                "stored": summary.from_cache,
                "limit": limit(folder, queries) if queries == SMALL else None,
                "resident": resident,
            }
        )
    )


def limit(folder: Path, queries: int) -> float:
    """Candidates a second of what cannot be left out: a key for each prompt, and its look-up."""
    import numpy as np

    from pointer_rl.registry import registry
    from pointer_rl.session.cache import ResponseCache, request_key
    from pointer_rl.session.judge import Judge, Trial

    made = registry().create("dataset", "vqa", options_of(folder, queries))
    judge = Judge(
        prompt=registry().create("prompt", "short-answer"),
        backend=registry().create("backend", "synthetic"),
        metric=registry().create("metric", "vqa"),
    )
    rng = np.random.default_rng(0)
    trials = [
        Trial(
            made.queries[row // CANDIDATES], [made.pool[row] for row in rng.integers(POOL, size=2)]
        )
        for row in range(queries * CANDIDATES)
    ]
    requests = judge.requests(trials)
    store = ResponseCache(folder / "responses.sqlite")
    start = time.process_time()
    for window in range(0, len(requests), 1280):
        keys = [request_key("synthetic", each) for each in requests[window : window + 1280]]
        store.get(keys)
    return len(requests) / (time.process_time() - start)


def bytes_per_example(folder: Path) -> tuple[float, float]:
    """Bytes of an example with its share of an image, without its strings; and of its strings."""
    from pointer_rl.registry import registry

    for queries in (SMALL, 10 * SMALL):  # the first imports what loading needs
        options = options_of(folder, queries)
        tracemalloc.start()
        examples = registry().create("dataset", "vqa", options).queries
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    found = {
        id(string): string
        for each in examples
        for string in (each.id, each.question, each.image.name, *each.answers)
    }
    strings = sum(map(sys.getsizeof, found.values()))
    return (size - strings) / len(examples), strings / len(examples)


def measured(folder: Path, queries: int, output: str) -> dict[str, float]:
    (folder / output).unlink(missing_ok=True)
    command = [sys.executable, __file__, "--measure", str(folder), str(queries), output]
    environment = {
        **os.environ,
        **{"PYTHONPATH": str(folder / "plugin"), "POINTER_RL_PLUGINS": "synthetic"},
    }
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--queries", type=int, default=200_000)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        folder, queries, output = given.measure
        measure(Path(folder), int(queries), output)
        return
    print(f"{platform.machine()}, Python {platform.python_version()}, one thread")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        install(folder / "plugin", "synthetic", SOURCE)
        for queries in (SMALL, given.queries):
            options_of(folder, queries)  # written here: the processes' memory is measured
        asked = measured(folder, SMALL, "small.json")
        again = [measured(folder, SMALL, "small.json") for _ in range(3)]
        assert all(each["stored"] == each["candidates"] for each in again)
        rate = statistics.median(each["candidates"] / each["seconds"] for each in again)
        print(
            f"{SMALL:,} queries: {asked['candidates'] / asked['seconds']:,.0f} candidates/s asked "
            f"and stored, {rate:,.0f} candidates/s from the store (goal {GOAL_RATE:,}); the limit, "
            f"keys and look-ups alone: {statistics.median(e['limit'] for e in again):,.0f}"
        )
        large = measured(folder, given.queries, "large.json")
        growth = large["resident"] - max(asked["resident"], *(each["resident"] for each in again))
        print(
            f"{given.queries:,} queries: {large['candidates'] / large['seconds']:,.0f} "
            f"candidates/s asked; {growth:+,.0f} MB resident over {SMALL:,} queries, "
            f"{(given.queries - SMALL) * DIM * 4 / 2**20:.0f} of them embeddings "
            f"(goal {GOAL_GROWTH})"
        )
        size, strings = bytes_per_example(folder)
        print(
            f"an example takes {size:,.0f} bytes (goal {GOAL_EXAMPLE}) and {strings:,.0f} for its "
            "strings"
        )


if __name__ == "__main__":
    main()
