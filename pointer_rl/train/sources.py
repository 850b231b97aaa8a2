"""The inputs of a training run: the embeddings for its data, and the policy to start from."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pointer_rl.datasets.embeddings import Embeddings, digest_vectors, load_embeddings
from pointer_rl.datasets.identity import ExampleHasher, digest_hashes
from pointer_rl.datasets.parts import part_of
from pointer_rl.errors import InputError, PointerRLError
from pointer_rl.records.beam_dataset import BeamDatasetWithEmbedding
from pointer_rl.records.formats import read_meta, stream_records
from pointer_rl.records.provenance import INPUTS
from pointer_rl.registry import registry
from pointer_rl.selectors.bundle import UNKNOWN, EncoderInfo, encoder_of
from pointer_rl.selectors.checkpoints import load_selector
from pointer_rl.selectors.selector import Selector, create_selector
from pointer_rl.session.observer import Observer
from pointer_rl.session.resolve import dataset_embeddings
from pointer_rl.session.session import PluginRef, check_encoder
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
    img_emb: Path | None = None,
    query_emb: Path | None = None,
    cand_emb: Path | None = None,
    encoder: PluginRef | None = None,
    start: Path | None = None,
    device: str | None = None,
    observer: Observer = Observer(),
) -> Source:
    """The embeddings for a file of data.

    They are read from the files given (`img_emb`: one matrix for queries and pool). Otherwise the
    dataset that the data's `_meta` names is opened, and embedded by `encoder`, else the encoder of
    the bundle `start`, else that in `_meta`, else the dataset's own; see `dataset_embeddings`.
    Raises InputError for anything else.
    """
    meta = read_meta(data) or {}
    about = _named(meta.get("dataset"), f"{data}: _meta.dataset")
    check_encoder(encoder, img_emb or query_emb, img_emb or cand_emb)
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
    if "name" not in about:
        raise InputError(
            f"{data}: does not name the dataset that could be embedded: give --query-emb and "
            "--cand-emb (`pointer-rl embed` makes them), or --img-emb where one file embeds both"
        )
    try:
        dataset: Dataset = registry().create("dataset", about["name"], about.get("options", {}))
    except PointerRLError as error:
        raise InputError(
            f"{data}: its dataset cannot be opened to be embedded ({error}): put that right, or "
            "give --query-emb and --cand-emb"
        ) from error
    if part is not None:
        dataset = part.of(dataset, observer.activity)
    hasher = ExampleHasher(observer.say, observer.activity)
    inputs = meta.get(INPUTS)
    plugin = inputs.get("encoder_plugin") if isinstance(inputs, dict) else None
    said = _named(plugin, f"{data}: _meta.inputs.encoder_plugin")
    recorded = EncoderInfo(fingerprint=None, name=said.get("name"), options=said.get("options", {}))
    own = encoder_of(start)
    named = named_queries(data, dataset.queries)
    asked = about.get("num_queries")
    if isinstance(asked, int) and len(named) < asked:
        # All that were asked for are likely to be embedded, and can be compared with the data.
        first = dataset.queries[:asked]
        if {each.id for each in named} <= {each.id for each in first}:
            named = first
    vectors, embedded_pool, _ = dataset_embeddings(
        dataset,
        named,
        hasher,
        observer,
        query_emb=query_emb,
        cand_emb=cand_emb,
        encoder=UNKNOWN if encoder is None else encoder.as_encoder,
        recorded=recorded if own.name is None else own,
        device=device,
        wanted_by=str(data),
    )
    return embedded(named, hasher, vectors, embedded_pool, about)


def _named(value: Any, where: str) -> dict[str, Any]:
    """What `_meta` says of a plugin, with its name and options checked; {} if it is no object."""
    about = value if isinstance(value, dict) else {}
    if not isinstance(about.get("name", ""), str) or not isinstance(about.get("options", {}), dict):
        raise InputError(f"{where} has no proper name and options")
    return about


def named_queries(
    data: Path | None, queries: Sequence[Example], more: Iterable[Example] = ()
) -> Sequence[Example]:
    """Those of the queries that a file of data names or that are in `more`, in their order.

    Raises InputError if there is none.
    """
    wanted = {each.id for each in more}
    if data is not None:
        wanted |= {key for key, _ in stream_records(data)}
    found = [each for each in queries if each.id in wanted]
    if not found:
        raise InputError(f"{data}: none of its queries is in its dataset")
    return queries if len(found) == len(queries) else found


def embedded(
    queries: Sequence[Example],
    hasher: ExampleHasher,
    vectors: Tensor,
    pool: Pool,
    about: Mapping[str, Any],
) -> Source:
    """A source from a dataset's embeddings: queries [Q, d] and the pool."""

    def of(examples: Sequence[Example], vectors: Tensor) -> Embeddings:
        ids = tuple(each.id for each in examples)
        return Embeddings(ids, vectors, pool.encoder, tuple(hasher(examples).hashes))

    return Source(
        of(queries, vectors),
        of(pool.examples, pool.embeddings),
        EncoderInfo.of(pool),
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
