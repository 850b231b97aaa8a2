"""A run of `pointer-rl evaluate`: policies and baselines on the same questions."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from pointer_rl.datasets.leakage import AllowedRows
from pointer_rl.devices import resolve_device
from pointer_rl.errors import InputError, first_line
from pointer_rl.evaluate import conclusions, statistics
from pointer_rl.evaluate.arms import (
    ANSWER_MATCH,
    ATTAINABLE,
    ORACLE,
    RANDOM,
    VOTE,
    ZERO_SHOT,
    Arm,
    NumberArm,
    PolicyArm,
    Setting,
    Training,
    choose,
)
from pointer_rl.evaluate.conclusions import conclude
from pointer_rl.evaluate.evaluation import Evaluation, Leakage
from pointer_rl.evaluate.measure import Asked, EvaluationJob, measure, pointers_to_ask
from pointer_rl.hub import is_snapshot
from pointer_rl.records.provenance import EARLIER, Change
from pointer_rl.records.records import encode_record
from pointer_rl.registry import registry
from pointer_rl.selectors import SelectorPolicy, load_selector
from pointer_rl.selectors.bundle import (
    UNKNOWN,
    BundleInfo,
    EncoderInfo,
    is_bundle,
    load_bundle,
    read_query_ids,
    seed_folders,
    update_evaluation,
)
from pointer_rl.session.journal import (
    AlreadyFinished,
    Journal,
    check_same_run,
    earlier_meta,
    locked_run,
)
from pointer_rl.session.judge import Trial
from pointer_rl.session.observer import Observer
from pointer_rl.session.proposing import random_source
from pointer_rl.session.resolve import describe_policy, selector_entries
from pointer_rl.session.session import PluginRef, Session, SessionOptions
from pointer_rl.session.similarity import MODES, Space, similarity_spaces
from pointer_rl.session.windows import run_windows
from pointer_rl.types import Dataset, Example, Outcome, Policy

RESERVED = {ZERO_SHOT, RANDOM, ANSWER_MATCH, ORACLE, ATTAINABLE, "similarity", *MODES}


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is compared, and on which of the queries."""

    shots: tuple[int, ...] = (2,)
    """Numbers of demonstrations; the primary comparison is made at the first."""
    primary: str | None = None
    """The arm that the verdict is about; by default the last policy, else the last similarity."""
    random_seeds: int = 3
    """Random pointers per query; the arm's accuracy is their mean."""
    oracle_random: int = 8
    """Random pointers that the oracle chooses from."""
    oracle_retrieval: int = 8
    """Pointers of the most similar rows that the oracle chooses from."""
    limit: int | None = None
    """Size of a random subset of the queries; a smaller one is part of a larger one."""
    seed: int = 0
    """Seed of the subset and of random pointers."""
    train_options: Mapping[str, object] = field(default_factory=dict)
    """Options of the dataset that differ for the queries that arms may learn from. Without any,
    they learn from the pool's own examples."""

    def __post_init__(self) -> None:
        if not self.shots or min(self.shots) < 1 or len(set(self.shots)) < len(self.shots):
            raise InputError("shots: one or more different numbers from 1 up")
        if self.random_seeds < 1 or min(self.oracle_random, self.oracle_retrieval) < 0:
            raise InputError("random_seeds starts at 1, oracle_random and oracle_retrieval at 0")
        if not self.oracle_random + self.oracle_retrieval:
            raise InputError("oracle_random and oracle_retrieval are 0: an oracle needs pointers")


@dataclass(frozen=True)
class OpenedPolicy:
    """A policy, or one for each seed of a training; if from a bundle, what is known of that."""

    policies: tuple[Policy, ...]
    info: BundleInfo | None = None
    """The first seed's."""
    trained_on: frozenset[str] = frozenset()
    """Query ids, those of all seeds."""
    training_calls: int | None = None
    """Trials that it was trained with, the most of any seed; None if that is not known."""

    @property
    def encoder(self) -> EncoderInfo:
        """The encoder that it was trained with."""
        return UNKNOWN if self.info is None else self.info.encoder


