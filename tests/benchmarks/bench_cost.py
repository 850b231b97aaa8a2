"""How the cost of a run grows with queries, candidates, shots and pool, and a model of it.

    python tests/benchmarks/bench_cost.py [PICTURE]

The glyph model answers random candidates; one figure is changed at a time. CPU time of one thread.
The model behind it: so much a distinct token, so much a distinct image, so much a trial (decoding,
bookkeeping), fitted to all points by least squares. With PICTURE (.png) it is drawn.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from pointer_rl.session.candidates import CandidateJob
from pointer_rl.session.resolve import NoPolicy
from pointer_rl.session.session import PluginRef, Session, SessionOptions
from pointer_rl.types import Pool, Window


@dataclass(frozen=True)
class Setting:
    queries: int = 64
    candidates: int = 10
    shots: int = 2
    pool: int = 512


AXES: dict[str, Sequence[int]] = {
    "queries": (16, 32, 64, 128),
    "candidates": (2, 5, 10, 20),
    "shots": (1, 2, 3, 4),
    "pool": (8, 32, 128, 512),
}


@dataclass(frozen=True)
class Cost:
    seconds: float
    whole_tokens: int
    work: np.ndarray
    """Distinct tokens, distinct images, trials."""


def measure(setting: Setting) -> Cost:
    options = {"split": "train", "train_size": setting.queries, "pool_size": setting.pool}
    session = Session(
        SessionOptions(
            dataset=PluginRef("glyphs", options),
            backend=PluginRef("qwen2vl"),
            prompt=PluginRef("short-answer"),
            metric=PluginRef("vqa"),
        )
    )
    examples = session.dataset.pool
    job = CandidateJob(
        session=session,
        queries=session.queries,
        embeddings=torch.zeros(setting.queries, 1),
        pool=Pool(examples, torch.zeros(len(examples), 1)),
        policy=NoPolicy(),
        generators={"random": PluginRef("random", {"num": setting.candidates})},
        shots=setting.shots,
        seed=0,
    )
    whole = range(setting.queries)
    _, requests = job.first_requests(Window(whole, tuple(whole)))
    count = session.backend.count(requests)
    assert count.prompt_tokens is not None
    assert count.unique_tokens is not None
    images = {image.key for request in requests for image in request.prompt.images}
    job.run(Window(whole, tuple(whole[:4])))  # warm
    start = time.process_time()
    job.run(Window(whole, tuple(whole)))
    seconds = time.process_time() - start
    return Cost(
        seconds, count.prompt_tokens, np.array([count.unique_tokens, len(images), len(requests)])
    )


def main() -> None:
    torch.set_num_threads(1)
    print(f"{platform.machine()}, one thread (CPU time), torch {torch.__version__}")
    settings = {
        axis: [replace(Setting(), **{axis: value}) for value in values]
        for axis, values in AXES.items()
    }
    every = {setting for each in settings.values() for setting in each}
    costs = {setting: measure(setting) for setting in sorted(every, key=repr)}
    work = np.array([cost.work for cost in costs.values()])
    seconds = np.array([cost.seconds for cost in costs.values()])
    # Relative errors count, so that small runs do too.
    model, *_ = np.linalg.lstsq(work / seconds[:, None], np.ones(len(seconds)), rcond=None)
    named = zip(("distinct token", "distinct image", "trial"), model, strict=True)
    print("model: " + ", ".join(f"{1e6 * each:.0f} µs a {name}" for name, each in named))
    for axis, each in settings.items():
        for setting in each:
            cost = costs[setting]
            tokens, images, trials = cost.work
            print(
                f"{axis} {getattr(setting, axis):>3}: {cost.seconds:.2f} s (model "
                f"{cost.work @ model:.2f}), {trials:,} trials, {tokens:,} of {cost.whole_tokens:,} "
                f"tokens, {images:,} images"
            )
    if len(sys.argv) > 1:
        draw(settings, costs, model, Path(sys.argv[1]))


def draw(
    settings: dict[str, list[Setting]],
    costs: dict[Setting, Cost],
    model: np.ndarray,
    path: Path,
) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 4, figsize=(11, 2.8), layout="constrained", sharey=True)
    for panel, (axis, each) in zip(panels, settings.items(), strict=True):
        values = [getattr(setting, axis) for setting in each]
        panel.plot(
            values, [costs[s].seconds for s in each], "o", color="tab:blue", label="measured"
        )
        panel.plot(values, [costs[s].work @ model for s in each], color="0.4", label="model")
        panel.set_xlabel(axis)
        if axis == "pool":
            panel.set_xscale("log", base=2)
        panel.set_xticks(values, [str(value) for value in values], fontsize=8)
        panel.minorticks_off()
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("CPU seconds")
    panels[0].set_ylim(bottom=0)
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
