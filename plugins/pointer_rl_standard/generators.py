"""Candidate generators: beam search, temperature sampling, random rows, retrieval, MMR, probes.

A generator proposes fewer candidates than asked for if fewer exist, because few rows are allowed.
Several generators may propose the same pointer, and `sample` may draw it twice; the engine
deduplicates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, zip_longest
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from pointer_rl.errors import InputError
from pointer_rl.selectors import highest
from pointer_rl.types import Candidate, Example, Pointer, Policy, Pool, QueryBatch
from pointer_rl_standard.options import (
    BeamOptions,
    MMROptions,
    ProbeOptions,
    RandomOptions,
    RetrievalOptions,
    SampleOptions,
)
from pointer_rl_standard.vqa_normalisation import normalise as normalise_answer

_TOGETHER, _PAIRS = 2**16, 2**25
"""Most pool rows, and most queries × pool rows, to compare at once."""
Rngs = Sequence[np.random.Generator]
Proposals = list[list[Candidate]]


@dataclass(frozen=True)
class BeamGenerator:
    """The policy's most probable pointers, found by beam search, best first."""

    options: BeamOptions

    def propose(self, policy: Policy, queries: QueryBatch, pool: Pool, rngs: Rngs) -> Proposals:
        """Up to `width` candidates per query; both scores are the policy's log-probability."""
        return [
            [
                Candidate(pointer, "beam", rank, beam_score=score, logprob_score=score)
                for rank, (pointer, score) in enumerate(found)
            ]
            for found in _beam_search(policy, queries, pool, self.options.width)
        ]


@dataclass(frozen=True)
class SampleGenerator:
    """Pointers drawn from the policy at each temperature."""

    options: SampleOptions

    def propose(self, policy: Policy, queries: QueryBatch, pool: Pool, rngs: Rngs) -> Proposals:
        """`num_samples` candidates per temperature, temperatures in order, repeats included."""
        proposals: Proposals = [[] for _ in queries.examples]
        num, top_p = self.options.num_samples, self.options.top_p
        for temperature in self.options.temperatures:
            drawn = policy.sample(queries, pool, num, rngs, temperature, top_p)
            make = partial(Candidate, gen_method="sample", temperature=temperature, top_p=top_p)
            scores_BN = drawn.logprobs.tolist()
            for candidates, *each in zip(proposals, drawn.pointers(), scores_BN, strict=True):
                candidates += [
                    make(rows, logprob_score=score) for rows, score in zip(*each, strict=True)
                ]
        return proposals


@dataclass(frozen=True)
class RandomGenerator:
    """Pointers drawn uniformly from all pointers of allowed rows.

    If pointers may have any length, first the length is drawn, uniformly.
    """

    options: RandomOptions
    needs_embeddings: ClassVar[bool] = False

    def propose(self, policy: Policy, queries: QueryBatch, pool: Pool, rngs: Rngs) -> Proposals:
        """`num` different pointers per query, or all of them if there are fewer."""
        return [
            [
                Candidate(pointer, "random")
                for pointer in self._draw(rows.nonzero()[0], queries.lengths, rng)
            ]
            for rows, rng in zip(queries.allowed.cpu().numpy(), rngs, strict=True)
        ]

    def _draw(self, rows: np.ndarray, lengths: range, rng: np.random.Generator) -> list[Pointer]:
        numbers = [math.perm(len(rows), length) for length in lengths]
        possible = [each for each, number in zip(lengths, numbers, strict=True) if number]
        wanted = min(self.options.num, sum(numbers))
        drawn: dict[Pointer, None] = {}  # an ordered set: a repeated draw is drawn again
        while len(drawn) < wanted:
            length = possible[rng.integers(len(possible))] if len(possible) > 1 else possible[0]
            drawn[tuple(rng.choice(rows, length, replace=False).tolist())] = None
        return list(drawn)


@dataclass(frozen=True)
class RetrievalGenerator:
    """The rows most similar to the query, by cosine of the embeddings.

    With S shots, candidate j consists of the rows ranked jS … jS + S - 1 (ties: lowest row first).
    Its most similar row is shown last, next to the query, where it has the most influence (Liu et
    al. 2022, "What makes good in-context examples for GPT-3?"). If pointers may have any length,
    the ranks are cut into pointers of each length.
    """

    options: RetrievalOptions

    def propose(self, policy: Policy, queries: QueryBatch, pool: Pool, rngs: Rngs) -> Proposals:
        """`num` candidates per query and length, or as many as the allowed rows suffice for."""
        cosines_BN, rows_BN = _ranked(queries, pool, self.options.num * queries.shots)
        return _cut(rows_BN, cosines_BN, queries, self.options.num, "retrieval")


