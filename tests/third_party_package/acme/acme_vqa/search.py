from __future__ import annotations

from pointer_rl.types import Candidate


class Swaps:
    """Starts from the first rows, then tries other last rows, two at a time."""

    def __init__(self, options):
        self.budget = options.budget

    def start(self, policy, queries, pool, rngs):
        return [
            SwapSearch(allowed.nonzero()[:, 0].tolist(), queries.shots, self.budget)
            for allowed in queries.allowed
        ]


class SwapSearch:
    """Ends as soon as a pointer is answered correctly."""

    def __init__(self, rows, shots, budget):
        first = tuple(rows[:shots])
        others = [(*first[:-1], row) for row in rows[shots:]]
        self._left = [first, *others][:budget]

    def ask(self):
        asked, self._left = self._left[:2], self._left[2:]
        return [Candidate(pointer, "acme-swaps") for pointer in asked]

    def tell(self, outcomes):
        if any(outcome.correct for _, outcome in outcomes):
            self._left = []
