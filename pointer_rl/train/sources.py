"""The inputs of a training run: the embeddings for its data, and the policy to start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pointer_rl.datasets.embeddings import Embeddings, load_embeddings
from pointer_rl.errors import InputError
from pointer_rl.records.beam_dataset import BeamDatasetWithEmbedding
from pointer_rl.records.formats import read_meta
from pointer_rl.registry import registry
from pointer_rl.selectors.bundle import EncoderInfo, is_bundle, load_bundle
from pointer_rl.selectors.checkpoints import load_selector
from pointer_rl.selectors.selector import Selector, create_selector
from pointer_rl.session.resolve import dataset_embeddings
from pointer_rl.session.session import PluginRef
from pointer_rl.train.config import DEFAULT_SELECTOR, TrainConfig
from pointer_rl.types import Dataset, Pool


@dataclass(frozen=True, eq=False)
class Source:
    """Embeddings of queries and pool, and where they come from."""

    queries: Embeddings
    pool: Embeddings
    encoder: EncoderInfo
    dataset: Mapping[str, Any] = field(default_factory=dict)
    """The dataset as the data's `_meta` describes it."""

    def read(self, path: Path, reward: PluginRef) -> BeamDatasetWithEmbedding:
        """The groups of a file of RL data or beam data."""
        return BeamDatasetWithEmbedding(path, self.queries, self.pool, reward.name, reward.options)

    @property
    def pool_ids(self) -> tuple[str, ...]:
        """The ids of the pool's rows; their numbers if the file of embeddings has no ids."""
        return self.pool.ids or tuple(map(str, range(len(self.pool.vectors))))


def open_source(
    data: Path, img_emb: Path | None, query_emb: Path | None, cand_emb: Path | None
) -> Source:
    """The embeddings for a file of data.

    They are read from the files given (`img_emb`: one matrix for queries and pool). If none is
    given and the data's `_meta` names a dataset that brings its own encoder, that encoder makes
    them. Raises InputError for anything else.
    """
    recorded = (read_meta(data) or {}).get("dataset")
    about = recorded if isinstance(recorded, dict) else {}
    if not isinstance(about.get("name", ""), str) or not isinstance(about.get("options", {}), dict):
        raise InputError(f"{data}: _meta.dataset has no proper name and options")
    if img_emb is not None:
        if query_emb is not None or cand_emb is not None:
            raise InputError("give either --img-emb, or --query-emb and --cand-emb")
        both = load_embeddings(img_emb)
        return Source(both, both, EncoderInfo.of(both), about)
    if query_emb is not None and cand_emb is not None:
        queries, pool = load_embeddings(query_emb), load_embeddings(cand_emb)
        if queries.encoder and pool.encoder and queries.encoder != pool.encoder:
            raise InputError(
                f"{query_emb} and {cand_emb} come from different encoders ({queries.encoder} and "
                f"{pool.encoder}): embed both with the same"
            )
        return Source(queries, pool, EncoderInfo.of(pool), about)
    if query_emb is not None or cand_emb is not None or "name" not in about:
        raise InputError(
            f"{data}: give --query-emb and --cand-emb (`pointer-rl embed` makes them), or "
            "--img-emb where one file embeds queries and pool"
        )
    plugin = registry().configure("dataset", about["name"], about.get("options", {}))
    dataset = plugin.create()
    if dataset.companions is None:
        raise InputError(
            f"{data}: the dataset {dataset.name} brings no encoder: give --query-emb and "
            "--cand-emb (`pointer-rl embed` makes them)"
        )
    return embedded(
        dataset, *dataset_embeddings(dataset, plugin, dataset.queries, None, None), about
    )


def embedded(dataset: Dataset, queries: Tensor, pool: Pool, about: Mapping[str, Any]) -> Source:
    """A source from a dataset's embeddings: queries [Q, d], in its order, and the pool."""
    name = dataset.companions.encoder if dataset.companions else None
    return Source(
        Embeddings(tuple(each.id for each in dataset.queries), queries, pool.encoder),
        Embeddings(tuple(each.id for each in pool.examples), pool.embeddings, pool.encoder),
        EncoderInfo(fingerprint=pool.encoder, name=name),
        about,
    )


def start_policy(path: Path | None, source: Source, config: TrainConfig) -> Selector:
    """The policy of a bundle or checkpoint; without a path, the new selector that `config` names.

    Raises InputError if it takes other embeddings than the source's, or for options that do not
    fit; PluginError for a selector that is not installed.
    """
    dim = source.pool.vectors.shape[1]
    if path is None:
        return _new_selector(config, dim)
    if is_bundle(path):
        load_bundle(path).info.encoder.check(source.encoder.fingerprint, path)
    if config.selector_options or config.selector != DEFAULT_SELECTOR:
        raise InputError(
            f"{path} has a selector already: do without --selector, --selector-opt, --layers, "
            "--heads, --hidden-dim, --history"
        )
    return load_selector(path, d_model=dim)


def _new_selector(config: TrainConfig, dim: int) -> Selector:
    if "d_model" in config.selector_options:
        raise InputError("--selector-opt d_model: it is the size of the embeddings; do without it")
    options = {**config.selector_options, "d_model": dim}
    return create_selector(config.selector, options, config.seed)
