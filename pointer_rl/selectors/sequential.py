"""The sequential selector: what was chosen can turn the query to what is still missing.

It is the `pointer` selector with another history. Once the query token x has attended to the pool,
each chosen row c changes it, x ← x + M [x; c], with a two-layer perceptron M. Query vector and
logits follow from x as before. M's last layer is zero at first, so an untrained selector scores
every step alike. A static history cannot say "one of each kind", and the gated one, which mixes the
query with the chosen row, moves towards more of the same.

Attention is computed once per query, and a step costs O(H²) per hypothesis. (To attend to the pool
again after each row, with x changed before the attention, costs O(L·A·K·H) more and was no better.)

Shapes: B queries, K pool rows, N hypotheses of a query, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor, nn
from torch.nn.functional import gelu

from pointer_rl.selectors.options import SequentialConfig
from pointer_rl.selectors.pointer import PointerSelector, PointerState, linear_of_pair
from pointer_rl.selectors.selector import take_hypotheses


@dataclass(frozen=True, kw_only=True)
class SequentialState(PointerState):
    """Where each hypothesis stands."""

    x: Tensor
    """[B, N, H] the query token after attention and the rows chosen so far"""

    def select(self, parents: Tensor) -> Self:
        """The state whose hypothesis n of query b is this one's hypothesis `parents[b, n]`."""
        return replace(super().select(parents), x=take_hypotheses(self.x, parents))


class SequentialSelector(PointerSelector):
    """Scores rows by cosine after cross-attention and the rows chosen so far."""

    name = "sequential"
    config: SequentialConfig

    def __init__(self, config: SequentialConfig) -> None:
        super().__init__(config)
        hidden = config.hidden_dim
        assert hidden is not None
        self.history_in = nn.Linear(2 * hidden, 2 * hidden)
        self.history_out = nn.Linear(2 * hidden, hidden)
        nn.init.zeros_(self.history_out.weight)
        nn.init.zeros_(self.history_out.bias)

    def _first_state(self, candidates: Tensor, x_B1H: Tensor, blocked_B1K: Tensor) -> PointerState:
        first = super()._first_state(candidates, x_B1H, blocked_B1K)
        return SequentialState(**vars(first), x=x_B1H)

    def advance(self, state: PointerState, rows: Tensor) -> SequentialState:
        """The state after hypothesis n of query b has chosen `rows[b, n]`."""
        chosen = super().advance(state, rows)
        assert isinstance(chosen, SequentialState)
        change = gelu(linear_of_pair(self.history_in, chosen.x, chosen.candidates, rows))
        x_BNH = chosen.x + self.history_out(change)
        return replace(chosen, x=x_BNH, query=self._query_vector(x_BNH))
