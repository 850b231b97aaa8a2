"""The dataset that a file or a bundle was made from, to open it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pointer_rl.datasets.identity import digest_ids
from pointer_rl.datasets.parts import part_of
from pointer_rl.errors import InputError
from pointer_rl.registry import registry
from pointer_rl.types import Dataset, Example


def recorded_dataset(
    described: Mapping[str, Any],
    owner: object,
    name: str | None = None,
    options: Mapping[str, object] | None = None,
) -> tuple[str, dict[str, object]]:
    """Name and options of the dataset plugin that `described` (a `_meta.dataset`) names.

    `name` names another dataset; `options` are its options or, without `name`, replace some of the
    recorded ones. Raises InputError, naming the owner, if no dataset is recorded or given.
    """
    if name is not None:
        return name, dict(options or {})
    found, values = described.get("name"), described.get("options", {})
    if not isinstance(found, str) or not isinstance(values, dict):
        raise InputError(f"{owner} does not name its dataset: give --dataset and --dataset-opt")
    return found, {**values, **(options or {})}


def open_recorded(
    described: Mapping[str, Any],
    owner: object,
    name: str | None = None,
    options: Mapping[str, object] | None = None,
) -> Dataset:
    """The dataset of `recorded_dataset`, whose pool is still the recorded one.

    Raises PointerRLError if it cannot be opened or has another pool.
    """
    named = recorded_dataset(described, owner, name, options)
    dataset: Dataset = registry().create("dataset", *named)
    part = part_of(described) if name is None else None
    if part is not None:
        dataset = part.of(dataset)
    if "pool_sha256" in described:
        check_pool(dataset.pool, described["pool_sha256"], owner)
    return dataset


def check_pool(pool: Sequence[Example], recorded: object, owner: object) -> None:
    """Raise InputError if the ids of the pool do not have the recorded hash (`pool_sha256`)."""
    if digest_ids(each.id for each in pool) != recorded:
        raise InputError(
            f"{owner}: the dataset's pool ({len(pool):,} examples) has other ids than the recorded "
            "one: give the dataset that it was made from (--dataset, --dataset-opt)"
        )
