"""VQAv2's size, 443,000 queries × 20 candidates and a pool as large: memory, time and bytes.

    python tests/benchmarks/bench_scale.py [--queries 44300] [--candidates 20] [--pool 44300]
        [--dim 512]

The data is made up and written record by record. Each measurement is a process of its own, on one
thread. "Besides embeddings" is anonymous memory: embeddings are mapped from their files, and what
the kernel keeps of a file it can drop. (Of training, a step needs the pool's projection, and its
gradient, besides.) docs/explanation/scale.md says what follows from the figures.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SHOTS, WINDOW, STEPS, STORED = 2, 128, 1, 50
DIFFERENT = 500
"""Lists of candidates, which the queries share: all would take long to draw."""
READ_MB, PAST_CACHE = 2_000, 10_000
"""Goals: training's memory besides embeddings, and candidates a second into cache and journal."""


class Image:
    """The image of a query, or of a row of the pool."""

    def __init__(self, number: int) -> None:
        self.key = hashlib.sha256(str(number).encode()).hexdigest()


def examples(number: int, answers: int = 1) -> list:
    """So many examples, five for each image."""
    from pointer_rl.types import Example

    rng = random.Random(number)
    words = [f"word {rank}" for rank in range(3_000)]
    images = [Image(image) for image in range(number // 5 + 1)]
    return [
        Example(
            str(1000 * (row // 5) + row % 5 + 10_000_000),
            row,
            images[row // 5],
            f"What is number {row} in the middle of this image?",
            tuple(words[int(rng.paretovariate(0.5)) % 3_000] for _ in range(answers)),
            image_id=row // 5,
        )
        for row in range(number)
    ]


def judged(pool: int, candidates: int, rng: random.Random) -> list:
    """A query's candidates, as `generate` records them, with their outcomes."""
    from pointer_rl.types import Candidate, Outcome

    found = []
    for rank in range(candidates):
        rows = tuple(rng.sample(range(pool), SHOTS))
        if rank < candidates // 4:
            score = -rng.random() * 20
            candidate = Candidate(rows, "beam", rank, beam_score=score, logprob_score=score)
        else:
            candidate = Candidate(
                rows, "sample", logprob_score=-rng.random() * 20, temperature=1.3, top_p=1.0
            )
        accuracy = rng.choice((0.0, 0.3, 0.6, 1.0))
        found.append(
            (candidate, Outcome("tennis racket", "tennis racket", accuracy >= 0.5, accuracy))
        )
    return found


def write(folder: Path, queries: int, candidates: int, pool: int, dim: int) -> None:
    """RL data of so many queries about a pool, and the embeddings of both."""
    import torch

    from pointer_rl.datasets.embeddings import save_embeddings
    from pointer_rl.records.formats import open_writer
    from pointer_rl.records.records import describe_query, encode_record, to_record

    for name, rows in (("queries", queries), ("pool", pool)):
        torch.manual_seed(rows)
        ids = [each.id for each in examples(rows)]
        save_embeddings(folder / f"{name}.safetensors", torch.randn(rows, dim), ids)
    rng = random.Random(0)
    meta = {
        "schema_version": "1.0",
        "dataset": {"name": "bench", "pool_size": pool, "shared_pool": False},
        "metric": {"name": "vqa", "version": "1"},
        "shots": SHOTS,
    }
    own = list(range(pool - 5, pool))  # rows with the query's image
    asked = []
    for query in examples(DIFFERENT, answers=10):
        record = to_record(query, judged(pool - 5, candidates, rng), str.lower, own)
        asked.append(encode_record({**record, "query": 0}).replace(b'"query": 0', b'"query": %b'))
    with open_writer(folder / "rl.json", meta) as writer:
        for query in examples(queries, answers=10):
            about = encode_record(describe_query(query, str.lower))
            writer.write_encoded(query.id, asked[query.row % DIFFERENT] % about)


# --- measuring --------------------------------------------------------------------------------


class Anonymous:
    """The most anonymous memory of this process, looked at every few milliseconds."""

    def __init__(self) -> None:
        self.most = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.most = max(self.most, anonymous())
            time.sleep(0.02)


def anonymous() -> float:
    """MB of this process that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this kernel does not say")


@contextmanager
def measured(found: dict[str, tuple[float, float]], name: str) -> Iterator[None]:
    """Note the CPU seconds of the block, and the most anonymous memory during it."""
    watch, begun = Anonymous(), time.process_time()
    yield
    found[name] = (time.process_time() - begun, watch.most)


def train(folder: Path) -> dict[str, tuple[float, float]]:
    """What `train` does, up to a few steps of each kind."""
    import numpy as np
    import torch

    from pointer_rl.selectors import SelectorPolicy, create_selector
    from pointer_rl.session.session import PluginRef
    from pointer_rl.train.config import TrainConfig
    from pointer_rl.train.groups import Groups
    from pointer_rl.train.learner import Learner, Schedule, frozen
    from pointer_rl.train.run import check_teaches, identity
    from pointer_rl.train.sources import open_source
    from pointer_rl.train.state import new_optimizer
    from pointer_rl.train.trainer import split_by_image

    torch.set_num_threads(1)
    found: dict[str, tuple[float, float]] = {}
    embeddings = [folder / f"{name}.safetensors" for name in ("queries", "pool")]
    config = TrainConfig()
    with measured(found, "imports"):
        pass
    with measured(found, "read"):
        source = open_source(folder / "rl.json", None, *embeddings)
        data = source.read(folder / "rl.json", PluginRef("hard_plus_soft"))
    with measured(found, "groups"):
        source.compare(data)
        groups = Groups.of(data, None)
        check_teaches(data, groups)
        training, held_out = split_by_image(groups, config)
    with measured(found, "credit"):
        _ = groups.credited
    selector = create_selector("pointer", {"d_model": groups.pool.shape[1]}, 0)
    with measured(found, "identity"):
        identity(config, source, SelectorPolicy(selector))
    few = STEPS * config.batch_size
    learner = Learner(selector, groups, training[:few], held_out[:few], config, torch.device("cpu"))
    optimizer = new_optimizer(learner.selector)
    place = (Schedule(1e-3, 100), 0, np.random.default_rng(0))
    with measured(found, "rce"):
        learner.rce_epoch(optimizer, *place, 0.1)
    with measured(found, "grpo"):
        learner.grpo_epoch(optimizer, *place, frozen(selector), frozen(selector))
    with measured(found, "held out"):
        learner.held_out()
    return found


def proposals(folder: Path) -> dict[str, tuple[float, float]]:
    """The first proposals for a window of queries; what encodes the pool once comes first."""
    import torch

    from pointer_rl.datasets.embeddings import load_embeddings
    from pointer_rl.datasets.leakage import AllowedRows
    from pointer_rl.registry import registry
    from pointer_rl.selectors import SelectorPolicy, create_selector
    from pointer_rl.session.proposing import random_source
    from pointer_rl.types import Pool, QueryBatch, SearchGenerator

    torch.set_num_threads(1)
    found: dict[str, tuple[float, float]] = {}
    vectors, rows = (
        load_embeddings(folder / f"{name}.safetensors").vectors for name in ("queries", "pool")
    )
    pool = Pool(examples(len(rows)), rows)
    queries = examples(WINDOW, answers=10)
    allowed = AllowedRows(pool.examples)
    allowed.mask(queries[:1])
    policy = SelectorPolicy(create_selector("pointer", {"d_model": rows.shape[1]}))
    with measured(found, "the examples and embeddings"):
        pass
    with measured(found, "mask"):
        batch = QueryBatch(queries, vectors[:WINDOW], allowed.mask(queries), SHOTS)
    with measured(found, "encoding the pool"):
        policy.beam(QueryBatch(queries[:1], vectors[:1], batch.allowed[:1], SHOTS), pool, 1)
    for name, options in (
        ("beam", {}),
        ("sample", {}),
        ("random", {"num": 5}),
        ("retrieval", {"num": 5}),
        ("mmr", {"num": 5}),
        ("first-success", {"by": "similarity"}),
        ("first-success", {"by": "policy", "answers": True}),
    ):
        made = registry().create("generator", name, options)
        rngs = [random_source(0, query.id, name) for query in queries]
        propose = made.start if isinstance(made, SearchGenerator) else made.propose
        with measured(found, f"{name} by answers" if "answers" in options else name):
            propose(policy, batch, pool, rngs)
    return found


def store(folder: Path) -> dict[str, float]:
    """Windows of new responses and records into the response cache and the journal."""
    from pointer_rl.records.records import to_record
    from pointer_rl.session.cache import ResponseCache
    from pointer_rl.session.journal import Journal
    from pointer_rl.types import Response, Usage

    rng = random.Random(0)
    queries = examples(STORED * WINDOW, answers=10)
    ids = [query.id for query in queries]
    each = [judged(443_000, 20, rng) for _ in range(WINDOW)]
    number = sum(map(len, each))
    response = Response("tennis racket", (), Usage(1100, 3, 3))
    cache = ResponseCache(folder / "responses.sqlite")
    put = append = 0.0
    with Journal(folder / "rl.json", {}, ids) as journal:
        for start in range(0, len(queries), WINDOW):
            responses = [(rng.randbytes(32), response) for _ in range(number)]
            records = {
                query.row: to_record(query, mine, str.lower, range(5))
                for query, mine in zip(queries[start : start + WINDOW], each, strict=True)
            }
            put += seconds(lambda new=responses: cache.put("bench", new))
            append += seconds(lambda new=records: journal.append(new))
        journaled = journal.path.stat().st_size
        synced = seconds(lambda: journal.append({0: records[queries[-1].row]}), time.perf_counter)
    resumed = seconds(lambda: Journal(folder / "rl.json", {}, ids).close())
    with Journal(folder / "rl.json", {}, ids) as journal:
        finished = seconds(journal.finish)
    every = STORED * number
    return {
        "candidates a CPU second, cache and journal": every / (put + append),
        "the cache alone": every / put,
        "the journal alone": every / append,
        "a journal read again": every / resumed,
        "rl.json written from it": every / finished,
        "milliseconds of an append of one query": 1e3 * synced,
        "bytes in the cache": cache.size() / every,
        "bytes in the journal": journaled / every,
        "bytes in rl.json": (folder / "rl.json").stat().st_size / every,
    }


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    begun = clock()
    work()
    return clock() - begun


def run(name: str, folder: Path) -> dict:
    """A measurement in a process of its own."""
    command = [sys.executable, __file__, "--measure", name, str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--queries", type=int, default=44_300)
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--pool", type=int, default=44_300)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        name, folder = given.measure
        print(json.dumps(globals()[name](Path(folder))))
        return
    print(f"{platform.machine()}, Python {platform.python_version()}, one thread, CPU time")
    with tempfile.TemporaryDirectory() as folder:
        for name, figure in run("store", Path(folder)).items():
            print(f"{name}: {figure:,.0f}" + (f" (goal {PAST_CACHE:,})" if "and" in name else ""))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, given.queries, given.candidates, given.pool, given.dim)
        print(
            f"{given.queries:,} queries × {given.candidates} candidates, a pool of "
            f"{given.pool:,} × {given.dim}: {(folder / 'rl.json').stat().st_size / 1e6:,.0f} MB; "
            "of each part the CPU seconds, and the anonymous memory of its process (goal "
            f"{READ_MB:,} MB to read 443,000 queries)"
        )
        for kind in ("train", "proposals"):
            for part, (taken, most) in run(kind, folder).items():
                print(f"{kind}, {part}: {taken:,.1f} s, {most:,.0f} MB", flush=True)


if __name__ == "__main__":
    main()
