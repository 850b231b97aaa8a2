"""From names and files to a dataset, its embeddings, a policy, and a judge of trials.

What every command that asks a backend has in common. Things are checked from the cheapest to the
dearest: plugins and their options, the dataset, what fits together, and the backend last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from pointer_rl.datasets.embed import digest_ids
from pointer_rl.datasets.examples import KeyIndex, values
from pointer_rl.errors import InputError
from pointer_rl.registry import ConfiguredEntry, registry
from pointer_rl.selectors import SelectorPolicy
from pointer_rl.session.cache import ResponseCache
from pointer_rl.session.caching import StoredBackend
from pointer_rl.session.judge import Judge
from pointer_rl.session.resolve import NoPolicy, dataset_embeddings, encoder_embeddings, make_policy
from pointer_rl.types import Dataset, Decoding, Example, Metric, Pool

__all__ = ["Named", "TrialOptions", "Workbench"]


@dataclass(frozen=True)
class Named:
    """A plugin by its registered name, with values for its options."""

    name: str
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrialOptions:
    """All that decides what a trial is, and where its embeddings come from."""

    dataset: Named
    backend: Named
    prompt: Named
    metric: Named
    decoding: Decoding = Decoding()
    query_emb: Path | None = None
    """Embeddings of the queries; for a dataset with companions, made on first use."""
    cand_emb: Path | None = None
    """Embeddings of the pool; likewise."""
    limit: int | None = None
    """Only the first so many queries."""
    device: str | None = None
    """Of the backend, where it has that option, and of the selector."""
    store: Path | None = None
    """Where responses are kept, to be paid for once; None: nowhere."""


class Workbench:
    """The dataset and metric, loaded; all else when it is asked for.

    Raises PointerRLError for a plugin or option that does not exist, for a backend without its
    model, and for a dataset whose query ids cannot be keys of RL data or occur twice.
    """

    def __init__(self, options: TrialOptions) -> None:
        self.options = options
        self._dataset_plugin = _configure("dataset", options.dataset)
        self._prompt_plugin = _configure("prompt", options.prompt)
        self._metric_plugin = _configure("metric", options.metric)
        self.dataset: Dataset = self._dataset_plugin.create()
        _check_ids(self.dataset.queries, f"dataset {self.dataset.name}")
        limit = options.limit
        self.queries: Sequence[Example] = (
            self.dataset.queries if limit is None else self.dataset.queries[:limit]
        )
        self.metric: Metric = self._metric_plugin.create()
        self._backend_plugin = self._configure_backend()

    def _configure_backend(self) -> ConfiguredEntry:
        """With the companions' model where it needs one and the user names none."""
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
        return registry().configure("backend", name, options)

    def embeddings(self, queries: Sequence[Example]) -> tuple[Tensor, Pool]:
        """Of queries [N, d] (some of the dataset's), and the pool with its own [K, d]."""
        return dataset_embeddings(
            self.dataset,
            self._dataset_plugin,
            queries,
            self.options.query_emb,
            self.options.cand_emb,
        )

    def encoded(
        self, queries: Sequence[Example], encoder: str, options: Mapping[str, object]
    ) -> tuple[Tensor, Pool]:
        """Likewise by the encoder of that name, whatever files were given."""
        options = dict(options)
        if self.options.device is not None and registry().find("encoder", encoder).has_option(
            "device"
        ):
            options.setdefault("device", self.options.device)
        configured = registry().configure("encoder", encoder, options)
        return encoder_embeddings(self.dataset, self._dataset_plugin, queries, configured)

    def policy(self, checkpoint: Path | None, dim: int, seed: int) -> SelectorPolicy | NoPolicy:
        """The selector of a checkpoint; for a dataset with companions, a seeded untrained one."""
        return make_policy(checkpoint, self.dataset, dim, seed, self.options.device)

    @cached_property
    def backend(self) -> StoredBackend:
        """The backend behind the store of responses. Loads it when first asked for."""
        # First the store: a folder that cannot be written is found before a model is loaded.
        store = None if self.options.store is None else ResponseCache(self.options.store)
        return StoredBackend(self._backend_plugin.create(), store)

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
        """Raise InputError when not one of the queries can be judged (some: their trials fail)."""
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

    def describe(self, queries: Sequence[Example], judge: Judge) -> dict[str, Any]:
        """Provenance, for `_meta`: versions, dataset, backend, prompt, metric, decoding."""
        return {
            "pointer_rl_version": version("pointer-rl"),
            "dataset": self.describe_dataset(queries),
            "backend": {**self._describe_backend(), "fingerprint": judge.backend.fingerprint},
            "prompt": self._prompt_plugin.describe(),
            "metric": {**self._metric_plugin.describe(), "version": self.metric.version},
            "decoding": asdict(self.options.decoding),
        }

    def describe_dataset(self, queries: Sequence[Example]) -> dict[str, Any]:
        """The dataset's part of it."""
        return {
            **self._dataset_plugin.describe(),
            "num_queries": len(queries),
            "pool_size": len(self.dataset.pool),
            "pool_sha256": digest_ids(values(self.dataset.pool, "id")),
            "shared_pool": self.dataset.pool is self.dataset.queries,
        }

    def _describe_backend(self) -> dict[str, Any]:
        """A companion's folder differs between machines; the same run must give the same bytes."""
        described = self._backend_plugin.describe()
        companions = self.dataset.companions
        if companions is not None and described["options"].get("model") == companions.model:
            described["options"]["model"] = f"companion of {self.dataset.name}"
        return described


def _configure(kind: str, named: Named) -> ConfiguredEntry:
    return registry().configure(kind, named.name, named.options)


def _check_ids(examples: Sequence[Example], where: str) -> None:
    def checked() -> Iterator[str]:
        for id in values(examples, "id"):
            if not id or id.startswith("_"):
                raise InputError(
                    f"{where}: the query id {id!r} cannot be a key of RL data, where keys that "
                    "begin with _ are no queries: give it another"
                )
            yield id

    repeated = KeyIndex(checked(), lambda row: examples[row].id).repeated()
    if repeated is not None:
        raise InputError(f"{where}: two queries have the id {examples[repeated[0]].id}")
