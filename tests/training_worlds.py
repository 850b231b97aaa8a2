"""Training data made of numbers: rows and queries have a hidden class, and like shows like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from pointer_rl.selectors import PointerConfig, PointerSelector, initial_state
from pointer_rl.train.config import TrainConfig
from pointer_rl.train.groups import Groups
from pointer_rl.train.learner import Learner

CLASSES = 4


def ragged_groups(
    seed: int = 0,
    *,
    sizes: Sequence[int] = (3, 5, 2, 4, 1, 6),
    rows: int = 9,
    shots: int = 2,
    dim: int = 6,
    per_query_pool: bool = False,
    excluding: bool = True,
) -> Groups:
    """Random groups; every third one is zero-variance, every other query excludes rows."""
    rng = np.random.default_rng(seed)
    pools, excluded, pointers, rewards = [], [], [], []
    for query, size in enumerate(sizes):
        own = rng.permutation(rows)[: 6 + query % 2] if per_query_pool else np.arange(rows)
        pools.append(np.sort(own).astype(np.int32) if per_query_pool else None)
        blocked = rng.choice(own, 2, replace=False) if excluding and query % 2 else own[:0]
        excluded.append(np.sort(blocked).astype(np.int32) if query % 2 else None)
        left = np.setdiff1d(own, blocked)
        pointers += [rng.choice(left, shots, replace=False) for _ in range(size)]
        drawn = rng.choice([0.0, 0.5, 1.0, 2.0], size)
        if query % 3:
            drawn[0], drawn[-1] = 0.0, 2.0 if size > 1 else 0.0
        else:
            drawn[:] = 1.0
        rewards += drawn.tolist()
    count = len(rewards)
    return Groups(
        ids=[f"q{query}" for query in range(len(sizes))],
        images=[f"image {query // 2}" for query in range(len(sizes))],
        queries=torch.from_numpy(rng.standard_normal((len(sizes), dim))).float(),
        pool=torch.from_numpy(rng.standard_normal((rows, dim))).float(),
        offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        pointers=np.array(pointers, dtype=np.int64),
        rewards=np.array(rewards, dtype=np.float32),
        sampled=rng.random(count) < 0.5,
        pools=pools,
        excluded=excluded,
    )


def naive_credit(pointers: Sequence[Sequence[int]], rewards: Sequence[float]) -> list[list[bool]]:
    """For each of a query's candidates, the steps at which it is trained, looked at one by one."""
    steps = range(len(pointers[0]))
    choices = [
        [
            row if row >= 0 else "stop" if -1 not in each[:step] else "over"
            for step, row in zip(steps, each, strict=True)
        ]
        for each in pointers
    ]
    varied = [len({each[step] for each in choices}) > 1 for step in steps]
    credited = []
    for pointer in pointers:
        decisive = []
        for step in steps:
            others = Counter(pointer) - Counter([pointer[step]])
            compared = [
                reward
                for each, reward in zip(pointers, rewards, strict=True)
                if not others - Counter(each)
            ]
            spread = max(compared) - min(compared)
            decisive.append(varied[step] and spread >= (max(rewards) - min(rewards)) / 2)
        credited.append(decisive if any(decisive) else varied)
    return credited


def class_groups(
    seed: int, queries: int, *, dim: int = 12, rows: int = 24, size: int = 6
) -> Groups:
    """Pointers of two random rows; the reward is the share of rows of the query's class.

    Queries and rows show their class in different directions, so that similarity tells nothing.
    """
    world = np.random.default_rng(99)
    as_query, as_row = world.standard_normal((2, CLASSES, dim))
    row_classes = np.arange(rows) % CLASSES
    pool = as_row[row_classes] + 0.3 * world.standard_normal((rows, dim))
    rng = np.random.default_rng(seed)
    classes = rng.integers(CLASSES, size=queries)
    vectors = as_query[classes] + 0.3 * rng.standard_normal((queries, dim))
    pointers = np.stack([rng.permutation(rows)[:2] for _ in range(queries * size)])
    right = row_classes[pointers] == classes.repeat(size)[:, None]
    return Groups(
        ids=[f"{seed}/{query}" for query in range(queries)],
        images=[f"{seed}/{query}" for query in range(queries)],
        queries=torch.from_numpy(vectors).float(),
        pool=torch.from_numpy(pool).float(),
        offsets=np.arange(queries + 1, dtype=np.int64) * size,
        pointers=pointers,
        rewards=right.mean(axis=1).astype(np.float32),
        sampled=np.zeros(queries * size, dtype=bool),
        pools=[None] * queries,
        excluded=[None] * queries,
    )