@dataclass(frozen=True, kw_only=True)
class EvaluateRun:
    """Everything that decides an evaluation, and where it is written."""

    session: SessionOptions
    """`limit` has no effect: see `EvaluateConfig.limit`."""
    policies: Mapping[str, Path] = field(default_factory=dict)
    """Name of the arm → a bundle, a folder of several seeds' bundles, or any checkpoint that
    `load_selector` reads."""
    arms: Sequence[PluginRef] = ()
    """Further arms, by their registered names."""
    config: EvaluateConfig = EvaluateConfig()
    record: bool = False
    """Write the verdict into the primary policy's bundle and on its card."""
    output_path: Path | None = None
    """The JSON file that will be written. With it, an interrupted evaluation can be continued."""
    overwrite: bool = False
    """Start over, whatever there is."""
    accept_changed: Collection[Change] = ()
    """What of the evaluation may have changed since it began."""


def run_evaluation(run: EvaluateRun, observer: Observer = Observer()) -> Evaluation:
    """Evaluate from names and files.

    If the primary policy is a bundle that was trained at one of the numbers of shots, the primary
    comparison is made there. Raises PointerRLError, before the first trial, for anything that is
    missing or does not fit, and for the journal or file of another evaluation; AlreadyFinished if
    the file is this one's.
    """
    with nullcontext() if run.output_path is None else locked_run(run.output_path):
        return _run_evaluation(run, observer)


def _run_evaluation(run: EvaluateRun, observer: Observer) -> Evaluation:
    recorded_in = _primary_bundles(run) if run.record else []
    earlier = earlier_meta(run.output_path, overwrite=run.overwrite)
    session = Session(replace(run.session, limit=None), observer, earlier)
    policies = {name: open_policy(path, run.session.device) for name, path in run.policies.items()}
    try:
        evaluation = evaluate(
            session,
            policies,
            run.config,
            run.arms,
            output_path=run.output_path,
            overwrite=run.overwrite,
            accept_changed=run.accept_changed,
        )
    except AlreadyFinished as finished:
        for bundle in recorded_in:
            update_evaluation(bundle, finished.content)
        raise
    if evaluation.conclusions is not None:
        for bundle in recorded_in:
            update_evaluation(bundle, evaluation.summary())
    return evaluation


def _primary_bundles(run: EvaluateRun) -> list[Path]:
    primary = run.config.primary or next(reversed([*run.policies]), "")
    path = run.policies.get(primary)
    bundles = [] if path is None else seed_folders(path) or [path]
    if not bundles or not all(map(is_bundle, bundles)):
        raise InputError(
            "record: the primary arm is not a policy bundle; name the one that is meant"
        )
    if is_snapshot(bundles[0]):
        raise InputError(
            "record: the primary arm's bundle is a copy of the Hub's, which must not be changed; "
            f"copy the folder {bundles[0]}, and name the new one"
        )
    return bundles


def open_policy(path: Path, device: str | None = None) -> OpenedPolicy:
    """A bundle, a folder of several seeds' bundles, or a checkpoint.

    Raises InputError for anything else, for a damaged one, and for seeds that do not fit together
    or whose training is not finished.
    """
    place = resolve_device(device or "auto")
    folders = seed_folders(path) or [path]
    if folders == [path] and not is_bundle(path):
        return OpenedPolicy((SelectorPolicy(load_selector(path), place),))
    bundles = [load_bundle(each, place) for each in folders]
    infos = [each.info for each in bundles]
    for folder, info in zip(folders, infos, strict=True):
        if (info.shots, info.encoder) != (infos[0].shots, infos[0].encoder):
            raise InputError(f"{folder}: trained with other shots or embeddings than {folders[0]}")
    calls = [each.training_calls for each in infos]
    known = [each for each in calls if each is not None]
    return OpenedPolicy(
        tuple(each.policy for each in bundles),
        infos[0],
        frozenset().union(*map(read_query_ids, folders)),
        max(known) if len(known) == len(calls) else None,
    )


