"""The interface of selectors: models that score which demonstration comes next.

A third party's selector inherits `Selector` and registers a factory through the hook
`pointer_rl_register_selectors`. Decoding, training, checkpoints and bundles use nothing else of it.

Shapes: B queries, K pool rows, N hypotheses of a query (beams, samples, members of a group),
d embedding size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from pointer_rl.errors import InputError, PluginError
from pointer_rl.registry import registry


class EncodedPool(Protocol):
    """What a selector computes of a pool whatever the query is."""

    def of(self, rows: Tensor) -> Self:
        """Each query's own pool: the rows [B, M] of this pool of K rows, which all share."""
        ...


class State(Protocol):
    """Where each hypothesis stands. Immutable, because several decodings start from one state.

    A dimension N of size 1 stands for all hypotheses of a query.
    """

    def select(self, parents: Tensor) -> Self:
        """The state whose hypothesis n of query b is this one's hypothesis `parents[b, n]`."""
        ...


class Selector(nn.Module):
    """p(next row, or stop | query, pool, rows so far).

    Decoding, training and evaluation are loops over `step_logits`, `stop_logit` and `advance`; no
    other code computes a logit. Embeddings arrive checked: they have the size `config.d_model` and
    are finite.
    """

    name: str
    """The name that the selector is registered under. Checkpoints and bundles record it."""
    config: Any
    """An instance of the registered options class, which has a field `d_model`: the size of the
    embeddings. Checkpoints record it."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def seeded(cls, config: Any, seed: int) -> Self:
        """A new selector whose weights depend on the seed alone; the global random state stays."""
        with _seeded(seed):
            return cls(config)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights, in which embeddings must arrive."""
        floating = (each.dtype for each in self.parameters() if each.is_floating_point())
        return next(floating, torch.float32)

    def encode_pool(self, pool: Tensor) -> EncodedPool:
        """Encode a pool [K, d] that all queries share, or a pool of each query [B, K, d]."""
        raise NotImplementedError

    def encode(self, query: Tensor, pool: Any, allowed: Tensor | None = None) -> State:
        """The state before the first choice, with one hypothesis per query.

        `query` is [B, d], `pool` is encoded, and `allowed` [B, K] bool says which rows may be
        chosen (None: all of them).
        """
        raise NotImplementedError

    def step_logits(self, state: Any) -> Tensor:
        """[B, N, K] logits of the next row; -inf for rows not allowed or already chosen."""
        raise NotImplementedError

    def stop_logit(self, state: Any) -> Tensor | None:
        """[B, N] logits of choosing no further row; None, at every step, if it never stops."""
        return None

    @property
    def can_stop(self) -> bool:
        """Whether `stop_logit` returns logits. Override it if that depends on the configuration."""
        return type(self).stop_logit is not Selector.stop_logit

    def advance(self, state: Any, rows: Tensor) -> State:
        """The state after hypothesis n of query b has chosen `rows[b, n]`.

        A hypothesis that has stopped is advanced with row 0, and what it computes is discarded.
        """
        raise NotImplementedError


def take_hypotheses(values: Tensor, parents: Tensor) -> Tensor:
    """For `State.select`: values [B, N, X] of hypotheses `parents` [B, M], as [B, M, X].

    Values that all hypotheses share, [B, 1, X], stay as they are.
    """
    if values.shape[1] == 1:
        return values
    return values.gather(1, parents.unsqueeze(-1).expand(-1, -1, values.shape[2]))


def create_selector(name: str, options: Mapping[str, object], seed: int = 0) -> Selector:
    """A new selector of a registered kind, whose weights depend on the seed alone.

    `options` include `d_model`. Raises InputError for options that do not fit, and PluginError for
    an unknown name or a factory that makes something else.
    """
    configured = registry().configure("selector", name, options)
    with _seeded(seed):
        selector = configured.create()
    if not isinstance(selector, Selector):
        raise PluginError(
            f"selector {name}: its factory returns a {type(selector).__name__}, which does not "
            "inherit pointer_rl.selectors.Selector"
        )
    own = getattr(selector, "name", None)
    if own != configured.entry.name:
        raise PluginError(
            f"selector {name}: its class has name = {own!r}, and checkpoints could not be loaded: "
            f"set name = {configured.entry.name!r}"
        )
    return selector


def initial_state(
    selector: Selector, query: Tensor, pool: Tensor, allowed: Tensor | None = None
) -> State:
    """Check and encode embeddings: the state before the first choice.

    `query` is [B, d]; `pool` [K, d] or [B, K, d]; `allowed` [B, K] bool (None: every row).
    Raises InputError for embeddings of another size or with values that are not finite.
    """
    check_embeddings(query, selector.config.d_model, "query")
    check_embeddings(pool, selector.config.d_model, "pool")
    return selector.encode(query, selector.encode_pool(pool), allowed)


def check_embeddings(embeddings: Tensor, d_model: int, name: str) -> None:
    """Raise InputError for embeddings of another size or with values that are not finite."""
    if embeddings.shape[-1] != d_model:
        raise InputError(
            f"{name} embeddings have {embeddings.shape[-1]} values a row, the selector takes "
            f"{d_model}: encode with the encoder that it was trained with"
        )
    if embeddings.numel() and not torch.stack(embeddings.aminmax()).isfinite().all():
        where = (~embeddings.isfinite()).nonzero()[0, :-1].tolist()
        raise InputError(
            f"{name} embeddings, row {', '.join(map(str, where))}: "
            "not all values are finite; encode it again"
        )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
