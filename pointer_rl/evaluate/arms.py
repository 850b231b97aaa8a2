"""Arms of an evaluation: the ways of choosing demonstrations that are compared.

An arm shows each query some pointers, and its accuracy on the query is their mean. The exceptions
override `accuracies`: a vote asks no model, and the oracle takes the best of its pointers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cosine_similarity

from pointer_rl.datasets.leakage import AllowedRows
from pointer_rl.errors import InputError, PluginError, reproducible
from pointer_rl.registry import registry
from pointer_rl.selectors import SelectorPolicy
from pointer_rl.selectors.bundle import EncoderInfo
from pointer_rl.session.judge import Trial
from pointer_rl.session.proposing import check_candidates, check_length, propose
from pointer_rl.session.resolve import NoPolicy
from pointer_rl.session.similarity import Space
from pointer_rl.types import (
    Candidate,
    Decoded,
    Example,
    Generator,
    Metric,
    Outcome,
    Pointer,
    Policy,
    Pool,
    QueryBatch,
)

ZERO_SHOT, RANDOM, ORACLE, ATTAINABLE = "zero-shot", "random", "oracle", "attainable"
ANSWER_MATCH = "answer-match"
REFERENCES = (RANDOM, ORACLE, ATTAINABLE)
"""Arms that others are measured by, and that are not themselves ways to choose."""
VOTE = "vote "
"""Prefix of a vote's name; the rest is the arm whose demonstrations vote."""
METHOD = "arm"
"""`gen_method` of the candidates in an evaluation's journal."""
WINDOW = 64
"""Queries that pointers are chosen for together."""

Pointers = list[tuple[Pointer, ...]]
"""For each query, the pointers that an arm shows it."""
Outcomes = Sequence[Mapping[Pointer, float]]
"""For each query, the accuracy of every pointer that was asked; NaN if its trial failed."""
Floats = NDArray[np.float64]


@dataclass(kw_only=True, eq=False)
class Training:
    """Queries that arms may learn from: loaded, embedded and asked only if an arm wants it."""

    load: Callable[[], Sequence[Example]]
    """Loads the queries. Raises InputError if there are none that may be learned from."""
    pool: Sequence[Example]
    metric: Metric
    embed: Callable[[Sequence[Example]], Tensor]
    """Embeddings [T, d] of these queries, where a retriever would compare: `Setting.nearest`."""
    judge: Callable[[Sequence[Trial]], Iterable[tuple[int, Outcome]]]
    """As `Judge.judge`."""
    asked: int = 0
    """Trials so far, cached or not."""

    @cached_property
    def queries(self) -> Sequence[Example]:
        """The queries to learn from, none of which is evaluated."""
        return self.load()

    @cached_property
    def embeddings(self) -> Tensor:
        """[T, d], to be compared with the pool of `Setting.nearest`."""
        return self.embed(self.queries)

    @cached_property
    def allowed(self) -> AllowedRows:
        """The rows of the pool that a query, evaluated or not, may be shown."""
        return AllowedRows(self.pool)

    def ask(self, trials: Sequence[tuple[Example, Pointer]]) -> list[Outcome]:
        """The outcome of each trial, a query with a pointer.

        Raises PluginError for a row that the query may not be shown, and InputError if all fail.
        """
        for query, pointer in trials:
            hidden = set(self.allowed.excluded(query)).intersection(pointer)
            if hidden:
                raise PluginError(f"training query {query.id} may not be shown row {min(hidden)}")
        self.asked += len(trials)
        shown = [Trial(query, [self.pool[row] for row in pointer]) for query, pointer in trials]
        outcomes = dict(self.judge(shown))
        failures = [each.failure for each in outcomes.values() if each.failure is not None]
        if failures and len(failures) == len(trials):
            raise InputError(
                f"all {len(trials):,} trials on training queries failed, the first with: "
                f"{failures[0]}"
            )
        return [outcomes[index] for index in range(len(trials))]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The queries, pool and number of shots that arms choose for."""

    queries: Sequence[Example]
    shots: int
    seed: int
    """Seed of random pointers."""
    space: Space
    """Embeddings in which policies choose that bring none of their own."""
    training: Training
    """What arms may learn from."""
    similar: Mapping[str, Space] = field(default_factory=dict)
    """Name of each similarity → its embeddings; the last one is what a retriever would use."""
    relevant: Sequence[Sequence[Sequence[int]]] | None = None
    """For each query the sets of rows of which one each answers it, if the dataset knows them."""
    chosen: dict[str, Pointers] = field(default_factory=dict)
    """What the arms before this one chose, by name."""
    training_calls: dict[str, int | None] = field(default_factory=dict)
    """How many trials each of them was trained with; None if that is unknown."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Arms that nobody named and that cannot choose for these queries, and why."""

    @property
    def pool(self) -> Sequence[Example]:
        """The examples that may be shown."""
        return self.training.pool

    @property
    def nearest(self) -> Space:
        """The embeddings in which a retriever would compare."""
        return [self.space, *self.similar.values()][-1]

    def batches(self, space: Space) -> Iterator[QueryBatch]:
        """The queries with their embeddings and masks, some at a time."""
        for start in range(0, len(self.queries), WINDOW):
            window = slice(start, start + WINDOW)
            examples = self.queries[window]
            allowed = self.training.allowed.mask(examples)
            yield QueryBatch(examples, space.queries[window], allowed, self.shots)

    def generate(self, name: str, generator: str, num: int, space: Space | None = None) -> Pointers:
        """`num` pointers per query by a registered generator; `name` decides its randomness."""
        made: Generator = registry().create("generator", generator, {"num": num})
        space = space or self.space
        return [
            tuple(candidate.pointer for candidate in candidates)
            for batch in self.batches(space)
            for candidates in propose(
                NoPolicy(), batch, space.pool, {name: made}, self.seed, "ordered"
            )
        ]

    def checked(self, arm: str, chosen: Pointers) -> Pointers:
        """The pointers that an arm chose. Raises PluginError for one that it must not show."""
        check_length(arm, self.queries, chosen)
        lengths = range(self.shots + 1)
        return [
            tuple(
                each.pointer
                for each in check_candidates(
                    arm,
                    query,
                    self.training.allowed.mask([query])[0].numpy(),
                    lengths,
                    [Candidate(pointer, METHOD) for pointer in pointers],
                )
            )
            for query, pointers in zip(self.queries, chosen, strict=True)
        ]


