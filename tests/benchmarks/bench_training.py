"""An epoch of training: 20,000 queries × 12 candidates × a pool of 64.

    python tests/benchmarks/bench_training.py

The baseline is the obvious loop: the same selector, losses and optimizer steps (one every 32
queries), but one query at a time. Three more comparisons: that loop with an optimizer step for each
query, as in Lever-Plus's trainer; that loop with one candidate at a time, as in the seed guide; and
batches of 128, with a step every 128 queries. The selector has one layer, hidden size 256, gated
history, embeddings of 256 values and 2 shots. It runs once with a pool that all queries share, and
once with a pool for each query (64 of 512 rows).

It measures the CPU time of one thread, so that other users of the machine matter little. Each
figure is the median of three, measured on fewer queries (loops 320, batches 6,400) and scaled up.
The limit is the time that the epoch's matrix products (counted by torch) would take at the speed at
which this machine multiplies [512, 256] by [256, 256].
"""

from __future__ import annotations

import platform
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.utils.flop_counter import FlopCounterMode

from pointer_rl.selectors import PointerConfig, PointerSelector, initial_state
from pointer_rl.train import losses
from pointer_rl.train.config import TrainConfig
from pointer_rl.train.groups import Groups
from pointer_rl.train.learner import Learner, Schedule, frozen
from pointer_rl.train.state import new_optimizer

QUERIES, CANDIDATES, POOL, WHOLE_POOL, D, SHOTS = 20_000, 12, 64, 512, 256, 2
SIZE, LARGE = 32, 128
BATCHED, LOOPED = 6_400, 320
REPEATS = 3
GOALS = {"shared": 20, "own": 5}
CPU = torch.device("cpu")
CONFIG = TrainConfig(batch_size=SIZE)


def make_groups(own: bool) -> Groups:
    rng = np.random.default_rng(0)
    rows = WHOLE_POOL if own else POOL
    pools = [rng.permutation(rows)[:POOL].astype(np.int32) for _ in range(BATCHED if own else 0)]
    places = rng.random((BATCHED * CANDIDATES, POOL)).argsort(1)[:, :SHOTS]
    if own:
        places = np.take_along_axis(np.repeat(np.array(pools), CANDIDATES, 0), places, 1)
    return Groups(
        ids=[str(query) for query in range(BATCHED)],
        images=[str(query) for query in range(BATCHED)],
        queries=torch.from_numpy(rng.standard_normal((BATCHED, D), dtype=np.float32)),
        pool=torch.from_numpy(rng.standard_normal((rows, D), dtype=np.float32)),
        offsets=np.arange(BATCHED + 1) * CANDIDATES,
        pointers=places.astype(np.int64),
        rewards=rng.random(BATCHED * CANDIDATES, dtype=np.float32),
        sampled=np.zeros(BATCHED * CANDIDATES, dtype=bool),
        pools=pools or [None] * BATCHED,
        excluded=[None] * BATCHED,
    )


def selector() -> PointerSelector:
    config = PointerConfig(d_model=D, hidden_dim=D, num_layers=1, num_heads=1, history="gated")
    return PointerSelector.seeded(config, 0).eval()


def batches(groups: Groups, kind: str, size: int = SIZE, queries: int = BATCHED) -> None:
    config = TrainConfig(batch_size=size, per_query_pool=groups.pools[0] is not None)
    learner = Learner(selector(), groups, np.arange(queries), np.arange(1), config, CPU)
    optimizer = new_optimizer(learner.selector)
    place = (Schedule(1e-3, learner.steps_per_epoch), 0, np.random.default_rng(0))
    if kind == "rce":
        learner.rce_epoch(optimizer, *place, 0.1)
    else:
        learner.grpo_epoch(optimizer, *place, frozen(learner.selector), frozen(learner.selector))


