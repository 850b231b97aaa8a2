"""A dataset cut in two by image: what a policy may learn from, and what it is measured on.

The images that are held out are drawn by a hash of their content and the seed, so the cut does not
depend on ids, on the order of the examples or on where the files lie.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

from pointer_rl.datasets.identity import Activity, hash_images, image_content, unseen
from pointer_rl.errors import InputError
from pointer_rl.types import Dataset, Example


@dataclass(frozen=True, kw_only=True)
class Part:
    """One side of the cut. The other side has none of its images.

    Both have the same pool: the examples that share no image with a held-out query.
    """

    side: Literal["training", "held-out"]
    share: float = 0.2
    """Share of the queries' images that is held out."""
    seed: int = 0
    """Which images these are."""

    def __post_init__(self) -> None:
        if self.side not in ("training", "held-out") or not 0 < self.share < 1:
            raise InputError(
                "a part of a dataset is training or held-out, and its share between 0 and 1"
            )

    def of(self, dataset: Dataset, activity: Activity = unseen) -> Dataset:
        """The part of a dataset, with rows counted anew.

        Reads images that have not been read before. Raises InputError if the queries show fewer
        than two images, and if a side or the pool would be empty.
        """
        hash_images((each.image for each in chain(dataset.queries, dataset.pool)), activity)
        contents = sorted(set(map(image_content, dataset.queries)), key=self._number)
        if len(contents) < 2:
            raise InputError(
                f"dataset {dataset.name}: {len(contents)} image, and holding out some takes two"
            )
        number = min(max(1, round(self.share * len(contents))), len(contents) - 1)
        drawn = set(contents[:number])
        held_out = [each for each in dataset.queries if image_content(each) in drawn]
        ids = {str(each.image_id) for each in held_out if each.image_id is not None}

        def apart(example: Example) -> bool:
            """Whether it shares no image with any held-out query, by content or by image_id."""
            return image_content(example) not in drawn and str(example.image_id) not in ids

        rows = [row for row, example in enumerate(dataset.pool) if apart(example)]
        pool = _renumbered([dataset.pool[row] for row in rows])
        training = pool
        if dataset.pool is not dataset.queries:
            training = _renumbered([each for each in dataset.queries if apart(each)])
        if not training or not pool:
            raise InputError(
                f"dataset {dataset.name}: {number:,} of {len(contents):,} images are held out, and "
                f"nothing is left to {'show' if training else 'learn from'}"
            )
        queries = training if self.side == "training" else _renumbered(held_out)
        relevant = dataset.relevant
        if relevant is not None:
            place = {row: new for new, row in enumerate(rows)}
            row_of = {each.id: each.row for each in dataset.queries}
            relevant = [
                [[place[row] for row in one if row in place] for one in relevant[row_of[each.id]]]
                for each in queries
            ]
        return replace(dataset, queries=queries, pool=pool, relevant=relevant)

    def _number(self, content: str) -> bytes:
        return hashlib.sha256(f"{self.seed}/{content}".encode()).digest()


def _renumbered(examples: Sequence[Example]) -> Sequence[Example]:
    return tuple(replace(each, row=row) for row, each in enumerate(examples))


def part_of(about: Mapping[str, Any]) -> Part | None:
    """The part that a dataset is, as `_meta` describes it; None for a whole one."""
    part = about.get("part")
    if part is None:
        return None
    try:
        return Part(**part)
    except TypeError as error:
        raise InputError(f"_meta.dataset.part: {error}") from error
