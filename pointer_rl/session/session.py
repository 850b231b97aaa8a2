"""A session: a run's plugins, dataset, embeddings, policy, cached backend and judge.

Plugins, their options and the dataset are checked at once, everything expensive when it is first
asked for; the backend comes last. Pickling a session keeps its options and the dataset: another
process loads what else it needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from pointer_rl.datasets.embeddings import digest_vectors
from pointer_rl.datasets.identity import ExampleHasher, digest_ids
from pointer_rl.datasets.parts import Part
from pointer_rl.devices import default_window
from pointer_rl.errors import InputError
from pointer_rl.records.provenance import (
    CHOICES,
    INPUTS,
    PLUGINS,
    choices_of,
)
from pointer_rl.records.records import check_query_id
from pointer_rl.records.shards import window_of
from pointer_rl.registry import ConfiguredEntry, Entry, code_of, registry
from pointer_rl.selectors import SelectorPolicy
from pointer_rl.selectors.bundle import UNKNOWN, EncoderInfo
from pointer_rl.session.cache import ResponseCache
from pointer_rl.session.caching import Cache, CachedBackend
from pointer_rl.session.judge import Judge
from pointer_rl.session.observer import Observer
from pointer_rl.session.resolve import NoPolicy, dataset_embeddings, make_policy
from pointer_rl.types import (
    Dataset,
    Decoding,
    Example,
    Executor,
    LoadingExecutor,
    Metric,
    Pool,
    VQABackend,
)


@dataclass(frozen=True)
class PluginRef:
    """A plugin by its registered name, with values for its options."""

    name: str
    options: Mapping[str, object] = field(default_factory=dict)

    def configure(self, kind: str) -> ConfiguredEntry:
        """The plugin with its options checked. Raises PointerRLError if either is wrong."""
        return registry().configure(kind, self.name, self.options)

    @property
    def as_encoder(self) -> EncoderInfo:
        """The encoder of that name."""
        return EncoderInfo(fingerprint=None, name=self.name, options=self.options)


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """What decides a trial, and where embeddings come from."""

    dataset: PluginRef
    backend: PluginRef
    prompt: PluginRef
    metric: PluginRef
    decoding: Decoding = Decoding()
    query_emb: Path | None = None
    """Embeddings of the queries; by default an encoder makes them on first use."""
    cand_emb: Path | None = None
    """Embeddings of the pool, with the same default."""
    encoder: PluginRef | None = None
    """What embeds; by default the encoder of a bundle that is used, or the dataset's companion."""
    part: Part | None = None
    """Only this side of the dataset, cut in two by image."""
    limit: int | None = None
    """Only the first so many queries."""
    device: str | None = None
    """Device of the backend, if it has that option, and of the selector."""
    cache: Path | None = None
    """Response cache; None: responses are not kept."""
    executor: PluginRef = PluginRef("in-process")
    """What runs the windows of queries, and the backend."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit is {self.limit}: at least one query")
        check_encoder(self.encoder, self.query_emb, self.cand_emb)


def device_window(backend: PluginRef) -> int:
    """Queries that a backend should be asked together, on the device that it has here."""
    has_device = registry().find("backend", backend.name).has_option("device")
    device = backend.options.get("device") if has_device else None
    return default_window(str(device or "auto"))


def check_encoder(encoder: PluginRef | None, query_emb: Path | None, cand_emb: Path | None) -> None:
    """Raise InputError for an encoder that has nothing to embed because there are files."""
    if encoder is not None and query_emb is not None and cand_emb is not None:
        raise InputError(
            f"{query_emb} and {cand_emb} have all embeddings: give them, or --encoder "
            f"{encoder.name}, not both"
        )


class Session:
    """What a run works with, loaded when it is needed.

    Raises PointerRLError for a plugin or option that does not exist, for a backend without its
    model, and for a dataset whose query ids cannot be keys of RL data or are not unique.
    """

    def __init__(
        self,
        options: SessionOptions,
        observer: Observer = Observer(),
        earlier: Mapping[str, Any] = MappingProxyType({}),
        dataset: Dataset | None = None,
    ) -> None:
        """earlier: `_meta` of the run that is continued; what its machine decided holds again.

        dataset: the dataset that the options name, if it is open already.
        """
        self.options = options
        self.observer = observer
        self.dataset_plugin = options.dataset.configure("dataset")
        self._prompt_plugin = options.prompt.configure("prompt")
        self._metric_plugin = options.metric.configure("metric")
        if options.encoder is not None:
            options.encoder.configure("encoder")
        self._executor_plugin = options.executor.configure("executor")
        self.dataset: Dataset = dataset or self._open_dataset()
        limit, queries = options.limit, self.dataset.queries
        self.queries: Sequence[Example] = queries if limit is None else queries[:limit]
        self.metric: Metric = self._metric_plugin.create()
        self._not_compared: list[str] = []
        self.hasher = ExampleHasher(observer.say, observer.activity)
        self._window = window_of(earlier) if "window" in earlier else None
        self._backend = self._complete_backend()
        self._backend_plugin = self._backend.configure("backend")
        self.chosen: dict[str, Any] = {
            name: value
            for name, value in choices_of(earlier).items()
            if name not in self._backend.options and self._backend_plugin.entry.has_option(name)
        }
        """Options of the backend that it chose itself, now (once it is loaded) or when the run
        began. A copy of the session uses the same ones."""

    def __reduce__(self) -> tuple[type[Session], tuple[Any, ...]]:
        return Session, (self.options, Observer(), {CHOICES: self.chosen}, self.dataset)

    def _open_dataset(self) -> Dataset:
        observer, part = self.observer, self.options.part
        with observer.activity(f"opening the dataset {self.options.dataset.name}"):
            opened: Dataset = self.dataset_plugin.create()
        _check_ids(opened)
        return opened if part is None else part.of(opened, observer.activity)

    def _complete_backend(self) -> PluginRef:
        """With the model of the dataset's companions if the backend needs one and none is named."""
        name, options = self.options.backend.name, dict(self.options.backend.options)
        entry = registry().find("backend", name)
        if self.options.device is not None and entry.has_option("device"):
            options.setdefault("device", self.options.device)
        alias = entry.aliases.get(name, {})
        if entry.requires("model") and "model" not in options and "model" not in alias:
            if self.dataset.companions is None:
                raise InputError(
                    f"backend {name} needs a model for the dataset {self.dataset.name}: "
                    "give --backend-opt model=FOLDER_OR_HUB_ID"
                )
            options["model"] = self.dataset.companions.model
        return PluginRef(name, options)

    @property
    def window(self) -> int:
        """Queries asked together if the user does not say: as the run began, or by the device."""
        if self._window is not None:
            return self._window
        if isinstance(self.executor, LoadingExecutor):  # its workers may have other devices
            return getattr(self._loaded, "window", default_window("cpu"))
        return device_window(self._backend)

    # --- embeddings and policies ---

    def embeddings(
        self,
        queries: Sequence[Example],
        recorded: EncoderInfo = UNKNOWN,
        wanted_by: str = "",
    ) -> tuple[Tensor, Pool]:
        """Embeddings [N, d] of some of the dataset's queries, and the pool with its own [K, d].

        `recorded` is the encoder of the bundle that will use them, for want of files and of
        `options.encoder`; `wanted_by` names what needs them, should there be none.
        """
        given, options = self.options.encoder, self.options
        vectors, pool, self._not_compared = dataset_embeddings(
            self.dataset,
            queries,
            self.hasher,
            self.observer,
            query_emb=options.query_emb,
            cand_emb=options.cand_emb,
            encoder=UNKNOWN if given is None else given.as_encoder,
            recorded=recorded,
            device=options.device,
            wanted_by=wanted_by,
        )
        return vectors, pool

    def encoded(self, queries: Sequence[Example], encoder: EncoderInfo) -> tuple[Tensor, Pool]:
        """The same by a named encoder, whatever embeddings were given; of any queries."""
        vectors, pool, _ = dataset_embeddings(
            self.dataset,
            queries,
            self.hasher,
            self.observer,
            encoder=encoder,
            device=self.options.device,
        )
        return vectors, pool

    def policy(self, checkpoint: Path | None, pool: Pool, seed: int) -> SelectorPolicy | NoPolicy:
        """The selector of a checkpoint; for a dataset with companions, a seeded untrained one."""
        return make_policy(checkpoint, self.dataset, pool, seed, self.options.device)

    # --- trials ---

    @cached_property
    def cache(self) -> Cache | None:
        """The response cache; a worker process puts something else in its place."""
        return None if self.options.cache is None else ResponseCache(self.options.cache)

    @cached_property
    def executor(self) -> Executor:
        """What runs windows; a worker process puts something else in its place."""
        made: Executor = self._executor_plugin.create()
        return made

    @cached_property
    def backend(self) -> CachedBackend:
        """The backend behind the response cache, loaded when first asked for."""
        cache = self.cache  # first: a folder that cannot be written is found before a model loads
        return CachedBackend(self._loaded, cache)

    @cached_property
    def _loaded(self) -> VQABackend:
        executor, name = self.executor, self._backend.name
        options = {**self._backend.options, **self.chosen}
        with self.observer.activity(f"loading {name}"):
            made: VQABackend = (
                executor.load(name, options)
                if isinstance(executor, LoadingExecutor)
                else registry().create("backend", name, options)
            )
        self.chosen |= getattr(made, "chosen", {})
        return made

    def judge(self, *, score_answers: bool = False) -> Judge:
        """How trials become outcomes. Loads the backend."""
        return Judge(
            prompt=self._prompt_plugin.create(),
            backend=self.backend,
            metric=self.metric,
            decoding=self.options.decoding,
            score_answers=score_answers,
        )

    def check_answers(self, queries: Sequence[Example]) -> None:
        """Raise InputError if none of the queries can be judged (if some cannot, they fail)."""
        refusal = None
        for query in queries:
            try:
                self.metric.judge("", query.answers)
            except InputError as error:
                refusal = refusal or InputError(f"query {query.id}, like all others: {error}")
            else:
                return
        if refusal is not None:
            raise refusal

    # --- provenance ---

    def describe(
        self,
        queries: Sequence[Example],
        *entries: Entry,
        embedded: tuple[Tensor, Pool] | None = None,
    ) -> dict[str, Any]:
        """Versions, inputs, dataset, backend, prompt, metric and decoding, for `_meta`.

        `entries` are what the run uses besides, and `embedded` the embeddings of the queries and of
        the pool; if an encoder made them, its name and options are there too, by which `train`
        embeds again.
        """
        fingerprint = self.backend.fingerprint
        own = (self.dataset_plugin, self._backend_plugin, self._prompt_plugin, self._metric_plugin)
        plugin = None if embedded is None else embedded[1].encoder_plugin
        encoders = [] if plugin is None else [registry().find("encoder", plugin["name"])]
        code = code_of([*(each.entry for each in own), *encoders, *entries])
        return {
            "pointer_rl_version": version("pointer-rl"),
            **({PLUGINS: code} if code else {}),
            "dataset": self.describe_dataset(queries),
            INPUTS: self._describe_inputs(queries, embedded),
            "backend": {**self._describe_backend(), "fingerprint": fingerprint},
            **({CHOICES: dict(self.chosen)} if self.chosen else {}),
            "prompt": self._prompt_plugin.describe(),
            "metric": {**self._metric_plugin.describe(), "version": self.metric.version},
            "decoding": asdict(self.options.decoding),
        }

    def _describe_inputs(
        self, queries: Sequence[Example], embedded: tuple[Tensor, Pool] | None
    ) -> dict[str, Any]:
        sides = {"queries": self.hasher(queries), "pool": self.hasher(self.dataset.pool)}
        inputs: dict[str, Any] = {
            f"{side}_content_sha256": each.digest for side, each in sides.items()
        }
        if embedded is not None:
            vectors, pool = embedded
            inputs["encoder"] = pool.encoder
            if self.options.query_emb is None or self.options.cand_emb is None:
                inputs["encoder_plugin"] = pool.encoder_plugin
            # Of what is embedded here the last digits depend on the machine.
            if self.options.query_emb is not None:
                inputs["query_embeddings_sha256"] = digest_vectors(vectors)
            if self.options.cand_emb is not None:
                inputs["pool_embeddings_sha256"] = digest_vectors(pool.embeddings)
        if self._not_compared:
            inputs["not_compared"] = self._not_compared
        unreadable = {side: len(each.unreadable) for side, each in sides.items()}
        return {**inputs, "unreadable_images": unreadable} if any(unreadable.values()) else inputs

    def describe_dataset(self, queries: Sequence[Example]) -> dict[str, Any]:
        """The part of `describe` on the dataset. `title` is what it is called in words."""
        title = self.dataset.name
        return {
            **self.dataset_plugin.describe(),
            **({} if title == self.dataset_plugin.entry.name else {"title": title}),
            **({"part": asdict(self.options.part)} if self.options.part else {}),
            "num_queries": len(queries),
            "pool_size": len(self.dataset.pool),
            "pool_sha256": digest_ids(each.id for each in self.dataset.pool),
            "shared_pool": self.dataset.pool is self.dataset.queries,
        }

    def _describe_backend(self) -> dict[str, Any]:
        """A companion's folder differs between machines; the same run must give the same bytes."""
        described = self._backend_plugin.describe()
        companions = self.dataset.companions
        if companions is not None and described["options"].get("model") == companions.model:
            described["options"]["model"] = f"companion of {self.dataset.name}"
        return described


def _check_ids(dataset: Dataset) -> None:
    seen: set[str] = set()
    for query in dataset.queries:
        try:
            check_query_id(query.id)
        except InputError as error:
            raise InputError(f"dataset {dataset.name}: {error}") from error
        if query.id in seen:
            raise InputError(f"dataset {dataset.name}: two queries have the id {query.id}")
        seen.add(query.id)