def loop(groups: Groups, kind: str, size: int = SIZE, together: int = CANDIDATES) -> None:
    """One query at a time, `together` of its candidates at a time; a step every `size` queries."""
    policy = selector()
    old, reference = frozen(policy), frozen(policy)
    optimizer = torch.optim.AdamW(policy.parameters(), weight_decay=0.0)
    for index in range(LOOPED):
        own = slice(groups.offsets[index], groups.offsets[index + 1])
        rows = torch.from_numpy(groups.pointers[own])[None]
        rewards = torch.from_numpy(groups.rewards[own])[None]
        every = torch.ones_like(rewards, dtype=torch.bool)
        query, pool = groups.queries[index : index + 1], groups.pool
        if groups.pools[index] is not None:
            members = torch.from_numpy(groups.pools[index]).long()
            place_of = torch.empty(len(pool), dtype=torch.int64)
            place_of[members] = torch.arange(len(members))
            pool, rows = pool[members], place_of[rows]
        parts = rows.split(together, dim=1)
        steps = [distributions(policy, query, pool, part) for part in parts]
        logprobs = chosen(steps, parts)
        if kind == "rce":
            loss = losses.rce_loss(logprobs, rewards, every, 0.1)
            loss = loss + CONFIG.contrast * losses.contrast_loss(logprobs, rewards, every)
        else:
            with torch.no_grad():
                olds = chosen([distributions(old, query, pool, part) for part in parts], parts)
                theirs = [distributions(reference, query, pool, part) for part in parts]
            advantage = losses.advantages(rewards, every, divide_by_std=True)
            loss, _ = losses.clipped_ratio_loss(logprobs, olds, advantage, every, CONFIG.clip)
            for ours, other in zip(steps, theirs, strict=True):
                for pair in zip(ours, other, strict=True):
                    kl = losses.exact_kl(*pair).mean() / len(parts)
                    loss = loss + CONFIG.kl_beta * kl
        (loss.sum() / size).backward()
        if (index + 1) % size == 0:
            clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()


def distributions(policy: PointerSelector, query: Tensor, pool: Tensor, rows: Tensor) -> list:
    state = initial_state(policy, query, pool)
    steps = [policy.step_logits(state).log_softmax(-1)]
    for step in range(SHOTS - 1):
        state = policy.advance(state, rows[..., step])
        steps.append(policy.step_logits(state).log_softmax(-1))
    return steps


def chosen(steps: list[list[Tensor]], parts: tuple[Tensor, ...]) -> Tensor:
    logprobs = []
    for own, rows in zip(steps, parts, strict=True):
        picked = [
            each.expand(-1, rows.shape[1], -1).gather(-1, rows[..., step : step + 1]).squeeze(-1)
            for step, each in enumerate(own)
        ]
        logprobs.append(torch.stack(picked).sum(0))
    return torch.cat(logprobs, dim=1)


def seconds(queries: int, function: Callable[..., None], *arguments: object) -> float:
    """CPU seconds of an epoch, extrapolated from the time that `function` takes for `queries`."""
    start = time.process_time()
    function(*arguments)
    return (time.process_time() - start) * QUERIES / queries


def limit(groups: Groups, kind: str) -> float:
    """Seconds of an epoch's matrix products."""
    with FlopCounterMode(display=False) as counter:
        batches(groups, kind, SIZE, 10 * SIZE)
    left, right = torch.randn(512, D), torch.randn(D, D)
    times = []
    for _ in range(20):
        start = time.process_time()
        for _ in range(20):
            left @ right
        times.append((time.process_time() - start) / 20)
    speed = 2 * 512 * D * D / statistics.median(times)
    return counter.get_total_flops() / (10 * SIZE) * QUERIES / speed


def main() -> None:
    torch.set_num_threads(1)
    print(f"{platform.machine()}, 1 thread, torch {torch.__version__}; seconds of CPU time")
    for name, own in (("shared", False), ("own", True)):
        groups = make_groups(own)
        for kind in ("rce", "grpo"):
            runs = {
                "batches": (BATCHED, batches, groups, kind),
                "large": (BATCHED, batches, groups, kind, LARGE),
                "loop": (LOOPED, loop, groups, kind),
                "steps": (LOOPED, loop, groups, kind, 1),
                "candidates": (LOOPED, loop, groups, kind, SIZE, 1),
            }
            for arguments in runs.values():
                seconds(*arguments)
            # Interleaved, so that a slow phase of the machine affects all of them.
            rounds = [{each: seconds(*runs[each]) for each in runs} for _ in range(REPEATS)]
            times = {each: statistics.median(taken[each] for taken in rounds) for each in runs}
            batched = times["batches"]
            print(
                f"{name} pool, {kind}: {batched:.1f} s an epoch (limit "
                f"{limit(groups, kind):.1f} s); the loop takes {times['loop'] / batched:.1f}× "
                f"(goal {GOALS[name]}×); with a step a query {times['steps'] / batched:.1f}×, a "
                f"candidate at a time {times['candidates'] / batched:.1f}×; batches of {LARGE}: "
                f"{times['large']:.1f} s, the loop {times['loop'] / times['large']:.1f}×",
                flush=True,
            )
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"most memory: {megabytes:,.0f} MB")


if __name__ == "__main__":
    main()