class Arm:
    """A way of choosing demonstrations. Inherit from it and override `choose`."""

    zero_shot = False
    """Whether it shows no demonstrations: it is then measured once, at 0 shots."""
    least_shots = 1
    """The fewest shots at which it is measured, if it shows demonstrations."""
    training_calls: int | None = 0
    """Trials that it was trained with before the evaluation; None if that is unknown. The engine
    adds those that `choose` asks through `setting.training`."""
    seeds: int = 1
    """If there are several seeds, of a draw or of a training: it shows each query one pointer for
    each, its accuracy is their mean, and the accuracy of each seed is reported."""

    def choose(self, setting: Setting) -> Pointers:
        """For each query the pointers that it is shown, each of at most `setting.shots` rows.

        Raises InputError if the arm cannot choose for these queries.
        """
        raise NotImplementedError

    def accuracies(
        self, setting: Setting, shown: Pointers, outcomes: Outcomes, metric: Metric
    ) -> Floats:
        """[N] accuracy on each query: the mean over the pointers that it was shown.

        outcomes: the accuracy of every pointer that any arm showed the query, NaN if it failed.
        """
        return np.array(
            [
                np.mean([mine[each] for each in pointers])
                for pointers, mine in zip(shown, outcomes, strict=True)
            ]
        )


class ZeroShotArm(Arm):
    """No demonstrations."""

    zero_shot = True

    def choose(self, setting: Setting) -> Pointers:
        return [((),)] * len(setting.queries)


class RandomArm(Arm):
    """A few random pointers for each query; its accuracy is their mean."""

    def __init__(self, seeds: int) -> None:
        self.seeds = seeds

    def choose(self, setting: Setting) -> Pointers:
        drawn = (setting.generate(f"{RANDOM} {k}", "random", 1) for k in range(self.seeds))
        return [tuple(chain.from_iterable(each)) for each in zip(*drawn, strict=True)]


class SimilarityArm(Arm):
    """The most similar rows, the nearest last."""

    def __init__(self, of: str) -> None:
        self._similarity = of

    def choose(self, setting: Setting) -> Pointers:
        space = setting.similar.get(self._similarity)
        if space is None:
            raise InputError(
                f"no similarity {self._similarity!r} (there are: {', '.join(setting.similar)})"
            )
        return setting.generate(self._similarity, "retrieval", 1, space)


class PolicyArm(Arm):
    """A policy's likeliest row at each step; several policies are seeds of one training."""

    def __init__(
        self,
        policies: Sequence[Policy],
        training_calls: int | None = None,
        encoder: EncoderInfo | None = None,
        space: Space | None = None,
    ) -> None:
        """encoder: that of the policies, to be compared with the one of the embeddings; space: the
        embeddings in which they choose, by default the setting's."""
        self._policies = policies
        self._encoder = encoder
        self._space = space
        self.seeds = len(policies)
        self.training_calls = training_calls

    def choose(self, setting: Setting) -> Pointers:
        space = self._space or setting.space
        if self._encoder is not None:
            self._encoder.check(space.pool.encoder, "arm policy")
        chosen: Pointers = []
        for batch in setting.batches(space):
            found = (self._likeliest(each, batch, space.pool) for each in self._policies)
            by_query = zip(*(each.pointers() for each in found), strict=True)
            chosen += (tuple(chain.from_iterable(each)) for each in by_query)
        return chosen

    def _likeliest(self, policy: Policy, queries: QueryBatch, pool: Pool) -> Decoded:
        return policy.beam(queries, pool, 1)


