"""How much the choice of demonstrations matters on glyphs: the README's table.

The test split, two shots: accuracy of random and retrieved pointers, of pointers with and without
a relevant demonstration (one that shows the query's own word), and of each query's best.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from pointer_rl.cli.tables import format_table
from pointer_rl.generate.run import GenerateRun, run_generate
from pointer_rl.generate.summary import Tally
from pointer_rl.records.formats import stream_records
from pointer_rl.records.records import from_record
from pointer_rl.registry import registry
from pointer_rl.session.session import PluginRef, SessionOptions


def main() -> None:
    """Generate, tally, print."""
    limit = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    options = {"split": "test"}
    dataset = registry().create("dataset", "glyphs", options)
    words = {query.id: query.answer for query in dataset.queries}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rl.jsonl"
        start = time.perf_counter()
        run_generate(
            GenerateRun(
                output_path=path,
                session=SessionOptions(
                    dataset=PluginRef("glyphs", options),
                    backend=PluginRef("qwen2vl"),
                    prompt=PluginRef("short-answer"),
                    metric=PluginRef("vqa"),
                    limit=limit,
                ),
                generators=[
                    PluginRef("retrieval", {"num": 2}),
                    PluginRef("beam"),
                    PluginRef("sample"),
                    PluginRef("random", {"num": 4}),
                ],
                shots=2,
            )
        )
        seconds = time.perf_counter() - start
        tallies: dict[str, Tally] = {}
        trials = 0
        for query_id, record in stream_records(path):
            if query_id == "_meta":
                continue
            best = (False, 0.0)
            for candidate, outcome in from_record(record):
                trials += 1
                shown = {dataset.pool[row].answer for row in candidate.pointer}
                relevant = words[query_id] in shown
                kind = "with a relevant one" if relevant else "without"
                for name in (candidate.gen_method, kind):
                    tallies.setdefault(name, Tally()).add(outcome.correct, outcome.accuracy)
                if outcome.accuracy is not None:
                    best = max(best, (bool(outcome.correct), outcome.accuracy), key=lambda b: b[1])
            tallies.setdefault("best of each query", Tally()).add(*best)
    rows = [("pointers", "number", "correct", "accuracy")]
    rows += [
        (name, f"{t.judged:,}", f"{t.share_correct:.1%}", f"{t.accuracy:.3f}")
        for name, t in sorted(tallies.items())
    ]
    print(format_table(rows, numeric=frozenset({1, 2, 3})))
    print(f"{trials} trials in {seconds:.0f} s, loading included ({trials / seconds:.0f} a second)")


if __name__ == "__main__":
    main()
