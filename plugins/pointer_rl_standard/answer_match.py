"""The arm `answer-match`: rows ranked by whether they have the query's answer; it asks no VLM.

The labels of a training query are the pool rows whose answer one of its annotators gave. A linear
bi-encoder learns to rank them above all other rows that the query may be shown:

    s_ij = cos(A q_i, B c_j) / τ      loss_i = log Σ_{j allowed} exp s_ij - log Σ_{j label} exp s_ij

q_i and c_j are the embeddings of query and row in which a retriever would compare. A and B start as
the same orthogonal matrix, so that the untrained arm is that retriever (up to the reduction to
`WIDTH` dimensions).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import normalize

from pointer_rl.errors import InputError
from pointer_rl.evaluate.arms import Arm, Pointers, Setting, Training
from pointer_rl.session.similarity import Space
from pointer_rl.types import Example, Pool

WIDTH = 256
"""Most dimensions that are compared."""
TEMPERATURE = 0.05
STEPS = 500
BATCH = 128
ROWS = 4_096
"""Most rows that a step ranks, so that a large pool costs no more. Of a larger one they are drawn
anew at each step, with a label of every query among them."""
LEARNING_RATE = 1e-3
"""Of Adam; it falls to 0."""


class AnswerMatchArm(Arm):
    """The rows that a bi-encoder ranks best, the best one last. It asks no model."""

    def __init__(self) -> None:
        self._trained: tuple[Training, Tensor, Tensor] | None = None

    def choose(self, setting: Setting) -> Pointers:
        """Train once for all numbers of shots. Raises InputError if no query has a label."""
        queries, pool = setting.nearest.queries, setting.nearest.pool
        if self._trained is None or self._trained[0] is not setting.training:
            self._trained = (setting.training, *train(setting.training, pool.embeddings))
        _, of_query, of_row = self._trained
        learned = Space(queries @ of_query.T, Pool(pool.examples, pool.embeddings @ of_row.T))
        return setting.generate("answer-match", "retrieval", 1, learned)


def train(training: Training, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The matrices A and B [w, d], for the pool's embeddings [K, d]; the same ones every time."""
    labels = Labels(training)
    labelled = [row for row, query in enumerate(training.queries) if labels.has_any(query)]
    if not labelled:
        raise InputError("no training query has an answer of a row that it may be shown")
    of_queries, of_rows = (normalize(each, dim=-1) for each in (training.embeddings, rows))
    generator = torch.Generator().manual_seed(0)
    dim = rows.shape[1]
    start = torch.nn.init.orthogonal_(torch.empty(min(dim, WIDTH), dim), generator=generator)
    matrices = [start.clone().requires_grad_(), start.clone().requires_grad_()]
    optimizer = torch.optim.Adam(matrices, LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    order: list[int] = []
    for _ in range(STEPS):
        if not order:
            order = torch.randperm(len(labelled), generator=generator).tolist()
        batch, order = [labelled[each] for each in order[:BATCH]], order[BATCH:]
        queries = [training.queries[row] for row in batch]
        allowed_BK = training.allowed.mask(queries)
        positive_BK = labels.of(queries)
        ranked = _ranked_rows(positive_BK & allowed_BK, generator)
        queries_Bw, rows_Kw = (
            normalize(each @ matrix.T, dim=-1)
            for each, matrix in zip((of_queries[batch], of_rows[ranked]), matrices, strict=True)
        )
        scores_BK = queries_Bw @ rows_Kw.T / TEMPERATURE
        scores_BK = scores_BK.masked_fill(~allowed_BK[:, ranked], -math.inf)
        loss = multi_positive_loss(scores_BK, positive_BK[:, ranked])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return matrices[0].detach(), matrices[1].detach()


def _ranked_rows(label_BK: Tensor, generator: torch.Generator) -> Tensor | slice:
    """The rows that a step ranks: all of a small pool."""
    if label_BK.shape[1] <= ROWS:
        return slice(None)
    drawn = torch.randperm(label_BK.shape[1], generator=generator)
    # The first label in the drawn order is a random one.
    one_each = drawn[label_BK[:, drawn].int().argmax(dim=1)]
    return torch.tensor(sorted({*drawn[:ROWS].tolist(), *one_each.tolist()}))


def multi_positive_loss(scores_BK: Tensor, positive_BK: Tensor) -> Tensor:
    """Mean of -log of the softmax over a query's rows, summed over its positive ones.

    A row that may not be shown has the score -inf; one positive row has another.
    """
    positive = scores_BK.masked_fill(~positive_BK, -math.inf)
    return (scores_BK.logsumexp(1) - positive.logsumexp(1)).mean()


class Labels:
    """The pool rows whose answer is among those of a query's annotators, as the metric has them."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self._normalise = cache(training.metric.normalise)
        self._rows: dict[str, list[int]] = {}
        for row, example in enumerate(training.pool):
            self._rows.setdefault(self._normalise(example.answer), []).append(row)

    def has_any(self, query: Example) -> bool:
        """Whether there is such a row, among those that the query may be shown."""
        return not self._matching(query) <= set(self._training.allowed.excluded(query))

    def of(self, queries: Sequence[Example]) -> Tensor:
        """[B, K] bool: also rows that may not be shown."""
        found = torch.zeros(len(queries), len(self._training.pool), dtype=torch.bool)
        for index, query in enumerate(queries):
            found[index, list(self._matching(query))] = True
        return found

    def _matching(self, query: Example) -> set[int]:
        answers = set(map(self._normalise, query.answers))
        return {row for answer in answers for row in self._rows.get(answer, ())}
