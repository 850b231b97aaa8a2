"""Tests of a selector: `pointer_rl.selectors.Selector`.

Shapes: B queries, K pool rows, N hypotheses of a query, S shots, d embedding size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pointer_rl.registry import ConfiguredEntry
from pointer_rl.selectors import Selector, decoding, load_selector, save_selector
from pointer_rl.selectors.selector import create_selector
from pointer_rl.testing.plugin import BatchTests

_BATCH, _POOL, _SHOTS = 3, 5, 2


class SelectorTests(BatchTests[Selector]):
    """Builds an untrained selector, and lets it choose for three queries from a pool of five."""

    kind = "selector"
    item = "query"
    how_to_repeat = (
        "draw nothing in evaluation mode, and initialise weights from torch's generator alone"
    )
    how_to_separate = "keep queries independent: no batch normalisation, for example"
    d_model: int = 8
    """Size of the embeddings."""
    tolerance: float = 1e-4
    """Largest difference of a logit or log-probability between two ways to compute it."""

    def configure(self, **changes: object) -> ConfiguredEntry:
        """The registered selector for embeddings of size `d_model`."""
        return super().configure(**{"d_model": self.d_model, **self.options, **changes})

    def make(self, **changes: object) -> Selector:
        """Build the selector, in evaluation mode; its weights depend on a seed."""
        options = {"d_model": self.d_model, **self.options, **changes}
        return create_selector(self.name, options, seed=0).eval()

    @property
    def inputs(self) -> Sequence[int]:
        return range(_BATCH)

    def ask(self, made: Selector, inputs: Sequence[int]) -> Sequence[Any]:
        """The logits of each query's first step."""
        return list(self.logits(made, self.state(made, queries=inputs)))

    def same(self, one: Any, other: Any) -> bool:
        """Whether two tensors are equal."""
        return torch.equal(one, other)

    def close(self, one: Any, other: Any) -> bool:
        """Whether two tensors agree within the tolerance."""
        return one.shape == other.shape and torch.allclose(
            one, other, rtol=self.tolerance, atol=self.tolerance
        )

    def embeddings(self, *shape: int, seed: int) -> Tensor:
        """Random embeddings [*shape, d]."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*shape, self.d_model, generator=generator)

    def state(
        self,
        selector: Selector | None = None,
        allowed: Tensor | None = None,
        queries: Sequence[int] = range(_BATCH),
    ) -> Any:
        """The state of `made`, or another selector, before the first choice."""
        selector = selector or self.made
        pool = selector.encode_pool(self.embeddings(_POOL, seed=1))
        return selector.encode(self.embeddings(_BATCH, seed=0)[list(queries)], pool, allowed)

    @torch.no_grad()
    def logits(self, selector: Selector, state: Any) -> Tensor:
        """The logits of a state's rows, and last that of the stop if it has one."""
        rows_BNK, stop_BN = selector.step_logits(state), selector.stop_logit(state)
        if stop_BN is None:
            return rows_BNK
        assert stop_BN.shape == rows_BNK.shape[:2] and stop_BN.isfinite().all(), (
            f"stop_logit is not a finite tensor of shape {list(rows_BNK.shape[:2])}: return a "
            "logit for each hypothesis of each query"
        )
        return torch.cat([rows_BNK, stop_BN[..., None]], -1)

    def test_scores_the_allowed_rows(self) -> None:
        """Logits are [B, 1, K], finite for allowed rows and -inf for others."""
        allowed_BK = torch.arange(_POOL).expand(_BATCH, -1) != torch.arange(_BATCH)[:, None]
        own_BKd = self.embeddings(_BATCH, _POOL, seed=2)
        own = self.made.encode(
            self.embeddings(_BATCH, seed=0), self.made.encode_pool(own_BKd), allowed_BK
        )
        for state in (self.state(allowed=allowed_BK), own):
            _check_logits(self.made.step_logits(state), allowed_BK[:, None])
        everything = torch.ones(_BATCH, 1, _POOL, dtype=torch.bool)
        _check_logits(self.made.step_logits(self.state()), everything)

    def test_offers_no_row_twice(self) -> None:
        """After `advance` with rows [B, N], logits are [B, N, K] and the chosen rows -inf."""
        rows_BN = _rows(0, 1, 2, 4)
        logits_BNK = self.made.step_logits(self.made.advance(self.state(), rows_BN))
        _check_logits(logits_BNK, torch.arange(_POOL) != rows_BN[..., None])

    def test_may_stop_at_every_step_or_never(self) -> None:
        """`stop_logit` is None at every step, or at none."""
        first = self.state()
        later = self.made.advance(first, _rows(0, 1))
        _ = self.logits(self.made, later)
        assert (self.made.stop_logit(first) is None) == (self.made.stop_logit(later) is None), (
            "stop_logit is None at one step and a tensor at another: give a tensor at each, or None"
        )
        assert self.made.can_stop == (self.made.stop_logit(first) is not None), (
            f"can_stop is {self.made.can_stop}, and stop_logit says otherwise: override can_stop"
        )

    def test_leaves_states_as_they_are(self) -> None:
        """`advance` and `select` return new states, because decodings share the old one."""
        state = self.state()
        before = self.logits(self.made, state)
        advanced = self.made.advance(state, _rows(0, 1))
        after = self.logits(self.made, advanced)
        self.made.advance(advanced.select(_rows(1, 0)), _rows(2, 2))
        for old, logits in ((state, before), (advanced, after)):
            assert self.logits(self.made, old).equal(logits), (
                "a state gives other logits after advance or select: return a new state, and "
                "change no tensor in place"
            )

    def test_selects_hypotheses(self) -> None:
        """Hypothesis n of `state.select(parents)` is hypothesis `parents[b, n]` of the state."""
        state = self.made.advance(self.state(), _rows(0, 1, 2))
        parents_BM = torch.tensor([[2, 0], [1, 1], [0, 2]])
        logits = self.logits(self.made, state)
        expected = torch.stack(
            [own[parents] for own, parents in zip(logits, parents_BM, strict=True)]
        )
        assert self.close(self.logits(self.made, state.select(parents_BM)), expected), (
            "state.select(parents) does not give the hypotheses that parents name: index each "
            "tensor of the state by parents [B, M]"
        )

    def test_gives_each_query_a_pool_of_its_own(self) -> None:
        """`encode_pool(pool).of(rows)` is a pool for each query, its rows in that order."""
        rows_BK = torch.stack([torch.arange(_POOL).roll(query + 1) for query in range(_BATCH)])
        pools = self.made.encode_pool(self.embeddings(_POOL, seed=1)).of(rows_BK)
        logits_BNK = self.made.step_logits(self.made.encode(self.embeddings(_BATCH, seed=0), pools))
        expected = self.made.step_logits(self.state()).gather(-1, rows_BK[:, None])
        assert self.close(logits_BNK, expected), (
            "encode_pool(pool).of(rows) does not score the rows in that order: index each tensor "
            "of the encoded pool by rows [B, M]"
        )

    @torch.no_grad()
    def test_decodes_consistently(self) -> None:
        """Beam search and sampling report the log-probability of what they choose."""
        rngs = [np.random.default_rng(query) for query in range(_BATCH)]
        state = self.state()
        found = decoding.beam_search(self.made, state, shots=_SHOTS, width=4)
        drawn = decoding.sample(self.made, state, shots=_SHOTS, num_samples=8, rngs=rngs)
        for how, decoded in (("beam search", found), ("sampling", drawn)):
            recomputed = decoding.log_prob(self.made, state, decoded.rows)
            assert self.close(recomputed, decoded.logprobs), (
                f"{how} gives its pointers other log-probabilities than log_prob: let advance and "
                "select treat every hypothesis alike"
            )

    def test_passes_gradients_to_its_weights(self) -> None:
        """Log-probabilities are differentiable, with finite gradients."""
        selector = self.make()
        rows_BNS = torch.tensor([[[0, 1], [2, 3]]]).expand(_BATCH, -1, -1)
        logprobs_BN = decoding.log_prob(selector, self.state(selector), rows_BNS)
        assert logprobs_BN.requires_grad, (
            "its logits require no gradient, so it cannot be trained: compute them from its "
            "parameters, outside no_grad"
        )
        logprobs_BN.sum().backward()  # type: ignore[no-untyped-call]
        gradients = [each.grad for each in selector.parameters() if each.grad is not None]
        assert all(each.isfinite().all() for each in gradients), (
            "a gradient is NaN or infinite: check each division and square root"
        )
        assert any(each.abs().max() > 0 for each in gradients), "every gradient is 0"

    def test_survives_a_checkpoint(self) -> None:
        """A saved selector is loaded with its configuration and its weights."""
        with TemporaryDirectory() as folder:
            save_selector(folder, self.made)
            loaded = load_selector(folder)
        assert loaded.config == self.made.config, (
            f"saved with {self.made.config} it comes back with {loaded.config}: set self.config to "
            "the options that it was built from"
        )
        fix = "keep its state in parameters and buffers"
        self.compare(self.use(loaded), "saved and loaded", fix)


def _rows(*rows: int) -> Tensor:
    """The same row for each hypothesis of all queries [B, N]."""
    return torch.tensor(rows).expand(_BATCH, -1)


def _check_logits(logits_BNK: Tensor, offered_BNK: Tensor) -> None:
    """Fail unless logits are finite for offered rows and -inf for others."""
    assert isinstance(logits_BNK, Tensor) and logits_BNK.shape == offered_BNK.shape, (
        f"step_logits gave the shape {list(getattr(logits_BNK, 'shape', ()))}: return "
        f"{list(offered_BNK.shape)}, queries × hypotheses × rows"
    )
    assert logits_BNK[offered_BNK].isfinite().all(), (
        "a row that is allowed has a logit that is NaN or infinite"
    )
    assert (logits_BNK[~offered_BNK] == -math.inf).all(), (
        "a row that is not allowed or already chosen has a logit: make it -inf"
    )
