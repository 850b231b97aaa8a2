"""A report of 100,000 candidates: seconds, memory, size of the page and, in Chromium, its speed.

    python tests/benchmarks/bench_report.py [--candidates 100000] [--images 3000]

RL data like those of VQAv2: 12 candidates a query, short answers, and photographs of 480 × 360. The
report is made by a process of its own: seconds of CPU, and all the memory that was resident. The
last part needs `make test-browser`, and is left out without it. Goals: 60 s, 500 MB, 25 MB, 1 s to
the first paint, and 100 ms for a filter.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image

sys.path.insert(0, str(Path(__file__).parents[1]))

import headless

from pointer_rl.records.formats import open_writer
from pointer_rl.records.records import to_record
from pointer_rl.types import Candidate, Example, Outcome

PER_QUERY, POOL = 12, 4_000
WORDS = ("yes", "no", "two", "red", "dog", "left", "tennis", "white", "man on a surfboard", "5:30")
MAKE = """
import sys
from pathlib import Path
from pointer_rl.report.page import write_report
write_report([Path(sys.argv[1])], Path(sys.argv[2]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--candidates", type=int, default=100_000)
    parser.add_argument("--images", type=int, default=3_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data, page = write_data(Path(folder), given.candidates, given.images)
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", MAKE, data, page], check=True)
        wall = time.perf_counter() - begin
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(f"data   {data.stat().st_size / 1e6:.1f} MB, {given.candidates:,} candidates")
        print(f"made   {used.ru_utime + used.ru_stime:.1f} s of CPU, {wall:.1f} s  (goal 60 s)")
        print(f"memory {used.ru_maxrss / 1024:.0f} MB  (goal 500 MB)")
        print(f"page   {page.stat().st_size / 1e6:.1f} MB  (goal 25 MB)")
        if lacking := headless.missing():
            print(f"not opened: {lacking}")
            return
        seen = headless.look(page, "desktop")
        print(f"paint  {seen['paint']:.0f} ms  (goal 1,000 ms)")
        for name, taken in seen["used"].items():
            print(f"       {taken:5.0f} ms  {name}" + ("  (goal 100 ms)" if "gall" in name else ""))
        assert not seen["errors"], seen["errors"]
        assert not seen["requests"], seen["requests"]


def write_data(folder: Path, candidates: int, images: int) -> tuple[Path, Path]:
    """Write images, a dataset and RL data; returns the data, and where the page belongs."""
    rng, noise = random.Random(0), np.random.default_rng(0)
    for number in range(images):
        small = PIL.Image.fromarray(noise.integers(0, 255, (12, 16, 3), dtype=np.uint8))
        small.resize((480, 360), PIL.Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")
    queries = candidates // PER_QUERY
    examples = [
        {
            "id": f"{number}",
            "image": f"{number % images}.jpg",
            "image_id": number % images,
            "question": " ".join(["What is", *rng.choices(WORDS, k=5), "?"]),
            "answers": rng.choices(WORDS, k=10),
        }
        for number in range(max(queries, POOL))
    ]
    dataset = folder / "data.jsonl"
    dataset.write_text("".join(json.dumps(each) + "\n" for each in examples))
    described = {"name": "jsonl", "options": {"path": str(dataset)}, "pool_size": len(examples)}
    with open_writer(folder / "rl.json", {"dataset": described}) as writer:
        for number, each in enumerate(examples[:queries]):
            query = Example(
                each["id"],
                number,
                None,
                each["question"],
                tuple(each["answers"]),  # type: ignore[arg-type]
            )
            judged = [judge(number, place, rng) for place in range(PER_QUERY)]
            writer.write(each["id"], to_record(query, judged, str.lower))
    return folder / "rl.json", folder / "report.html"


def judge(query: int, place: int, rng: random.Random) -> tuple[Candidate, Outcome]:
    method = ("beam", "sample", "random")[place % 3]
    rows = tuple(row for row in rng.sample(range(POOL), 3) if row != query)[:2]
    score = -rng.random()
    proposed = {
        "beam": {"beam_rank": place // 3, "beam_score": score, "logprob_score": score},
        "sample": {"temperature": 1.0, "logprob_score": score},
        "random": {},
    }
    candidate = Candidate(rows, method, **proposed[method])
    if rng.random() < 0.01:
        return candidate, Outcome(failure="the server did not answer in 60 s")
    answer, accuracy = rng.choice(WORDS), rng.choice([0.0, 0.0, 0.3, 0.6, 1.0])
    raw = answer if rng.random() < 0.8 else f"{answer}.\nQuestion:"
    return candidate, Outcome(raw, answer, accuracy > 0, accuracy, rng.random())


if __name__ == "__main__":
    main()
