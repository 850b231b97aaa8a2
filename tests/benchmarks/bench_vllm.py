"""The vllm backend and a vLLM server next to the local engine: parity and speed.

    .venv-vllm/bin/python tests/benchmarks/bench_vllm.py [QUERIES] [--server]

It needs the environment of tests/with_vllm/setup.sh. The trials are those of bench_engine.py on the
glyph model, in windows as `generate` runs them. They are asked without answers to score, and once
more; then both times with the annotators' answers. The first time, images and prefixes are in no
cache. What is not timed: the start, and one request before it, for which vLLM compiles.

With --server, the backend openai asks a vLLM server on this machine, started as in
docs/how-to/servers.md; else the backend vllm runs.

Texts and log-probabilities are compared with those of qwen2vl (engine=shared).
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import bench_engine
import torch
import transformers

from pointer_rl.registry import registry
from pointer_rl.session.caching import run_checked
from pointer_rl.types import Request, Response, VQABackend

sys.path.insert(0, str(Path(__file__).parents[1] / "with_vllm"))
Windows = Sequence[Sequence[Request]]


def ask(backend: VQABackend, windows: Windows) -> tuple[list[Response], float]:
    """The responses, and trials per second."""
    start = time.perf_counter()
    found = [dict(run_checked(backend, window)) for window in windows]
    seconds = time.perf_counter() - start
    responses = [each[index] for each in found for index in range(len(each))]
    for response in responses:
        assert isinstance(response, Response), response
    return responses, len(responses) / seconds


def compare(mine: Sequence[Response], theirs: Sequence[Response]) -> str:
    """How many texts are equal, and the largest difference of log-probabilities."""
    same = sum(one.text == other.text for one, other in zip(mine, theirs, strict=True))
    apart = [
        abs(a - b)
        for one, other in zip(mine, theirs, strict=True)
        for a, b in zip(one.score_logprobs, other.score_logprobs, strict=True)
    ]
    scores = f", {len(apart):,} scores within {max(apart):.1e} nats" if apart else ""
    return f"{same:,} of {len(mine):,} texts equal{scores}"


def measure(
    name: str, backend: VQABackend, windows: Windows, local: dict[str, list[Response]]
) -> None:
    """Print a line of figures for each kind of trial. Fills `local` if it is empty."""
    warm = [replace(windows[0][0], score=("a",))]
    ask(backend, [warm])
    for kind in ("not scored", "scored"):
        asked = windows
        if kind == "not scored":
            asked = [[replace(each, score=()) for each in window] for window in windows]
        (responses, first), (_, again) = ask(backend, asked), ask(backend, asked)
        parity = compare(responses, local.setdefault(kind, responses))
        print(
            f"{name:<20} {kind:<11} {first:7.1f} trials/s, repeat {again:7.1f}; {parity}",
            flush=True,
        )


def main() -> None:
    """Measure, print."""
    if find_spec("vllm") is None:
        print("bench_vllm: needs the environment of tests/with_vllm/setup.sh; nothing was measured")
        return
    arguments = [each for each in sys.argv[1:] if each != "--server"]
    session = bench_engine.session(int(arguments[0]) if arguments else 128)
    assert session.dataset.companions is not None
    model = session.dataset.companions.model
    windows = bench_engine.trials(session)
    local: dict[str, list[Response]] = {}

    def create(name: str, **options: object) -> VQABackend:
        backend: VQABackend = registry().create("backend", name, options)
        return backend

    from pointer_rl_vllm.engine import VERSION

    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load"
        f" {os.getloadavg()[0]:.1f}; torch {torch.__version__} with {torch.get_num_threads()}"
        f" threads, transformers {transformers.__version__}, vllm {VERSION};"
        f" {sum(map(len, windows)):,} trials of {len(session.queries)} queries"
    )
    measure("qwen2vl", create("qwen2vl", model=model, device="cpu"), windows, local)
    if "--server" in sys.argv:
        from vllm_server import serve

        with serve(model) as base_url:
            measure("openai, one server", create("openai", base_url=base_url), windows, local)
        return
    engine = create("vllm", model=model, enforce_eager=True, max_model_len=2048)
    measure("vllm", engine, windows, local)


if __name__ == "__main__":
    main()