@dataclass(frozen=True)
class MMRGenerator:
    """Maximal marginal relevance (Carbonell & Goldstein 1998): similar, but not all alike.

    The next row has the highest λ · cos(query, row) - (1 - λ) · max cos(row, row chosen before),
    whatever pointer that belongs to. The list is cut into pointers as that of `RetrievalGenerator`:
    the first row of each is shown last.
    """

    options: MMROptions

    def propose(self, policy: Policy, queries: QueryBatch, pool: Pool, rngs: Rngs) -> Proposals:
        """`num` candidates per query and length, or as many as the allowed rows suffice for."""
        rows_Kd = normalize(pool.embeddings, dim=-1)
        return [
            candidates
            for some in _some_at_a_time(queries, pool)
            for candidates in self._propose(some, pool, rows_Kd)
        ]

    def _propose(self, queries: QueryBatch, pool: Pool, rows_Kd: Tensor) -> Proposals:
        cosine_BK = _cosines(queries, pool)
        relevance = self.options.relevance
        redundancy_BK = torch.zeros_like(cosine_BK)
        left_BK = queries.allowed.to(cosine_BK.device, copy=True)
        chosen = []
        for step in range(min(self.options.num * queries.shots, cosine_BK.shape[1])):
            score_BK = relevance * cosine_BK - (1 - relevance) * redundancy_BK
            row_B1 = score_BK.masked_fill(~left_BK, -math.inf).argmax(-1, keepdim=True)
            left_BK.scatter_(1, row_B1, False)
            chosen.append(row_B1)
            similar_BK = rows_Kd[row_B1[:, 0]] @ rows_Kd.T
            redundancy_BK = similar_BK.maximum(redundancy_BK) if step else similar_BK
        rows_BN = torch.cat(chosen, dim=-1)
        cosines_BN = cosine_BK.gather(1, rows_BN)
        return _cut(rows_BN, cosines_BN, queries, self.options.num, "mmr")


@dataclass(frozen=True)
class ProbeGenerator:
    """Pointers that differ only in their first row, so that rewards can be attributed to it.

    If two pointers share no row, their rewards do not show which row earned the difference. Here
    each of the highest-ranked rows precedes the same randomly drawn rows, so the rewards of a query
    differ only because of that row: a controlled comparison. If pointers may have any length, the
    empty pointer comes first, and each row is shown alone.
    """

    options: ProbeOptions

    def propose(self, policy: Policy, queries: QueryBatch, pool: Pool, rngs: Rngs) -> Proposals:
        """`num` candidates per query, or fewer so that enough allowed rows remain to share."""
        ranked = best_rows(policy, queries, pool, self.options.num, self.options.by)
        if queries.any_length:
            return [
                [Candidate(pointer, "probe") for pointer in [(), *zip(rows)][: self.options.num]]
                for rows in ranked
            ]
        shared_rows = queries.shots - 1
        return [
            [Candidate((row, *shared), "probe") for row in probed]
            for probed, shared in with_companions(ranked, queries, shared_rows, rngs)
        ]


def best_rows(
    policy: Policy, queries: QueryBatch, pool: Pool, num: int, by: Literal["similarity", "policy"]
) -> list[list[int]]:
    """For each query the `num` allowed rows that rank highest, best first; fewer if there are."""
    if by == "policy":
        # One more, since a policy that can stop may rank the empty pointer among them.
        found = _beam_search(policy, replace(queries, shots=1), pool, num + 1)
        return [[pointer[0] for pointer, _ in each if pointer][:num] for each in found]
    counts = queries.allowed.sum(-1).clamp(max=num).tolist()
    rows_BN = _ranked(queries, pool, num)[1].tolist()
    return [rows[:count] for rows, count in zip(rows_BN, counts, strict=True)]


def rows_by_answer(
    policy: Policy, queries: QueryBatch, pool: Pool, num: int, by: Literal["similarity", "policy"]
) -> list[list[int]]:
    """As `best_rows`, but rows with the query's answer, or a part of it, and others take turns.

    The query's answer is what most annotators gave; a part of it is one or more of its words that
    follow each other. Words are those of VQA's normalisation: "red-white" has two. Of the `num`
    best rows that match, the best one of each answer comes first, since a query may need several.
    """
    matching_BK = _matching(queries.examples, pool).to(queries.allowed.device)
    found = []
    for allowed_BK in (queries.allowed & matching_BK, queries.allowed & ~matching_BK):
        of_query: list[list[int]] = [[] for _ in queries.examples]
        some = allowed_BK.any(-1).nonzero()[:, 0].tolist()
        batch = replace(
            queries,
            examples=[queries.examples[each] for each in some],
            embeddings=queries.embeddings[some],
            allowed=allowed_BK[some],
        )
        if some:
            ranked = best_rows(policy, batch, pool, num, by)
            for query, rows in zip(some, ranked, strict=True):
                of_query[query] = rows
        found.append(of_query)
    return [
        [
            row
            for pair in zip_longest(_each_answer(rows, pool), others)
            for row in pair
            if row is not None
        ][:num]
        for rows, others in zip(*found, strict=True)
    ]