def evaluate(
    session: Session,
    policies: Mapping[str, OpenedPolicy],
    config: EvaluateConfig = EvaluateConfig(),
    more_arms: Sequence[PluginRef] = (),
    *,
    output_path: Path | None = None,
    overwrite: bool = False,
    accept_changed: Collection[Change] = (),
) -> Evaluation:
    """Compare policies, by the names of their arms, with each other and with the baselines.

    With `output_path`, outcomes are journaled next to it until the evaluation is done. The caller
    writes the file.
    """
    for name in policies:
        if not name.strip() or name in RESERVED or name.startswith((VOTE, "_")):
            raise InputError(f"policy {name!r}: no name for a policy, or another arm's; choose one")
    queries = draw_queries(session.dataset.queries, config.limit, config.seed)
    pool = session.dataset.pool
    if not queries:
        raise InputError(f"dataset {session.dataset.name} has no queries to evaluate on")
    session.check_answers(queries)
    AllowedRows(pool).check(queries, max(config.shots))

    recorded = next((each.encoder for each in policies.values() if each.encoder.name), UNKNOWN)
    similar = {
        name: embed() for name, embed in similarity_spaces(session, queries, recorded).items()
    }
    *_, (nearest, space) = similar.items()
    spaces: dict[str, Space] = {}
    for name, opened in policies.items():
        known = [*similar.values(), *spaces.values()]
        spaces[name] = space = _space_of(opened, session, queries, known)
        opened.encoder.check(space.pool.encoder, f"policy {name}")
    primary = config.primary or [nearest, *policies][-1]
    named = [each.name for each in more_arms]
    possible = dict.fromkeys([*similar, ANSWER_MATCH, *policies, *named])
    if primary not in possible:
        raise InputError(
            f"primary {primary!r}: the verdict can be about one of: {', '.join(possible)}"
        )
    configured = [each.configure("arm") for each in more_arms]
    entries = [each.entry for each in configured]
    entries += selector_entries(each for opened in policies.values() for each in opened.policies)
    plugins = (each.pool.encoder_plugin for each in (*similar.values(), *spaces.values()))
    entries += [registry().find("encoder", each["name"]) for each in plugins if each is not None]
    shots = _primary_shots(policies.get(primary), config.shots)

    @cache
    def decide() -> dict[str, Any]:
        """What decides the evaluation. Raises if its file is there: finished, or another's."""
        decided = {
            **session.describe(queries, *entries, embedded=(space.queries, space.pool)),
            **asdict(config),
            "primary": primary,
            "primary_shots": shots,
            "similarity": {name: each.pool.encoder for name, each in similar.items()},
            "policies": {
                name: _describe(opened, spaces[name]) for name, opened in policies.items()
            },
            "oracle": _oracle_definition(config, nearest),
            "intervals": INTERVALS,
        }
        if more_arms:
            decided["arms"] = [each.describe() for each in configured]
        if output_path is not None and output_path.exists() and not overwrite:
            ids = [query.id for query in queries]
            _check_unfinished(output_path, decided, ids, accept_changed)
        return decided

    def open_journal(path: Path) -> Journal:
        meta = {**decide(), "window": session.window}
        ids = [query.id for query in queries]
        return Journal(path, meta, ids, overwrite=overwrite, take_over=False, accept=accept_changed)

    def judge(trials: Sequence[Trial]) -> Iterator[tuple[int, Outcome]]:
        decide()
        if output_path is not None:
            open_journal(output_path).close()  # another's is refused
        for index, outcome in session.judge().judge(trials):
            session.observer.trial(outcome)
            yield index, outcome

    training = _training(session, queries, similar[nearest], config, judge)
    if config.train_options:
        _ = training.queries  # options that do not fit are refused, whatever arms run
    relevant = session.dataset.relevant
    optional = {ANSWER_MATCH}.difference([primary, *named])
    arms = _make_arms(config, similar, policies, spaces, more_arms, nearest, relevant is not None)
    with session.observer.activity("choosing what each arm shows"):
        settings = [
            choose(
                Setting(
                    queries=queries,
                    shots=each,
                    seed=config.seed,
                    space=space,
                    training=training,
                    similar=similar,
                    relevant=relevant and [relevant[query.row] for query in queries],
                ),
                arms,
                optional=optional,
            )
            for each in (0, *sorted(config.shots))
        ]
    decided = decide()
    hits = session.backend.hits
    job = EvaluationJob(session=session, queries=queries, pointers=pointers_to_ask(settings))
    journal = None if output_path is None else open_journal(output_path)
    asked, earlier = _ask(job, journal)
    if earlier:
        decided = {**decided, EARLIER: earlier}
    measured = [measure(each, arms, asked, session.metric) for each in settings]
    return Evaluation(
        settings=decided,
        query_ids=tuple(query.id for query in queries),
        measured=tuple(measured),
        records=asked.records,
        conclusions=conclude(measured, primary, shots),
        leakage=_leakage(queries, pool, policies),
        training_calls={
            (each.shots, name): calls
            for each in settings
            for name, calls in each.training_calls.items()
        },
        policies=list(policies),
        left_out={name: why for each in settings for name, why in each.left_out.items()},
        trials=len(asked.accuracies),
        failed=asked.failed,
        first_failure=asked.first_failure,
        from_cache=session.backend.hits - hits,
    )


