"""Embeddings and policies: from the user's files, an encoder, or a dataset's companions.

Companions are never used for a dataset of the user's own.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pointer_rl.datasets.embed import describe_encoder, embed_examples, load_finished
from pointer_rl.datasets.embeddings import Embeddings, check_dims, load_embeddings, take_rows
from pointer_rl.datasets.identity import ExampleHasher
from pointer_rl.devices import resolve_device
from pointer_rl.errors import InputError
from pointer_rl.files import embeddings_folder
from pointer_rl.registry import ConfiguredEntry, Entry, registry
from pointer_rl.selectors import PointerConfig, PointerSelector, SelectorPolicy, load_selector
from pointer_rl.selectors.bundle import UNKNOWN, EncoderInfo, encoder_of
from pointer_rl.session.observer import Observer
from pointer_rl.types import NO_ROW, Dataset, Decoded, Encoder, Example, Pool

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Side:
    """The queries or the pool, and the file of their embeddings if there is one."""

    name: str
    path: Path | None
    whole: Sequence[Example]
    wanted: Sequence[Example]
    """Some of them."""

    @cached_property
    def file(self) -> Embeddings | None:
        return None if self.path is None else load_embeddings(self.path)

    def read(self, hasher: ExampleHasher) -> tuple[Tensor, bool]:
        """Their vectors in the file, and whether it says of which examples those were made."""
        assert self.file is not None
        rows = self.file.match(self.whole, str(self.path))
        if self.wanted is not self.whole:
            row_of = {each.id: row for each, row in zip(self.whole, rows, strict=True)}
            rows = [row_of[each.id] for each in self.wanted]
        contents = hasher(self.wanted)
        known = self.file.check_contents(rows, self.wanted, contents, str(self.path))
        return self.file.take(rows), known


def dataset_embeddings(
    dataset: Dataset,
    queries: Sequence[Example],
    hasher: ExampleHasher,
    observer: Observer = Observer(),
    *,
    query_emb: Path | None = None,
    cand_emb: Path | None = None,
    encoder: EncoderInfo = UNKNOWN,
    recorded: EncoderInfo = UNKNOWN,
    device: str | None = None,
    wanted_by: str = "",
) -> tuple[Tensor, Pool, list[str]]:
    """Embeddings of `queries` [N, d], and the dataset's pool with its own [K, d].

    They come from files or, for a side without one, from an encoder, through the cache folder: from
    `encoder`, else the one that the other side's file names, else the `recorded` one (of a bundle,
    or of a file of records) or, without any file, the dataset's companion. It runs on `device` if
    it has that option. Also returns "queries" or "pool" for files that do not say of which examples
    they were made.

    Raises InputError if a file is missing, is of other examples or another encoder, and if a side
    has neither a file nor an encoder; `wanted_by` says there what needs embeddings.
    """
    sides = (
        _Side("queries", query_emb, dataset.queries, queries),
        _Side("pool", cand_emb, dataset.pool, dataset.pool),
    )
    files = [(each, each.file) for each in sides if each.file is not None]
    made_by = {str(each.path): file.encoder for each, file in files if file.encoder is not None}
    about = EncoderInfo.of(files[-1][1]) if files else UNKNOWN
    maker: Encoder | None = None
    if len(files) < len(sides):
        companion = dataset.companions.encoder if dataset.companions and not files else None
        choices = (encoder, about, recorded, EncoderInfo(fingerprint=None, name=companion))
        chosen = next((each for each in choices if each.name is not None), None)
        if chosen is None:
            flags = {"--query-emb": query_emb, "--cand-emb": cand_emb}
            raise InputError(
                f"no embeddings of the dataset {dataset.name}{wanted_by and f' for {wanted_by}'}: "
                "give --encoder NAME, such as clip, or "
                f"{' and '.join(flag for flag, path in flags.items() if path is None)} "
                "(files that `pointer-rl embed` writes)"
            )
        configured = configure_encoder(chosen, device)
        with observer.activity(f"loading {chosen.name}"):
            maker = configured.create()
        about = EncoderInfo(fingerprint=maker.fingerprint, **describe_encoder(configured))
        made_by[f"the encoder {about.name}"] = maker.fingerprint
    if len(set(made_by.values())) > 1:
        raise InputError(
            f"{' and '.join(made_by)} come from different encoders "
            f"({' and '.join(made_by.values())}): embed both with the same"
        )
    read = {each.name: each.read(hasher) for each, _ in files}
    unknown = [name for name, (_, known) in read.items() if not known]
    for path in dict.fromkeys(each.path for each, _ in files if each.name in unknown):
        log.warning(
            "%s: does not say of which images, questions and answers it was made, so a change "
            "cannot be noticed; `pointer-rl embed` writes that",
            path,
        )
    vectors = {name: tensor for name, (tensor, _) in read.items()}
    if maker is not None:
        embed = partial(cached_embeddings, maker, about.plugin, hasher, observer)
        if cand_emb is None:
            vectors["pool"] = embed(dataset.pool)
        if query_emb is None:
            in_pool = None if cand_emb else _rows_in(dataset.pool, queries, hasher)
            if in_pool is not None:
                vectors["queries"] = take_rows(vectors["pool"], in_pool)
            else:  # in the dataset's order, in which other runs find them again
                order = sorted(range(len(queries)), key=lambda index: queries[index].row)
                ordered = embed([queries[index] for index in order])
                vectors["queries"] = take_rows(ordered, np.argsort(order).tolist())
    check_dims(vectors["queries"], vectors["pool"])
    fingerprint = next(iter(made_by.values()), None)
    pool = Pool(dataset.pool, vectors["pool"], fingerprint, about.plugin)
    return vectors["queries"], pool, unknown


def configure_encoder(encoder: EncoderInfo, device: str | None) -> ConfiguredEntry:
    """A named encoder, on `device` if it has that option and names no device itself."""
    assert encoder.name is not None
    options = dict(encoder.options)
    if device is not None and registry().find("encoder", encoder.name).has_option("device"):
        options.setdefault("device", device)
    return registry().configure("encoder", encoder.name, options)


def cached_embeddings(
    encoder: Encoder,
    plugin: Mapping[str, Any] | None,
    hasher: ExampleHasher,
    observer: Observer,
    examples: Sequence[Example],
) -> Tensor:
    """The encoder's vectors [N, d] of the examples, mapped from the cache folder.

    If they are not there, they are made and kept; an interruption loses at most a batch. `plugin`
    is what `describe_encoder` says.
    """
    contents = hasher(examples)
    identity = f"{encoder.fingerprint} {contents.digest}"
    path = embeddings_folder() / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.safetensors"
    if not path.exists():
        what = f"embedding {len(examples):,} examples with {encoder.fingerprint}"
        with observer.activity(what, len(examples)) as advance:
            embed_examples(
                examples,
                encoder,
                path,
                hasher=hasher,
                encoder_plugin=plugin,
                on_batch=advance,
                waiting=observer.say,
            )
    return load_finished(path, contents, encoder).vectors


def _rows_in(
    pool: Sequence[Example], queries: Sequence[Example], hasher: ExampleHasher
) -> list[int] | None:
    """The pool's row of each query, image and answers included; None if one is not there."""
    row_of = {content: row for row, content in enumerate(hasher(pool).hashes)}
    rows = [row_of.get(content, NO_ROW) for content in hasher(queries).hashes]
    return None if NO_ROW in rows else rows


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
