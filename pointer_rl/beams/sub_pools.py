"""Sub-pools: the part of the pool from which a query's demonstrations are tried."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor
from torch.nn.functional import normalize

from pointer_rl.datasets.leakage import AllowedRows
from pointer_rl.errors import InputError
from pointer_rl.session.proposing import random_source
from pointer_rl.session.session import Session
from pointer_rl.session.similarity import Space, similarity_spaces
from pointer_rl.types import Example

Sampler = Literal["random", "image", "text", "mixed"]
"""How a sub-pool is drawn: uniformly, or as the rows most similar to the query."""


def sampler_space(session: Session, queries: Sequence[Example], sampler: Sampler) -> Space | None:
    """The embeddings that the sampler compares; None for random.

    Raises InputError without an encoder, or if it cannot embed what the sampler compares.
    """
    if sampler == "random":
        return None
    if session.options.encoder is None and session.dataset.companions is None:
        raise InputError(
            f"--sampler {sampler} needs --encoder: one with the option mode, such as clip"
        )
    known = similarity_spaces(session, queries)
    if sampler not in known:
        raise InputError(
            f"--sampler {sampler}: the encoder embeds in one way only; name one with the modes "
            "image, text and both, and leave its mode open"
        )
    space = known[sampler]()
    # Which part of an example the sampler compares is not what a policy is to choose by.
    plugin = dict(space.pool.encoder_plugin or {})
    plugin["options"] = {key: each for key, each in plugin["options"].items() if key != "mode"}
    return replace(space, pool=replace(space.pool, encoder_plugin=plugin))


@dataclass(frozen=True)
class SubPool:
    """The rows that one query may choose from."""

    rows: list[int]
    """Ascending."""
    is_whole: bool
    """Whether these are all rows that the query may be shown."""


class SubPools:
    """For each query, `size` of the rows that it may be shown, or all if there are fewer."""

    def __init__(
        self, allowed: AllowedRows, size: int, seed: int, space: Space | None = None
    ) -> None:
        """space: embeddings by which the most similar rows are found; None draws random rows."""
        self.allowed = allowed
        self._size = size
        self._seed = seed
        self._unit: tuple[Tensor, Tensor] | None = None
        if space is not None:
            self._unit = (
                normalize(space.queries, dim=-1),
                normalize(space.pool.embeddings, dim=-1),
            )

    def draw(self, index: int, query: Example) -> SubPool:
        """The sub-pool of the index-th query. Random rows depend on the seed and the id alone."""
        allowed = self.allowed.mask([query])[0]
        rows = allowed.nonzero()[:, 0]
        if len(rows) <= self._size:
            return SubPool(rows.tolist(), is_whole=True)
        if self._unit is None:
            rng = random_source(self._seed, query.id, "sub-pool")
            chosen = rng.choice(rows.numpy(), self._size, replace=False)
        else:
            queries, pool = self._unit
            cosines = (pool @ queries[index]).masked_fill(~allowed, -math.inf)
            chosen = cosines.sort(descending=True, stable=True).indices[: self._size].numpy()
        return SubPool(sorted(chosen.tolist()), is_whole=False)
