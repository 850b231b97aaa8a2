"""A run of `pointer-rl evaluate`: policies and baselines on the same questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pointer_rl.datasets.leakage import AllowedRows
from pointer_rl.devices import resolve_device
from pointer_rl.errors import InputError
from pointer_rl.evaluate import conclusions, statistics
from pointer_rl.evaluate.arms import (
    MODES,
    ORACLE,
    RANDOM,
    VOTE,
    ZERO_SHOT,
    Chooser,
    Space,
    choose,
    similarity_spaces,
    zero_shot,
)
from pointer_rl.evaluate.conclusions import conclude
from pointer_rl.evaluate.evaluation import Evaluation, Leakage
from pointer_rl.evaluate.measure import ask, measure
from pointer_rl.selectors import SelectorPolicy, load_selector
from pointer_rl.selectors.bundle import (
    BundleInfo,
    is_bundle,
    load_bundle,
    read_query_ids,
    update_evaluation,
)
from pointer_rl.session.caching import StoredBackend
from pointer_rl.session.judge import Judge
from pointer_rl.session.proposing import random_source
from pointer_rl.session.resolve import describe_policy
from pointer_rl.session.session import Named, TrialOptions, Workbench
from pointer_rl.types import Example, Outcome, Policy

__all__ = [
    "EvaluateConfig",
    "EvaluateRun",
    "OpenedPolicy",
    "draw_queries",
    "evaluate",
    "open_policy",
    "run_evaluation",
]

RESERVED = {ZERO_SHOT, RANDOM, ORACLE, "similarity", *MODES}


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is compared, and on which of the queries."""

    shots: tuple[int, ...] = (2,)
    """Numbers of demonstrations; the primary comparison is made at the first."""
    primary: str | None = None
    """The arm that the verdict is about; by default the last policy, else the last similarity."""
    random_seeds: int = 3
    """Random pointers a query; the arm's accuracy is their mean."""
    oracle_random: int = 4
    """Random pointers that only the oracle may choose from."""
    oracle_retrieval: int = 4
    """Pointers of the most similar rows, likewise."""
    limit: int | None = None
    """A random subset of so many queries; a smaller one is part of a larger one."""
    seed: int = 0
    """Of the subset, of random pointers and of the bootstrap."""
    encoder: Named | None = None
    """Of the similarity arms; by default the dataset's companion."""

    def __post_init__(self) -> None:
        if not self.shots or min(self.shots) < 1 or len(set(self.shots)) < len(self.shots):
            raise InputError("shots: one or more different numbers from 1 up")
        if self.random_seeds < 1 or min(self.oracle_random, self.oracle_retrieval) < 0:
            raise InputError("random_seeds starts at 1, oracle_random and oracle_retrieval at 0")


@dataclass(frozen=True)
class OpenedPolicy:
    """A policy and, of a bundle, what is known of its training."""

    policy: Policy
    info: BundleInfo | None = None
    trained_on: frozenset[str] = frozenset()
    """Ids of queries."""


@dataclass(frozen=True, kw_only=True)
class EvaluateRun:
    """All that decides an evaluation."""

    trials: TrialOptions
    policies: Mapping[str, Path] = field(default_factory=dict)
    """By the name of its arm, a bundle or any checkpoint that `load_selector` reads."""
    config: EvaluateConfig = EvaluateConfig()
    record: bool = False
    """Write the verdict into the primary policy's bundle, and on its card."""


def run_evaluation(
    run: EvaluateRun,
    on_start: Callable[[int], object] = lambda queries: None,
    on_query: Callable[[], object] = lambda: None,
    on_outcome: Callable[[Outcome], object] = lambda outcome: None,
) -> Evaluation:
    """Evaluate from names and files.

    Where the primary policy is a bundle whose shots are among those asked for, the primary
    comparison is made at them. `run.trials.limit` is of no effect: see `EvaluateConfig.limit`.
    Raises PointerRLError, before the first trial, for anything that is missing or does not fit.
    """
    bundle = _primary_bundle(run) if run.record else None
    workbench = Workbench(replace(run.trials, limit=None))
    policies = {name: open_policy(path, run.trials.device) for name, path in run.policies.items()}
    evaluation = evaluate(workbench, policies, run.config, None, on_start, on_query, on_outcome)
    if bundle is not None and evaluation.conclusions is not None:
        update_evaluation(bundle, evaluation.summary())
    return evaluation


def _primary_bundle(run: EvaluateRun) -> Path:
    primary = run.config.primary or next(reversed([*run.policies]), "")
    if primary not in run.policies or not is_bundle(run.policies[primary]):
        raise InputError("record: the primary arm is no policy bundle; name the one that is meant")
    return run.policies[primary]


def open_policy(path: Path, device: str | None = None) -> OpenedPolicy:
    """A bundle or a checkpoint. Raises InputError for what is neither, or damaged."""
    place = resolve_device(device or "auto")
    if is_bundle(path):
        bundle = load_bundle(path, place)
        return OpenedPolicy(bundle.policy, bundle.info, frozenset(read_query_ids(path)))
    return OpenedPolicy(SelectorPolicy(load_selector(path), place))


