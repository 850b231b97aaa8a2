"""Embeddings and policies, from the user's files or a dataset's companions.

Companions are made on first use, and never used for a dataset of the user's own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pointer_rl.datasets.embed import embed_dataset
from pointer_rl.datasets.embeddings import check_dims, load_embeddings
from pointer_rl.datasets.identity import ExampleHasher
from pointer_rl.devices import resolve_device
from pointer_rl.errors import InputError
from pointer_rl.files import cache_folder
from pointer_rl.registry import ConfiguredEntry, Entry, registry
from pointer_rl.selectors import PointerConfig, PointerSelector, SelectorPolicy, load_selector
from pointer_rl.selectors.bundle import encoder_of
from pointer_rl.types import Dataset, Decoded, Example, Pool

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)


def dataset_embeddings(
    dataset: Dataset,
    hasher: ExampleHasher,
    queries: Sequence[Example],
    query_emb: Path | None,
    cand_emb: Path | None,
) -> tuple[Tensor, Pool, list[str]]:
    """Embeddings of `queries` [N, d], some of the dataset's, and the pool with its own [K, d].

    Also returns "queries" or "pool" for files that do not say of which examples they were made.
    Raises InputError if a file is missing, is of other examples or another encoder, or if none is
    given and the dataset has no companions.
    """
    if query_emb is not None and cand_emb is not None:
        of_queries, of_pool = load_embeddings(query_emb), load_embeddings(cand_emb)
        encoders = {each.encoder for each in (of_queries, of_pool) if each.encoder is not None}
        if len(encoders) > 1:
            raise InputError(
                f"{query_emb} and {cand_emb} come from different encoders "
                f"({' and '.join(sorted(encoders))}): embed both with the same"
            )
        rows = of_queries.match(dataset.queries, str(query_emb))
        if queries is not dataset.queries:
            row_of = {query.id: row for query, row in zip(dataset.queries, rows, strict=True)}
            rows = [row_of[query.id] for query in queries]
        pool_rows = of_pool.match(dataset.pool, str(cand_emb))
        vectors, pool_vectors = of_queries.take(rows), of_pool.take(pool_rows)
        check_dims(vectors, pool_vectors)
        sides = {
            "queries": (query_emb, of_queries, rows, queries),
            "pool": (cand_emb, of_pool, pool_rows, dataset.pool),
        }
        unknown = {
            side: path
            for side, (path, made, of, examples) in sides.items()
            if not made.check_contents(of, examples, hasher(examples), str(path))
        }
        for path in dict.fromkeys(unknown.values()):
            log.warning(
                "%s: does not say of which images, questions and answers it was made, so a change "
                "cannot be noticed; `pointer-rl embed` writes that",
                path,
            )
        return vectors, Pool(dataset.pool, pool_vectors, min(encoders, default=None)), list(unknown)
    if query_emb is None and cand_emb is None and dataset.companions is not None:
        encoder = registry().configure("encoder", dataset.companions.encoder)
        every_query, pool = encoder_embeddings(dataset, hasher, dataset.queries, encoder)
        if queries is not dataset.queries:
            row_of = {query.id: row for row, query in enumerate(dataset.queries)}
            every_query = every_query[[row_of[query.id] for query in queries]]
        return every_query, pool, []
    raise InputError(
        f"the dataset {dataset.name} needs --query-emb and --cand-emb: make them with "
        "`pointer-rl embed`, --split queries and --split pool"
    )


def encoder_embeddings(
    dataset: Dataset,
    hasher: ExampleHasher,
    queries: Sequence[Example],
    encoder_plugin: ConfiguredEntry,
) -> tuple[Tensor, Pool]:
    """The same by an encoder; embeddings are made once and kept in the cache folder."""
    encoder = encoder_plugin.create()
    some = dataclasses.replace(dataset, queries=queries)
    about = encoder_plugin.describe()

    def embed(split: Literal["queries", "pool"], examples: Sequence[Example]) -> Tensor:
        identity = f"{encoder.fingerprint} {hasher(examples).digest}"
        name = f"{dataset.name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
        path = cache_folder() / "embeddings" / f"{name}-{split}.safetensors"
        return embed_dataset(
            some, encoder, path, split=split, hasher=hasher, encoder_plugin=about
        ).vectors

    of_queries = embed("queries", queries)
    return of_queries, Pool(dataset.pool, embed("pool", dataset.pool), encoder.fingerprint)


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
    sft_ckpt: Path | None, dataset: Dataset, pool: Pool, seed: int, device: str | None
) -> SelectorPolicy | NoPolicy:
    """The selector of the checkpoint; for a dataset with companions, a seeded untrained one.

    Raises InputError for a checkpoint that takes embeddings of another size than the pool's, and
    for the bundle of a policy for another encoder.
    """
    dim = pool.embeddings.shape[1]
    if sft_ckpt is not None:
        selector = load_selector(sft_ckpt, d_model=dim)
        encoder_of(sft_ckpt).check(pool.encoder, sft_ckpt)
    elif dataset.companions is not None:
        config = PointerConfig(
            d_model=dim, hidden_dim=dim, num_layers=1, num_heads=1, history="gated"
        )
        selector = PointerSelector.seeded(config, seed)
    else:
        return NoPolicy()
    return SelectorPolicy(selector, resolve_device(device or "auto"))


def selector_entries(policies: Iterable[object]) -> list[Entry]:
    """The registered selectors that these policies are."""
    names = {each.name for each in policies if isinstance(each, SelectorPolicy)}
    return [registry().find("selector", name) for name in sorted(names)]


def describe_policy(policy: SelectorPolicy | NoPolicy) -> dict[str, Any] | None:
    """Hash and configuration, for `_meta`."""
    if isinstance(policy, NoPolicy):
        return None
    return {"sha256": policy.hash, "config": asdict(policy.config)}
