"""The inputs of a training run: the embeddings for its data, and the policy to start from."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pointer_rl.datasets.embeddings import Embeddings, digest_vectors, load_embeddings
from pointer_rl.datasets.identity import ExampleHasher, Say, digest_hashes
from pointer_rl.datasets.parts import part_of
from pointer_rl.errors import InputError
from pointer_rl.records.beam_dataset import BeamDatasetWithEmbedding
from pointer_rl.records.formats import read_meta
from pointer_rl.records.provenance import INPUTS
from pointer_rl.registry import registry
from pointer_rl.selectors.bundle import EncoderInfo, encoder_of
from pointer_rl.selectors.checkpoints import load_selector
from pointer_rl.selectors.selector import Selector, create_selector
from pointer_rl.session.resolve import dataset_embeddings
from pointer_rl.session.session import PluginRef
from pointer_rl.train.config import DEFAULT_SELECTOR, TrainConfig
from pointer_rl.types import Dataset, Example, Pool

log = logging.getLogger(__name__)


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

    def compare(self, data: BeamDatasetWithEmbedding) -> list[str]:
        """Raise InputError if these embeddings are not of the examples that the data was made from.

        Returns "queries" or "pool" for those of which that is not known, and warns of it.
        """
        dataset = data.meta.get("dataset")
        inputs = data.meta.get(INPUTS)
        inputs = inputs if isinstance(inputs, dict) else {}
        # The hashes are of all queries in order. If some are missing, they may be the first.
        asked = dataset.get("num_queries") if isinstance(dataset, dict) else None
        whole = asked == len(data)
        query_rows: Sequence[int] | None = None
        if whole:
            query_rows = data.query_rows.tolist()
        elif isinstance(asked, int) and asked <= len(self.queries.vectors):
            query_rows = range(asked)
        sides = {
            "queries": (self.queries, "query", query_rows),
            "pool": (self.pool, "pool", range(len(self.pool.vectors))),
        }
        unknown = []
        for side, (made, name, rows) in sides.items():
            contents = inputs.get(f"{side}_content_sha256")
            vectors = inputs.get(f"{name}_embeddings_sha256")
            same = None
            if rows is None:
                pass
            elif made.contents and contents and "unreadable_images" not in inputs:
                same = digest_hashes(made.contents[row] for row in rows) == contents
            elif vectors and digest_vectors(made.take(rows)) == vectors:
                same = True
            elif vectors and made.ids is None:  # with ids they may be by another encoder
                same = False
            if same is None or (not same and side == "queries" and not whole):
                unknown.append(side)
            elif not same:
                raise InputError(
                    f"{data.path}: the embeddings of the {side} are of other examples than the "
                    "file was made from, or in another order (an image, a question or an answer "
                    "may have changed): give the same ones, or embed the dataset and generate the "
                    "data again"
                )
        if unknown:
            log.warning(
                "%s: whether the embeddings of the %s are of the same images, questions and "
                "answers as the data is not known, and not compared",
                data.path,
                " and the ".join(unknown),
            )
        return unknown

    @property
    def pool_ids(self) -> tuple[str, ...]:
        """The ids of the pool's rows; their numbers if the file of embeddings has no ids."""
        return self.pool.ids or tuple(map(str, range(len(self.pool.vectors))))


def open_source(
    data: Path,
    img_emb: Path | None,
    query_emb: Path | None,
    cand_emb: Path | None,
    say: Say = lambda sentence: None,
) -> Source:
    """The embeddings for a file of data.

    They are read from the files given (`img_emb`: one matrix for queries and pool); of data of a
    part of a dataset, those of its examples. If none is given and the data's `_meta` names a
    dataset that brings its own encoder, that encoder makes them. Raises InputError for anything
    else.
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
    part = part_of(about)
    if query_emb is not None and cand_emb is not None and part is None:
        queries, pool = load_embeddings(query_emb), load_embeddings(cand_emb)
        if queries.encoder and pool.encoder and queries.encoder != pool.encoder:
            raise InputError(
                f"{query_emb} and {cand_emb} come from different encoders ({queries.encoder} and "
                f"{pool.encoder}): embed both with the same"
            )
        return Source(queries, pool, EncoderInfo.of(pool), about)
    if (query_emb is None) != (cand_emb is None) or "name" not in about:
        raise InputError(
            f"{data}: give --query-emb and --cand-emb (`pointer-rl embed` makes them), or "
            "--img-emb where one file embeds queries and pool"
        )
    plugin = registry().configure("dataset", about["name"], about.get("options", {}))
    dataset: Dataset = plugin.create()
    if part is not None:
        dataset = part.of(dataset, say)
    if query_emb is None and dataset.companions is None:
        raise InputError(
            f"{data}: the dataset {dataset.name} brings no encoder: give --query-emb and "
            "--cand-emb (`pointer-rl embed` makes them)"
        )
    hasher = ExampleHasher(say)
    vectors, embedded_pool, _ = dataset_embeddings(
        dataset, hasher, dataset.queries, query_emb, cand_emb
    )
    return embedded(dataset, hasher, vectors, embedded_pool, about)


def embedded(
    dataset: Dataset, hasher: ExampleHasher, queries: Tensor, pool: Pool, about: Mapping[str, Any]
) -> Source:
    """A source from a dataset's embeddings: queries [Q, d], in its order, and the pool."""

    def of(examples: Sequence[Example], vectors: Tensor) -> Embeddings:
        ids = tuple(each.id for each in examples)
        return Embeddings(ids, vectors, pool.encoder, tuple(hasher(examples).hashes))

    return Source(
        of(dataset.queries, queries),
        of(dataset.pool, pool.embeddings),
        EncoderInfo(
            fingerprint=pool.encoder,
            name=dataset.companions.encoder if dataset.companions else None,
        ),
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
    encoder_of(path).check(source.encoder.fingerprint, path)
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
