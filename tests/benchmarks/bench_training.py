"""An epoch of training: 20,000 queries × 12 candidates × a pool of 64, 32 queries a batch.

    python tests/benchmarks/bench_training.py

Against loops with the same losses, one query at a time: a batch of one query, with its step of the
optimizer (the ancestor's trainer could do no other); the same gradient as the batches', with a step
every 32 queries; and that with the candidates one after the other too, as the seed guide evaluates
them. The loops are timed on fewer queries and their time scaled up. A selector of
one layer and hidden size 256, embeddings of 256 values, 2 shots; once with a pool that all queries
share, once with a pool of its own for each (64 of 512 rows). Medians of three.
"""

from __future__ import annotations

import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_

from pointer_rl.policy import PointerSelector, SelectorConfig
from pointer_rl.train import losses
from pointer_rl.train.config import TrainConfig
from pointer_rl.train.groups import Batch, Groups
from pointer_rl.train.learner import Learner, Schedule, frozen, pointer_logprobs, step_logprobs
from pointer_rl.train.state import new_optimizer

QUERIES, CANDIDATES, POOL, WHOLE_POOL, D, SHOTS, SIZE = 20_000, 12, 64, 512, 256, 2, 32
LOOPED = 320
REPEATS = 3
GOALS = {"shared": 20, "own": 5}
CPU = torch.device("cpu")
CONFIG = TrainConfig(batch_size=SIZE)


def make_groups(own: bool) -> Groups:
    rng = np.random.default_rng(0)
    rows = WHOLE_POOL if own else POOL
    pools = [rng.permutation(rows)[:POOL].astype(np.int32) for _ in range(QUERIES if own else 0)]
    places = rng.random((QUERIES * CANDIDATES, POOL)).argsort(1)[:, :SHOTS]
    if own:
        places = np.take_along_axis(np.repeat(np.array(pools), CANDIDATES, 0), places, 1)
    return Groups(
        ids=[str(query) for query in range(QUERIES)],
        images=[str(query) for query in range(QUERIES)],
        queries=torch.from_numpy(rng.standard_normal((QUERIES, D), dtype=np.float32)),
        pool=torch.from_numpy(rng.standard_normal((rows, D), dtype=np.float32)),
        offsets=np.arange(QUERIES + 1) * CANDIDATES,
        pointers=places.astype(np.int64),
        rewards=rng.random(QUERIES * CANDIDATES, dtype=np.float32),
        sampled=np.zeros(QUERIES * CANDIDATES, dtype=bool),
        pools=pools or [None] * QUERIES,
        excluded=[None] * QUERIES,
    )


def selector() -> PointerSelector:
    config = SelectorConfig(d_model=D, hidden_dim=D, num_layers=1, num_heads=1, history="gated")
    return PointerSelector.seeded(config, 0).eval()


def epoch(groups: Groups, kind: str) -> None:
    every = np.arange(QUERIES)
    learner = Learner(selector(), groups, every, every[:1], CONFIG, CPU)
    optimizer = new_optimizer(learner.selector)
    place = (Schedule(1e-3, learner.steps_per_epoch), 0, np.random.default_rng(0))
    if kind == "rce":
        learner.rce_epoch(optimizer, *place, 0.1)
    else:
        learner.grpo_epoch(optimizer, *place, frozen(learner.selector), frozen(learner.selector))


def loop(groups: Groups, kind: str, split: Callable[[Batch], Iterator[Batch]], size: int) -> None:
    policy = selector()
    old, reference = frozen(policy), frozen(policy)
    optimizer = torch.optim.AdamW(policy.parameters())
    for number, batch in enumerate(groups.batches(np.arange(LOOPED), 1, CPU), 1):
        parts = [[*step_logprobs(policy, each)] for each in split(batch)]
        logprobs = joined(batch, split, parts)
        if kind == "rce":
            rce = losses.rce_loss(logprobs, batch.rewards, batch.valid, 0.1)
            contrast = losses.contrast_loss(logprobs, batch.rewards, batch.valid)
            loss = (rce + CONFIG.contrast * contrast).sum()
        else:
            with torch.no_grad():
                olds = joined(batch, split, [[*step_logprobs(old, each)] for each in split(batch)])
                references = [[*step_logprobs(reference, each)] for each in split(batch)]
            advantage = losses.advantages(batch.rewards, batch.valid, divide_by_std=True)
            ppo, _ = losses.clipped_ratio_loss(logprobs, olds, advantage, batch.valid, CONFIG.clip)
            kls = [
                losses.exact_kl(*pair).mean()
                for own, other in zip(parts, references, strict=True)
                for pair in zip(own, other, strict=True)
            ]
            loss = ppo.sum() + CONFIG.kl_beta * torch.stack(kls).sum() / len(parts)
        (loss / size).backward()
        if number % size == 0:
            clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()


def joined(
    batch: Batch, split: Callable[[Batch], Iterator[Batch]], parts: list[list]
) -> torch.Tensor:
    each = [pointer_logprobs(*pair) for pair in zip(split(batch), parts, strict=True)]
    return torch.cat(each, dim=1)


def together(batch: Batch) -> Iterator[Batch]:
    yield batch


def one_by_one(batch: Batch) -> Iterator[Batch]:
    cut = {"pointers", "rewards", "valid", "sampled"}
    for index in range(batch.valid.shape[1]):
        yield replace(
            batch,
            **{
                each.name: getattr(batch, each.name)[:, index : index + 1]
                for each in fields(batch)
                if each.name in cut
            },
        )


def seconds(function: Callable[..., None], *arguments: object) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function(*arguments)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, own in (("shared", False), ("own", True)):
        groups = make_groups(own)
        for kind in ("rce", "grpo"):
            batched = seconds(epoch, groups, kind)
            scale = QUERIES / LOOPED
            single = seconds(loop, groups, kind, together, 1) * scale
            queries = seconds(loop, groups, kind, together, SIZE) * scale
            candidates = seconds(loop, groups, kind, one_by_one, SIZE) * scale
            print(
                f"{name} pool, {kind}: {batched:.1f} s an epoch; batches of one query take "
                f"{single / batched:.1f}× (goal {GOALS[name]}×), a loop with the same steps "
                f"{queries / batched:.1f}×, over candidates too {candidates / batched:.1f}×"
            )
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"most memory: {megabytes:,.0f} MB")


if __name__ == "__main__":
    main()
