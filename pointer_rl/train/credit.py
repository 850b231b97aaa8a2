"""Credit: the steps at which each candidate is trained.

A reward belongs to a whole pointer. Only a comparison tells which of its rows earned it. Candidates
of a query that share all rows but one, in any positions, are a controlled comparison of the rows in
which they differ. It is decisive if its rewards differ by at least half as much as those of the
whole group. A candidate is trained

1. at the steps of the rows that its decisive comparisons are about;
2. if it has none, at every step at which the candidates of its query differ.

The absence of a row counts as a row, so a pointer and the same pointer with one row more are a
comparison, too.

The row that all probes of a query share is thus not trained, whatever else was proposed for it. If
two rows succeed together, and each fails next to another, both are trained.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pointer_rl.types import NO_ROW

DECISIVE = 0.5
"""Least difference of the rewards in a decisive comparison, as a share of that in the group."""

Indices = npt.NDArray[np.int64]


def credited_steps(
    pointers: Indices, rewards: npt.NDArray[np.float32], queries: Indices
) -> npt.NDArray[np.bool_]:
    """[C, S] the steps at which each candidate is trained.

    pointers: [C, S] rows, padded with NO_ROW; rewards: [C]; queries: [C] the index of each
    candidate's query.
    """
    varied = np.stack([_spread(queries, each) > 0 for each in _choices(pointers).T], axis=1)
    compared = _comparisons(pointers, queries)
    spread = _spread(compared.ravel(), rewards.repeat(pointers.shape[1])).reshape(pointers.shape)
    decisive = varied & (spread >= DECISIVE * _spread(queries, rewards)[:, None])
    return np.where(decisive.any(axis=1, keepdims=True), decisive, varied)


def _choices(pointers: Indices) -> Indices:
    """Pointers in which NO_ROW is the stop, and places after it are another number."""
    choices = pointers.copy()
    choices[:, 1:][(pointers[:, 1:] == NO_ROW) & (pointers[:, :-1] == NO_ROW)] = NO_ROW - 1
    return choices


def _comparisons(pointers: Indices, queries: Indices) -> Indices:
    """[C, S] equal where candidates of a query have the same other rows, in any order."""
    shots = pointers.shape[1]
    others = np.stack([np.delete(pointers, step, axis=1) for step in range(shots)], axis=1)
    number = queries.repeat(shots)
    # The rows join the number one by one, and each time it is made small again.
    for rows in np.sort(others, axis=-1).reshape(len(number), shots - 1).T:
        keys = number * (pointers.max() + 2) + rows + 1
        number = np.unique(keys, return_inverse=True)[1]
    return number.reshape(pointers.shape)


def _spread(groups: Indices, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[X] the highest less the lowest of the values in each one's group."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    ordered = values[order]
    spread = np.maximum.reduceat(ordered, starts) - np.minimum.reduceat(ordered, starts)
    found = np.empty_like(spread, shape=len(values))
    found[order] = spread.repeat(np.diff(starts, append=len(values)))
    return found