def evaluate(
    workbench: Workbench,
    policies: Mapping[str, OpenedPolicy],
    config: EvaluateConfig = EvaluateConfig(),
    judge: Judge | None = None,
    on_start: Callable[[int], object] = lambda queries: None,
    on_query: Callable[[], object] = lambda: None,
    on_outcome: Callable[[Outcome], object] = lambda outcome: None,
) -> Evaluation:
    """Evaluate policies, in memory or opened, beside the baselines.

    `policies` by the names of their arms; `judge`: the workbench's unless another is given.
    `on_start` is told the number of queries, `on_query` and `on_outcome` what gets done.
    """
    for name in policies:
        if not name.strip() or name in RESERVED or name.startswith((VOTE, "_")):
            raise InputError(f"policy {name!r}: no name for a policy, or another arm's; choose one")
    queries = draw_queries(workbench.dataset.queries, config.limit, config.seed)
    pool = workbench.dataset.pool
    if not queries:
        raise InputError(f"dataset {workbench.dataset.name} has no queries to evaluate on")
    workbench.check_answers(queries)
    AllowedRows(pool).check(queries, max(config.shots))

    similar = similarity_spaces(workbench, queries, config.encoder)
    *_, (nearest, space) = similar.items()
    if policies:
        space = Space(*workbench.embeddings(queries))
    _check_encoders(policies, space)
    primary = config.primary or [nearest, *policies][-1]
    if primary not in {*similar, *policies}:
        raise InputError(
            f"primary {primary!r} is no policy and no similarity arm "
            f"(there are: {', '.join([*similar, *policies])})"
        )
    shots = _primary_shots(policies.get(primary), config.shots)
    arms = [
        zero_shot(queries),
        *(
            choose(
                Chooser(queries, pool, each, config.seed),
                similar,
                {name: opened.policy for name, opened in policies.items()},
                space,
                random_seeds=config.random_seeds,
                oracle_random=config.oracle_random,
                oracle_retrieval=config.oracle_retrieval,
            )
            for each in sorted(config.shots)
        ),
    ]
    judge = judge or workbench.judge()
    on_start(len(queries))
    hits = _hits(judge)
    asked = ask(queries, pool, arms, judge, on_query, on_outcome)
    voters = [nearest, *policies]
    measured = [measure(each, asked, queries, pool, judge.metric, voters) for each in arms]
    return Evaluation(
        settings={
            **workbench.describe(queries, judge),
            **asdict(config),
            "primary": primary,
            "primary_shots": shots,
            "similarity": {name: each.pool.encoder for name, each in similar.items()},
            "policies": {name: _describe(opened, space) for name, opened in policies.items()},
            "oracle": _oracle_definition(config, nearest),
            "intervals": INTERVALS,
        },
        query_ids=tuple(query.id for query in queries),
        measured=tuple(measured),
        conclusions=conclude(measured, primary, shots, list(similar), list(policies), config.seed),
        leakage=_leakage(queries, pool, policies),
        trials=len(asked.accuracies),
        failed=asked.failed,
        first_failure=asked.first_failure,
        from_store=_hits(judge) - hits,
    )


INTERVALS = {
    "method": "percentile bootstrap over queries, paired; of differences with two queries added, "
    "one won and one lost wholly",
    "resamples": statistics.RESAMPLES,
    "primary_level": conclusions.PRIMARY_LEVEL,
    "secondary_level": conclusions.SECONDARY_LEVEL,
    "correction": "Bonferroni over the secondary comparisons",
}


def _hits(judge: Judge) -> int:
    return judge.backend.hits if isinstance(judge.backend, StoredBackend) else 0


def draw_queries(queries: Sequence[Example], limit: int | None, seed: int) -> Sequence[Example]:
    """A random subset in the order of `queries`; a smaller one is part of a larger one."""
    if limit is None or limit >= len(queries):
        return queries
    order = random_source(seed, "", "queries").permutation(len(queries))
    return [queries[row] for row in sorted(order[:limit].tolist())]


def _check_encoders(policies: Mapping[str, OpenedPolicy], space: Space) -> None:
    for name, opened in policies.items():
        own = opened.info and opened.info.encoder.fingerprint
        if own and space.pool.encoder and own != space.pool.encoder:
            raise InputError(
                f"policy {name}: a bundle for another encoder ({own}); these embeddings come from "
                f"{space.pool.encoder}: embed queries and pool with the bundle's"
            )


def _primary_shots(primary: OpenedPolicy | None, shots: Sequence[int]) -> int:
    """Those that it was trained at where they are asked for, else the first asked for."""
    if primary and primary.info and primary.info.shots in shots:
        return primary.info.shots
    return shots[0]


def _leakage(
    queries: Sequence[Example],
    pool: Sequence[Example],
    policies: Mapping[str, OpenedPolicy],
) -> Leakage:
    rows: dict[str | None, list[int]] = {}
    for row, example in enumerate(pool):
        rows.setdefault(_image_key(example), []).append(row)
    rows.pop(None, None)
    sharing = [query for query in queries if _image_key(query) in rows]
    masks = AllowedRows(pool).mask(sharing)
    return Leakage(
        shared_images=len(sharing),
        shown=sum(
            bool(mask[rows[query.image.key]].any())
            for query, mask in zip(sharing, masks, strict=True)
        ),
        trained_on={
            name: sum(query.id in opened.trained_on for query in queries)
            for name, opened in policies.items()
            if opened.info is not None
        },
    )


def _image_key(example: Example) -> str | None:
    try:
        return example.image.key
    except InputError:  # shown to nobody: its trials fail, and say why
        return None


def _describe(opened: OpenedPolicy, space: Space) -> dict[str, Any]:
    return {
        "encoder": space.pool.encoder,
        **((isinstance(opened.policy, SelectorPolicy) and describe_policy(opened.policy)) or {}),
    }


def _oracle_definition(config: EvaluateConfig, nearest: str) -> str:
    return (
        "for each query and number of shots, the best accuracy of any pointer that an arm shows, "
        f"{config.oracle_random} further random ones and the {config.oracle_retrieval} first by "
        f"{nearest} similarity"
    )
