"""Embeddings and policies, from the user's files or a dataset's companions.

Companions are made on first use, and never used for a dataset of the user's own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pointer_rl.datasets.embed import digest, embed_dataset
from pointer_rl.datasets.embeddings import check_dims, load_embeddings
from pointer_rl.devices import resolve_device
from pointer_rl.errors import InputError
from pointer_rl.registry import ConfiguredEntry, registry
from pointer_rl.selectors import PointerConfig, PointerSelector, SelectorPolicy, load_selector
from pointer_rl.session.cache import cache_folder
from pointer_rl.types import Dataset, Decoded, Example, Pool

if TYPE_CHECKING:
    from torch import Tensor


def dataset_embeddings(
    dataset: Dataset,
    plugin: ConfiguredEntry,
    queries: Sequence[Example],
    query_emb: Path | None,
    cand_emb: Path | None,
) -> tuple[Tensor, Pool]:
    """Embeddings of `queries` [N, d], some of the dataset's, and the pool with its own [K, d].

    plugin: the dataset's. Raises InputError if a file is missing, is of other examples or another
    encoder, or if none is given and the dataset has no companions.
    """
    if query_emb is not None and cand_emb is not None:
        of_queries, of_pool = load_embeddings(query_emb), load_embeddings(cand_emb)
        encoders = {each.encoder for each in (of_queries, of_pool) if each.encoder is not None}
        if len(encoders) > 1:
            raise InputError(
                f"{query_emb} and {cand_emb} come from different encoders "
                f"({' and '.join(sorted(encoders))}): embed both with the same"
            )
        every_query = of_queries.match(dataset.queries, str(query_emb))
        vectors = of_pool.match(dataset.pool, str(cand_emb))
        pool = Pool(dataset.pool, vectors, min(encoders, default=None))
    elif query_emb is None and cand_emb is None and dataset.companions is not None:
        encoder = registry().configure("encoder", dataset.companions.encoder)
        every_query, pool = encoder_embeddings(dataset, plugin, dataset.queries, encoder)
    else:
        raise InputError(
            f"the dataset {dataset.name} needs --query-emb and --cand-emb: make them with "
            "`pointer-rl embed`, --split queries and --split pool"
        )
    check_dims(every_query, pool.embeddings)
    if queries is dataset.queries:
        return every_query, pool
    row_of = {query.id: row for row, query in enumerate(dataset.queries)}
    return every_query[[row_of[query.id] for query in queries]], pool


def encoder_embeddings(
    dataset: Dataset,
    plugin: ConfiguredEntry,
    queries: Sequence[Example],
    encoder_plugin: ConfiguredEntry,
) -> tuple[Tensor, Pool]:
    """The same by an encoder; embeddings are made once and kept in the cache folder."""
    encoder = encoder_plugin.create()
    some = dataclasses.replace(dataset, queries=queries)
    about = encoder_plugin.describe()

    def embed(split: Literal["queries", "pool"], *of: str) -> Tensor:
        identity = json.dumps([plugin.describe(), encoder.fingerprint, *of], sort_keys=True)
        name = f"{dataset.name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
        path = cache_folder() / "embeddings" / f"{name}-{split}.safetensors"
        return embed_dataset(some, encoder, path, split=split, encoder_plugin=about).vectors

    every = queries is dataset.queries
    of_queries = embed("queries", *(() if every else (digest(queries),)))
    return of_queries, Pool(dataset.pool, embed("pool"), encoder.fingerprint)


class NoPolicy:
    """The policy if no selector was given. It refuses the first generator that needs one."""

    can_stop = False

    def _refuse(self, *_args: object, **_options: object) -> Decoded:
        raise InputError(
            "beams and samples need a selector: give --sft-ckpt, or do without them "
            "(--num-beams 0 --num-samples-per-temp 0)"
        )

    beam = sample = _refuse


def make_policy(
    sft_ckpt: Path | None, dataset: Dataset, dim: int, seed: int, device: str | None
) -> SelectorPolicy | NoPolicy:
    """The selector of the checkpoint; for a dataset with companions, a seeded untrained one.

    Raises InputError for a checkpoint that takes embeddings of another size than `dim`.
    """
    if sft_ckpt is not None:
        selector = load_selector(sft_ckpt, d_model=dim)
    elif dataset.companions is not None:
        config = PointerConfig(
            d_model=dim, hidden_dim=dim, num_layers=1, num_heads=1, history="gated"
        )
        selector = PointerSelector.seeded(config, seed)
    else:
        return NoPolicy()
    return SelectorPolicy(selector, resolve_device(device or "auto"))


def describe_policy(policy: SelectorPolicy | NoPolicy) -> dict[str, Any] | None:
    """Hash and configuration, for `_meta`."""
    if isinstance(policy, NoPolicy):
        return None
    return {"sha256": policy.hash, "config": asdict(policy.config)}