def _space_of(
    opened: OpenedPolicy, session: Session, queries: Sequence[Example], known: Iterable[Space]
) -> Space:
    """The embeddings in which a policy chooses: by its own encoder, unless files were given.

    known: embeddings that there are already.
    """
    own, given = opened.encoder, session.options
    same = next((each for each in known if each.pool.encoder == own.fingerprint), None)
    if same is not None:
        return same
    if own.name is None or given.query_emb is not None or given.cand_emb is not None:
        return Space(*session.embeddings(queries, own))
    return Space(*session.encoded(queries, own))


def _training(
    session: Session,
    queries: Sequence[Example],
    space: Space,
    config: EvaluateConfig,
    judge: Callable[[Sequence[Trial]], Iterable[tuple[int, Outcome]]],
) -> Training:
    """What arms may learn from if `queries` are evaluated; `space` is where retrievers compare."""
    pool, dataset = session.dataset.pool, session.options.dataset

    def load() -> Sequence[Example]:
        if not config.train_options:
            _check_apart(pool, queries, "the pool, which arms learn from")
            return pool
        options = {**dataset.options, **config.train_options}
        loaded: Dataset = replace(dataset, options=options).configure("dataset").create()
        check_training_queries(loaded.queries, queries, "--train-opt")
        return loaded.queries

    def embed(examples: Sequence[Example]) -> Tensor:
        if examples is pool:
            return space.pool.embeddings
        maker = EncoderInfo.of(space.pool)
        if maker.name is None:
            raise InputError(
                "the queries of --train-opt have no embeddings: give --encoder in place of files"
            )
        vectors, of_same = session.encoded(examples, maker)
        maker.check(of_same.encoder, "--query-emb and --cand-emb")
        return vectors

    return Training(load=load, pool=pool, metric=session.metric, embed=embed, judge=judge)


def check_training_queries(
    learned: Sequence[Example], evaluated: Sequence[Example], option: str
) -> None:
    """Raise InputError if there are no queries to learn from, or if one or its image is evaluated.

    option: the option that decides these queries, for messages.
    """
    if not learned:
        raise InputError(f"{option}: with these options the dataset has no queries")
    ids = {query.id for query in evaluated}
    both = [each.id for each in learned if each.id in ids]
    if both:
        raise InputError(
            f"{option}: {len(both):,} queries to learn from are evaluated (such as {both[0]}): "
            "arms may learn from others only"
        )
    _check_apart(learned, evaluated, option)


def _check_apart(learned: Sequence[Example], queries: Sequence[Example], where: str) -> None:
    """Raise InputError if an example that arms may learn from has the image of a query."""
    by_image = AllowedRows(learned)
    sharing = [query.id for query in queries if by_image.with_image(query)]
    if sharing:
        raise InputError(
            f"{where}: the images of {len(sharing):,} evaluated queries (such as {sharing[0]}) "
            "are among its own: name queries with other images by --train-opt KEY=VALUE"
        )