class NumberArm(PolicyArm):
    """A policy that can stop, made to show a fixed number of demonstrations instead."""

    def __init__(
        self,
        policies: Sequence[Policy],
        number: int,
        training_calls: int | None = None,
        space: Space | None = None,
    ) -> None:
        super().__init__(policies, training_calls, space=space)
        self.least_shots = number

    def _likeliest(self, policy: Policy, queries: QueryBatch, pool: Pool) -> Decoded:
        assert isinstance(policy, SelectorPolicy)
        return policy.beam(replace(queries, shots=self.least_shots), pool, 1, may_stop=False)


class VoteArm(Arm):
    """The majority of another arm's demonstrations' answers, without a model.

    Of answers with as many votes, the one wins whose demonstration is most similar to the query.
    The order in which demonstrations are shown has no part in it: each arm has its own. If the
    other arm has several seeds, the accuracy is the mean of their votes.
    """

    def __init__(self, arm: str) -> None:
        self._arm = arm

    def choose(self, setting: Setting) -> Pointers:
        return [()] * len(setting.queries)

    def accuracies(
        self, setting: Setting, shown: Pointers, outcomes: Outcomes, metric: Metric
    ) -> Floats:
        space = setting.nearest
        votes = []
        chosen = zip(setting.queries, space.queries, setting.chosen[self._arm], strict=True)
        for query, embedding, pointers in chosen:
            of_query = []
            for rows in map(list, pointers):
                similarities = cosine_similarity(space.pool.embeddings[rows], embedding[None])
                nearest = similarities.argsort(descending=True, stable=True).tolist()
                answers = [metric.normalise(setting.pool[rows[each]].answer) for each in nearest]
                of_query.append(_vote(query, answers, metric))
            votes.append(np.mean(of_query))
        return np.array(votes)


class OracleArm(Arm):
    """The best of a fixed number of pointers for each query: random ones, and the nearest rows.

    They do not depend on the other arms, so an oracle of this size is the same in every table.
    """

    def __init__(self, random: int, retrieval: int) -> None:
        self._random = random
        self._retrieval = retrieval

    def choose(self, setting: Setting) -> Pointers:
        drawn = []
        if self._random:
            drawn.append(setting.generate(ORACLE, "random", self._random))
        if self._retrieval:
            drawn.append(setting.generate(ORACLE, "retrieval", self._retrieval, setting.nearest))
        return [tuple(chain.from_iterable(each)) for each in zip(*drawn, strict=True)]

    def accuracies(
        self, setting: Setting, shown: Pointers, outcomes: Outcomes, metric: Metric
    ) -> Floats:
        return np.array(
            [
                max(mine[each] for each in pointers)
                for pointers, mine in zip(shown, outcomes, strict=True)
            ]
        )


class AttainableArm(Arm):
    """One row of each set that the query needs, as far as there are such rows and `shots` allow.

    It is what choosing could attain, if the dataset knows the sets.
    """

    def choose(self, setting: Setting) -> Pointers:
        if setting.relevant is None:
            raise InputError("the dataset does not know which rows answer a query")
        masks = chain.from_iterable(each.allowed for each in setting.batches(setting.space))
        pointers: Pointers = []
        for sets, mask in zip(setting.relevant, masks, strict=True):
            firsts = [next((row for row in rows if mask[row]), None) for rows in sets]
            rows = dict.fromkeys(row for row in firsts if row is not None)
            pointers.append((tuple(rows)[: setting.shots],))
        return pointers


def choose(setting: Setting, arms: Mapping[str, Arm], optional: Container[str] = ()) -> Setting:
    """Let the arms that show as many demonstrations choose, in order; fills `setting.chosen`,
    `setting.training_calls` and, with those of the optional arms that cannot, `setting.left_out`.

    Raises InputError, naming the arm, if another one cannot choose, and PluginError for pointers
    that are not allowed.
    """
    for name, arm in arms.items():
        if setting.shots == 0 if arm.zero_shot else setting.shots >= arm.least_shots:
            before = setting.training.asked
            try:
                setting.chosen[name] = setting.checked(f"arm {name}", arm.choose(setting))
            except InputError as error:
                if name in optional:
                    setting.left_out[name] = reproducible(str(error))
                    continue
                raise InputError(f"arm {name}: {error}") from error
            known, asked = arm.training_calls, setting.training.asked - before
            setting.training_calls[name] = None if known is None else known + asked
    return setting


def majority(answers: Sequence[str]) -> str:
    """The most frequent answer; of equally frequent ones the first."""
    return max(dict.fromkeys(answers), key=answers.count)


def _vote(query: Example, answers: Sequence[str], metric: Metric) -> float:
    if not answers:
        return 0.0  # nobody votes
    try:
        return metric.judge(majority(answers), query.answers).accuracy
    except InputError:  # its trials fail as well: the query is left out
        return math.nan