def pair_groups(seed: int, queries: int, *, dim: int = 12) -> tuple[Groups, np.ndarray]:
    """Each query takes a row of a class of each of two kinds; and the classes of rows and queries.

    Queries are the sum of the two rows' directions, so that only the set of rows matters. The
    candidates show every combination of right and wrong rows, always beside another candidate that
    differs in one row. [K + Q, 2] classes: of rows, -1 for the kind that they do not show.
    """
    world = np.random.default_rng(99)
    directions = world.standard_normal((2, 3, dim))
    kinds, values = np.repeat([0, 1], 12), np.tile([0, 1, 2], 8)
    pool = directions[kinds, values] + 0.3 * world.standard_normal((24, dim))
    row_classes = np.where(kinds[:, None] == [0, 1], values[:, None], -1)
    rng = np.random.default_rng(seed)
    wanted = rng.integers(3, size=(queries, 2))
    vectors = sum(directions[kind, wanted[:, kind]] for kind in (0, 1))
    pointers, rewards = [], []
    for query in range(queries):
        right = [
            rng.permutation(np.flatnonzero(row_classes[:, k] == wanted[query, k])) for k in (0, 1)
        ]
        if rng.random() < 0.5:
            right.reverse()
        others = rng.permutation(np.setdiff1d(np.arange(24), np.concatenate(right)))
        (a, a2), (b, _) = right[0][:2], right[1][:2]
        pointers += [(a, b), (a, a2), (a, others[0]), (others[0], b), (others[1], others[0])]
        rewards += [1, 0, 0, 0, 0]
    groups = Groups(
        ids=[f"{seed}/{query}" for query in range(queries)],
        images=[f"{seed}/{query}" for query in range(queries)],
        queries=torch.from_numpy(vectors + 0.3 * rng.standard_normal((queries, dim))).float(),
        pool=torch.from_numpy(pool).float(),
        offsets=np.arange(queries + 1, dtype=np.int64) * 5,
        pointers=np.array(pointers),
        rewards=np.array(rewards, dtype=np.float32),
        sampled=np.zeros(5 * queries, dtype=bool),
        pools=[None] * queries,
        excluded=[None] * queries,
    )
    return groups, np.concatenate([row_classes, wanted])


@torch.no_grad()
def worth(selector: PointerSelector, groups: Groups) -> float:
    """What the policy's likeliest first row earns on average: 1 where it has the query's class.

    Classes are told from the rewards' formula, not from the groups' candidates.
    """
    state = initial_state(selector, groups.queries, groups.pool)
    chosen = selector.step_logits(state)[:, 0].argmax(-1).numpy() % CLASSES
    world = np.random.default_rng(99)
    as_query = world.standard_normal((2, CLASSES, groups.queries.shape[1]))[0]
    distance = ((groups.queries.numpy()[:, None] - as_query) ** 2).sum(-1)
    return float((chosen == distance.argmin(-1)).mean())


def selector_for(groups: Groups, history: str = "gated", seed: int = 0) -> PointerSelector:
    dim = groups.pool.shape[1]
    config = PointerConfig(d_model=dim, hidden_dim=dim, num_layers=1, num_heads=2, history=history)
    return PointerSelector.seeded(config, seed).eval()


def learner_for(groups: Groups, selector: PointerSelector, **config) -> Learner:
    every = np.arange(len(groups))
    return Learner(selector, groups, every, every, TrainConfig(**config), torch.device("cpu"))