def _make_arms(
    config: EvaluateConfig,
    similar: Mapping[str, Space],
    policies: Mapping[str, OpenedPolicy],
    spaces: Mapping[str, Space],
    more: Sequence[PluginRef],
    nearest: str,
    attainable: bool,
) -> dict[str, Arm]:
    """Arms by name, in the order of the table; each may build on those before it."""
    create = registry().create
    arms: dict[str, Arm] = {
        ZERO_SHOT: create("arm", "zero-shot"),
        RANDOM: create("arm", "random", {"seeds": config.random_seeds}),
        **{name: create("arm", "similarity", {"of": name}) for name in similar},
        ANSWER_MATCH: create("arm", ANSWER_MATCH),
        **{
            name: PolicyArm(opened.policies, opened.training_calls, space=spaces[name])
            for name, opened in policies.items()
        },
    }
    for name, opened in policies.items():
        selectors = [each for each in opened.policies if isinstance(each, SelectorPolicy)]
        if len(selectors) == len(opened.policies) and any(each.can_stop for each in selectors):
            for number in range(1, max(config.shots) + 1):
                always = f"{name} always {number}"
                if always in policies:
                    raise InputError(f"policy {always!r}: the name of another arm; choose one")
                arms[always] = NumberArm(
                    opened.policies, number, opened.training_calls, space=spaces[name]
                )
    for each in more:
        if each.name in arms and each.name != ANSWER_MATCH:
            raise InputError(f"arm {each.name}: there is one of that name")
        arms[each.name] = each.configure("arm").create()
    for name in (nearest, *policies):
        arms[VOTE + name] = create("arm", "vote", {"arm": name})
        arms[VOTE + name].training_calls = arms[name].training_calls
    oracle = {"random": config.oracle_random, "retrieval": config.oracle_retrieval}
    arms[ORACLE] = create("arm", "oracle", oracle)
    if attainable:
        arms[ATTAINABLE] = create("arm", "attainable")
    return arms


def _ask(job: EvaluationJob, journal: Journal | None) -> tuple[Asked, list[dict[str, Any]]]:
    """Ask every query, or what an interrupted evaluation left.

    Also returns the plugins and inputs before changes that were accepted.
    """
    session = job.session
    size, number = session.window, len(job.queries)
    asked = Asked()
    earlier: list[dict[str, Any]] = []
    start = partial(session.observer.start, number, asked=lambda: session.backend.asked)
    if journal is None:
        start()
        records: dict[int, bytes] = {}
        for found in run_windows(job, size, session, queries=range(number)):
            records |= {index: encode_record(record) for index, record in found.items()}
        for index in range(number):
            asked.add(index, json.loads(records.pop(index)))
    else:
        with journal:
            start(len(journal))
            deque(run_windows(job, size, session, journal), maxlen=0)
            for index, record in enumerate(journal.records()):
                asked.add(index, record)
            earlier = journal.earlier
    return asked, earlier


def _check_unfinished(
    path: Path, decided: Mapping[str, Any], query_ids: Sequence[str], accept: Collection[Change]
) -> None:
    """Raise AlreadyFinished for the file of the same evaluation, InputError for another file."""
    try:
        before = json.loads(path.read_bytes())
        settings, asked = before["settings"], before["query_ids"]
        summary = {key: before[key] for key in Evaluation.SUMMARY}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: exists and is not an evaluation ({first_line(error)}): name another "
            "--output-path, or replace it with --overwrite"
        ) from error
    check_same_run(settings, decided, path, "exists, and is another evaluation's", accept)
    if asked == list(query_ids):
        raise AlreadyFinished(path, summary)


INTERVALS = {
    "differences": "paired, adjusted Wald: two queries added, one won and one lost wholly",
    "shares": "Fieller, with the same two queries added",
    "smallest_gap": statistics.SMALLEST_GAP,
    "primary_level": conclusions.PRIMARY_LEVEL,
    "joint_level": conclusions.JOINT_LEVEL,
    "correction": "Bonferroni",
}


def draw_queries(queries: Sequence[Example], limit: int | None, seed: int) -> Sequence[Example]:
    """A random subset in the order of `queries`; a smaller one is part of a larger one."""
    if limit is None or limit >= len(queries):
        return queries
    order = random_source(seed, "", "queries").permutation(len(queries))
    return [queries[row] for row in sorted(order[:limit].tolist())]


def _primary_shots(primary: OpenedPolicy | None, shots: Sequence[int]) -> int:
    """The number it was trained at if that is asked for, else the first one asked for."""
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
    except InputError:  # its trials fail and say why
        return None


def _describe(opened: OpenedPolicy, space: Space) -> dict[str, Any]:
    described = [
        (isinstance(each, SelectorPolicy) and describe_policy(each)) or {}
        for each in opened.policies
    ]
    return {
        "encoder": space.pool.encoder,
        **(described[0] if len(described) == 1 else {"seeds": described}),
    }


def _oracle_definition(config: EvaluateConfig, nearest: str) -> str:
    return (
        f"the best of {config.oracle_random + config.oracle_retrieval} pointers a query, "
        f"{config.oracle_random} random ones and the {config.oracle_retrieval} first by {nearest} "
        "similarity, whatever arms run"
    )