def _matching(queries: Sequence[Example], pool: Pool) -> Tensor:
    """[B, K] bool: whether a row's answer is that of a query, or a part of it."""
    rows_of: dict[str, list[int]] = {}
    for answer, rows in pool.rows_of.items():
        rows_of.setdefault(normalise_answer(answer), []).extend(rows)
    found = torch.zeros(len(queries), len(pool.examples), dtype=torch.bool)
    for index, query in enumerate(queries):
        words = normalise_answer(query.answer).split()
        for first, last in combinations(range(len(words) + 1), 2):
            found[index, rows_of.get(" ".join(words[first:last]), [])] = True
    return found


def _each_answer(rows: Sequence[int], pool: Pool) -> list[int]:
    """These rows, the first one of each answer first."""
    first = {normalise_answer(pool.examples[row].answer): row for row in reversed(rows)}
    return list(dict.fromkeys([*sorted(first.values(), key=rows.index), *rows]))


def with_companions(
    ranked: Sequence[Sequence[int]], queries: QueryBatch, number: int, rngs: Rngs
) -> Iterator[tuple[Sequence[int], list[int]]]:
    """Each query's rows, and so many others, drawn at random, to be shown beside them.

    There are fewer rows if not enough others were left; none, and no companions, if none is.
    """
    for rows, allowed, rng in zip(ranked, queries.allowed.cpu().numpy(), rngs, strict=True):
        kept = rows[: max(0, int(allowed.sum()) - number)]
        others = other_rows(allowed, kept)
        yield kept, rng.choice(others, number, replace=False).tolist() if kept else []


def other_rows(allowed: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    """The allowed rows, ascending, without `rows`. `allowed`: [K]."""
    left = allowed.copy()
    left[list(rows)] = False
    return left.nonzero()[0]


def _beam_search(
    policy: Policy, queries: QueryBatch, pool: Pool, width: int
) -> list[list[tuple[Pointer, float]]]:
    """For each query the pointers found and their log-probabilities, best first."""
    found = policy.beam(queries, pool, width)
    return [
        [(pointer, score) for pointer, score in zip(*each, strict=True) if score > -math.inf]
        for each in zip(found.pointers(), found.logprobs.tolist(), strict=True)
    ]


def _cosines(queries: QueryBatch, pool: Pool) -> Tensor:
    """Of queries and rows, [B, K]."""
    vectors_Bd = normalize(queries.embeddings, dim=-1)
    # In parts, to avoid a second copy of a large pool.
    parts = torch.split(pool.embeddings, _TOGETHER)
    cosine_BK = torch.cat([vectors_Bd @ normalize(part, dim=-1).T for part in parts], dim=1)
    if not cosine_BK.isfinite().all():
        raise InputError("similarity: embeddings with values that are not finite; embed again")
    return cosine_BK


def _ranked(queries: QueryBatch, pool: Pool, num: int) -> tuple[Tensor, Tensor]:
    """The highest cosines and their rows, [B, ≤ num] each. Rows that are not allowed have -inf."""
    cosines, rows = [], []
    for some in _some_at_a_time(queries, pool):
        cosine_BK = _cosines(some, pool)
        allowed = some.allowed.to(cosine_BK.device)
        found = highest(cosine_BK.masked_fill_(~allowed, -math.inf), num)
        cosines.append(found[0])
        rows.append(found[1])
    return torch.cat(cosines), torch.cat(rows)


def _some_at_a_time(queries: QueryBatch, pool: Pool) -> Iterator[QueryBatch]:
    """The queries in parts whose similarities to the pool fit into memory."""
    size = max(1, _PAIRS // len(pool.embeddings))
    for start in range(0, max(1, len(queries.examples)), size):
        some = slice(start, start + size)
        yield replace(
            queries,
            examples=queries.examples[some],
            embeddings=queries.embeddings[some],
            allowed=queries.allowed[some],
        )


def _cut(
    rows_BN: Tensor, cosines_BN: Tensor, queries: QueryBatch, num: int, gen_method: str
) -> Proposals:
    """Rows, best first, as `num` pointers of each length, or fewer: the best row of each last.

    Only allowed rows come first. The empty pointer has no similarity.
    """
    counts = queries.allowed.sum(-1).clamp(max=rows_BN.shape[1])
    proposals: Proposals = []
    for rows, cosines, count in zip(
        rows_BN.tolist(), cosines_BN.tolist(), counts.tolist(), strict=True
    ):
        candidates = [Candidate((), gen_method)] if 0 in queries.lengths else []
        for length in filter(None, queries.lengths):
            for first in range(0, min(num, count // length) * length, length):
                cut = slice(first, first + length)
                similarity = sum(cosines[cut]) / length
                pointer = tuple(reversed(rows[cut]))
                candidates.append(Candidate(pointer, gen_method, similarity_score=similarity))
        proposals.append(candidates)
    return proposals
