"""The arm `fixed`: one pointer for all queries, the best of many random ones on training queries.

A policy that does not beat it may know good demonstrations, but not for which query. The best one
is found by sequential halving (Karnin, Koren and Somekh 2013, "Almost optimal exploration in
multi-armed bandits"), with all outcomes of a pointer averaged, those of earlier rounds too, as in
Jamieson and Talwalkar 2016, "Non-stochastic best arm identification and hyperparameter
optimization". Pointers are compared on the same queries, save those that may not be shown one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import compress

import numpy as np

from pointer_rl.errors import InputError
from pointer_rl.evaluate.arms import Arm, Floats, Pointers, Setting
from pointer_rl.session.proposing import random_source
from pointer_rl.types import Pointer
from pointer_rl_standard.options import FixedOptions

Pair = tuple[int, int]
"""The number of a pointer and of a query."""


class FixedArm(Arm):
    """The best pointer on training queries; the next best where a query may not be shown it."""

    def __init__(self, options: FixedOptions) -> None:
        self._options = options

    def choose(self, setting: Setting) -> Pointers:
        """Asks at most `budget` trials. Raises InputError if none of them is answered."""
        training = setting.training
        rng = random_source(setting.seed, "", "fixed")
        pointers = self._draw(len(setting.pool), setting.shots, rng)
        queries = [training.queries[row] for row in rng.permutation(len(training.queries))]

        def ask(pairs: Sequence[Pair]) -> Floats:
            trials = [(queries[query], pointers[number]) for number, query in pairs]
            hidden = (training.allowed.excluded(query) for query, _ in trials)
            may = [
                set(pointer).isdisjoint(rows)
                for (_, pointer), rows in zip(trials, hidden, strict=True)
            ]
            outcomes = iter(training.ask(list(compress(trials, may))))
            return np.array([next(outcomes).accuracy if each else None for each in may], float)

        ranked = [
            pointers[number]
            for number in rank_by_halving(len(pointers), len(queries), self._options.budget, ask)
        ]
        masks = (mask for batch in setting.batches(setting.space) for mask in batch.allowed)
        chosen: Pointers = []
        for query, mask in zip(setting.queries, masks, strict=True):
            pointer = next((each for each in ranked if mask[list(each)].all()), None)
            if pointer is None:
                raise InputError(
                    f"query {query.id} may be shown none of the {len(ranked)} pointers that were "
                    "tried (its image, or another episode): try more, with the option pointers"
                )
            chosen.append((pointer,))
        return chosen

    def _draw(self, size: int, shots: int, rng: np.random.Generator) -> list[Pointer]:
        wanted = min(self._options.pointers, math.perm(size, shots))
        drawn: dict[Pointer, None] = {}  # an ordered set: a repeated draw is drawn again
        while len(drawn) < wanted:
            drawn[tuple(rng.choice(size, shots, replace=False).tolist())] = None
        return list(drawn)


def rank_by_halving(
    pointers: int, queries: int, budget: int, ask: Callable[[Sequence[Pair]], Floats]
) -> list[int]:
    """The numbers of so many pointers, best first, after at most `budget` trials.

    Of R = ⌈log2(pointers)⌉ rounds each spends budget / R: every pointer that is left is asked with
    the same next queries, as many as that allows, and the better half stays. If the queries run
    out, the budget is not spent. ask: the reward of each pair, NaN for one that has none.
    """
    rewards = np.full((pointers, queries), math.nan)
    left, ranked, begin = list(range(pointers)), list[int](), 0
    rounds = max(1, (pointers - 1).bit_length())
    for _ in range(rounds):
        end = min(begin + budget // (rounds * len(left)), queries)
        pairs = [(number, query) for query in range(begin, end) for number in left]
        if pairs:
            rewards[tuple(np.transpose(pairs))] = ask(pairs)
        begin = end
        counts = np.isfinite(rewards).sum(1)
        means = np.where(counts > 0, np.nansum(rewards, 1) / np.maximum(counts, 1), -1.0)
        left.sort(key=lambda number: -means[number])
        half = (len(left) + 1) // 2
        ranked[:0] = left[half:]
        left = left[:half]
    return left + ranked
