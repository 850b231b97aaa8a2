"""`pointer-rl train --online`: propose with the policy, ask, learn from everything so far, repeat.

A round takes queries that have not been asked, lets the best policy so far propose pointers for
them, and has the backend answer, through the response cache. The answers are kept as RL data in
rounds/round-N.json, from which an interrupted run continues. Then RCE and GRPO learn from the
groups of all rounds, and of the logged data if there are any. Logged data are learned from before
the first round, unless the policy that the run starts from was trained on them. As long as there is
no group with different rewards to train on, or none to hold out, rounds only ask.

A search may need fewer trials than its budget. A round therefore asks in waves: as many queries as
could not exceed its calls, then as many as what these left over allows, and so on. Which queries
are asked follows from the outcomes alone, wherever and in whatever order windows run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import pointer_rl_schemas
from pointer_rl.datasets.identity import image_content
from pointer_rl.datasets.leakage import AllowedRows
from pointer_rl.errors import InputError, NothingToLearnError
from pointer_rl.records.fields import has_failed
from pointer_rl.records.provenance import Change, changeable
from pointer_rl.registry import registry
from pointer_rl.selectors import SelectorPolicy
from pointer_rl.selectors.bundle import DataFile, encoder_of
from pointer_rl.session.candidates import CandidateJob
from pointer_rl.session.journal import Journal, earlier_meta
from pointer_rl.session.observer import Observer
from pointer_rl.session.resolve import describe_policy, selector_entries
from pointer_rl.session.session import PluginRef, Session, SessionOptions
from pointer_rl.session.windows import affordable, run_windows
from pointer_rl.train.config import TrainConfig
from pointer_rl.train.groups import Groups
from pointer_rl.train.run import (
    ROUNDS,
    Output,
    TrainResult,
    check_may_stop,
    check_rewarded,
    check_teaches,
    finish,
    has_learned,
    identity,
    recorded_trainer,
    report_left_out,
)
from pointer_rl.train.sources import embedded, named_queries, start_policy
from pointer_rl.train.trainer import Trainer, round_stages, split_by_image
from pointer_rl.types import Example, SearchGenerator

PROBE = "probe"
"""The generator of online rounds, unless a search is named. Its pointers differ in one row, so that
a few per query show which row matters."""


@dataclass(frozen=True, kw_only=True)
class OnlineConfig:
    """What an online run asks."""

    max_calls: int
    """Most trials in all rounds. Cached ones count too, so that a run does not depend on the cache.
    """
    rounds: int = 4
    pointers: int = 4
    """Pointers per query of a round: probes of the rows that the policy ranks highest. A search
    proposes as many as it needs, within its own budget."""
    rce_epochs: int = 8
    """RCE epochs in a round."""
    grpo_epochs: int = 2

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.pointers < 2:
            raise InputError("rounds starts at 1, and a query needs at least 2 pointers to compare")

    @property
    def calls(self) -> int:
        """Most trials in a round."""
        return self.max_calls // self.rounds


@dataclass(frozen=True, kw_only=True)
class OnlineRun:
    """Everything that decides an online run."""

    session: SessionOptions
    output: Output
    online: OnlineConfig
    config: TrainConfig = TrainConfig()
    """How to learn from the logged data, if there are any; rounds change only the epochs."""
    data: Path | None = None
    """RL data to start from."""
    search: PluginRef | None = None
    """A search that proposes in every round, instead of probes."""
    reward: PluginRef = PluginRef("hard_plus_soft")
    score_answers: bool = False
    """Also ask for the probability of the annotators' answers, which searches and rewards use."""
    shots: int | None = None
    """Demonstrations in a pointer; None takes the number in `data`, or 2 without data."""
    sft_ckpt: Path | None = None


def run_online(run: OnlineRun, observer: Observer = Observer()) -> TrainResult:
    """Learn while asking, and write the bundle. However the run ends, the same run continues it.

    Raises InputError, before the first trial, for anything that is missing or does not fit, and at
    the end if no round taught anything.
    """
    if run.config.grpo_on == "sampled":
        raise InputError("--grpo-on sampled: online rounds ask probes, which no policy draws")
    if run.config.per_query_pool:
        raise InputError("--own-pools: online learning proposes from the whole pool")
    with run.output.locked():
        return _run_online(run, _most_pointers(run), observer)


def _run_online(run: OnlineRun, most: int, observer: Observer) -> TrainResult:
    earlier = earlier_meta(_round_path(run, 1), overwrite=run.output.overwrite)
    session = Session(run.session, observer, earlier)
    session.check_answers(session.queries)
    queries = named_queries(run.data, session.dataset.queries, session.queries)
    embeddings, pool = session.embeddings(queries, encoder_of(run.sft_ckpt), "the policy")
    row_of = {query.id: row for row, query in enumerate(queries)}
    about = session.describe_dataset(session.queries)
    source = embedded(queries, session.hasher, embeddings, pool, about)
    logged = None if run.data is None else source.read(run.data, run.reward)
    images = _images(session)
    groups, price = None, run.config.demonstration_price
    if logged is not None:
        source.compare(logged)
        check_rewarded(logged)
        report_left_out(logged, observer)
        groups = Groups.of(logged, run.shots, demonstration_price=price).with_images(images)
        check_teaches(logged, groups)
    shots = run.shots or (2 if groups is None else groups.shots)
    AllowedRows(session.dataset.pool).check(session.queries, shots)
    start = start_policy(run.sft_ckpt, source, run.config)
    check_may_stop(start, groups, run.config, observer)
    backend = session.backend
    run.output.prepare(run.data, run.sft_ckpt)
    search = [] if run.search is None else [run.search.configure("generator").entry]
    entries = [*selector_entries([SelectorPolicy(start)]), *search]
    entries.append(run.reward.configure("reward").entry)
    asked = session.describe(session.queries, *entries, embedded=(embeddings, pool))
    decided = identity(
        run.config,
        source,
        SelectorPolicy(start),
        data=logged and logged.sha256,
        reward=run.reward.name,
        reward_options=dict(run.reward.options),
        shots=shots,
        score_answers=run.score_answers,
        backend=backend.fingerprint,
        **{name: asked[name] for name in ("dataset", "prompt", "metric", "decoding")},
        **changeable(asked),
        online={
            **asdict(run.online),
            "search": run.search and run.search.configure("generator").describe(),
        },
    )
    resumed = 0  # trials of the rounds that were finished before

    def left() -> int:
        return max(0, run.online.max_calls - resumed - backend.asked - backend.hits)

    observer.start(None, asked=lambda: backend.asked, left=left)
    with recorded_trainer(
        start, run.config, run.session.device, run.output, decided, observer
    ) as trainer:
        # A round may be written before anything is learned, and belongs to this run alone.
        trainer.save()
        done = 0
        learned_from = [] if logged is None else [logged]
        if logged is not None and groups is not None:
            stages = round_stages(run.config, 0)
            if has_learned(run.sft_ckpt, logged):
                observer.say(f"the policy has learned from {logged.path.name} already")
                trainer.skip(stages)
            else:
                trainer.fit(groups, stages, first=0)
            done = len(stages)
        online = run.online
        of_round = replace(run.config, rce_epochs=online.rce_epochs, grpo_epochs=online.grpo_epochs)
        known = set() if groups is None else set(groups.ids)
        for number in range(1, online.rounds + 1):
            path = _round_path(run, number)
            before = path.exists()
            if not before:
                asking = _round_queries(session, run, number, known)
                policy = SelectorPolicy(trainer.best, trainer.device)
                # A policy that knows nothing yet ranks rows no better than chance.
                generator = _generator(run, bool(trainer.log) or run.sft_ckpt is not None)
                _ask_round(
                    path,
                    number,
                    CandidateJob(
                        session=session,
                        queries=asking,
                        embeddings=embeddings[[row_of[query.id] for query in asking]],
                        pool=pool,
                        policy=policy,
                        generators={generator.name: generator},
                        shots=shots,
                        # Each round draws anew, also for a query that was asked before.
                        seed=(run.config.seed + 1) * 1_000_003 + number,
                        score_answers=run.score_answers,
                    ),
                    online.calls,
                    most,
                    describe_policy(policy),
                    run.output.accept_changed,
                )
            data = source.read(path, run.reward)
            _recognise(trainer, path, data.sha256)
            report_left_out(data, observer)
            learned_from.append(data)
            fresh = Groups.of(data, shots, demonstration_price=price).with_images(images)
            groups = fresh if groups is None else groups.joined(fresh)
            known |= set(fresh.ids)
            if before:
                resumed += data.trials or 0
            missing = _missing(groups, run.config)
            if fresh.zero_variance.all():
                observer.say(f"round {number}: every group has zero variance and taught nothing")
            elif missing is not None:
                observer.say(f"round {number}: too little to learn from yet: {missing}")
            if missing is not None:
                continue
            stages = round_stages(of_round, number)
            trainer.fit(groups, stages, first=done)
            done += len(stages)
    assert groups is not None
    if not trainer.log:
        raise NothingToLearnError(
            f"nothing was learned in {online.rounds} rounds: {missing}; their trials are in "
            f"{run.output.folder / ROUNDS}: raise --max-calls or --pointers, with --overwrite"
        )
    file = None if logged is None else DataFile(name=logged.path.name, sha256=logged.sha256)
    written = finish(trainer, source, groups, run.output.folder, file, learned_from, run.sft_ckpt)
    return TrainResult(run.output.folder, trainer.log, trainer.kept, unchanged=not written)


def _recognise(trainer: Trainer, path: Path, sha256: str) -> None:
    """Note a round's file in the checkpoint; raise InputError if its content was another."""
    known = trainer.state.rounds.get(path.name)
    if known not in (None, sha256):
        raise InputError(
            f"{path}: changed or damaged since it was written: put a copy in its place, or start "
            "over with --overwrite"
        )
    if known is None:
        trainer.state.rounds[path.name] = sha256
        trainer.save()


def _missing(groups: Groups, config: TrainConfig) -> NothingToLearnError | None:
    """Why the groups cannot be learned from yet; None if they can."""
    try:
        split_by_image(groups, config)
    except NothingToLearnError as error:
        return error
    return None


def _images(session: Session) -> dict[str, str]:
    """Query id → its image's id or, unless all queries have one, a key of its content."""
    queries = session.dataset.queries
    if all(query.image_id is not None for query in queries):
        return {query.id: str(query.image_id) for query in queries}
    return {query.id: image_content(query) for query in queries}


def _most_pointers(run: OnlineRun) -> int:
    """Most pointers per query. Raises InputError if not even one query a round can be asked."""
    most = run.online.pointers
    if run.search is not None:
        search = run.search.configure("generator").create()
        if not isinstance(search, SearchGenerator):
            raise InputError(
                f"--generator {run.search.name}: it proposes once; online rounds take probes or a "
                "search, such as first-success"
            )
        most = search.budget
    if run.online.calls < most:
        raise InputError(
            f"{run.online.max_calls} calls are too few for {run.online.rounds} rounds of {most} "
            "pointers a query: raise --max-calls, or lower --rounds"
        )
    return most


def _round_path(run: OnlineRun, number: int) -> Path:
    return run.output.folder / ROUNDS / f"round-{number:02}.json"


def _generator(run: OnlineRun, knows: bool) -> PluginRef:
    """What proposes in a round. If it ranks rows, then by the policy once that knows something."""
    chosen = run.search or PluginRef(PROBE, {"num": run.online.pointers})
    if not registry().find("generator", chosen.name).has_option("by"):
        return chosen
    by = "policy" if knows else "similarity"
    return PluginRef(chosen.name, {"by": by, **chosen.options})


def _round_queries(session: Session, run: OnlineRun, number: int, known: set[str]) -> list[Example]:
    """The queries that a round may ask, in random order; those that were asked before come last."""
    rng = np.random.default_rng([run.config.seed, number])
    drawn = [session.queries[index] for index in rng.permutation(len(session.queries))]
    drawn.sort(key=lambda query: query.id in known)
    return drawn[: run.online.calls]


def _ask_round(
    path: Path,
    number: int,
    job: CandidateJob,
    calls: int,
    most: int,
    policy: Mapping[str, Any] | None,
    accept_changed: Collection[Change],
) -> None:
    """Write a round's RL data, of as many of the job's queries as the calls suffice for.

    calls: most trials in the round; most: those of one query. Raises InputError, and keeps nothing,
    if every trial failed.
    """
    session = job.session
    generators = [each.configure("generator") for each in job.generators.values()]
    described = session.describe(
        job.queries, *(each.entry for each in generators), embedded=(job.embeddings, job.pool)
    )
    del described["dataset"]["num_queries"]  # how many are asked shows as they are asked
    meta = {
        "schema_version": pointer_rl_schemas.version("pointer_candidates"),
        **described,
        "policy": policy,
        "generators": [each.describe() for each in generators],
        "round": number,
        **job.described_shots,
        "seed": job.seed,
        "dedup": job.dedup,
        "window": session.window,
        "score_answers": job.score_answers,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = [query.id for query in job.queries]
    with Journal(path, meta, ids, accept=accept_changed) as journal:
        for wave in affordable(journal, calls, most):
            deque(run_windows(job, session.window, session, journal, queries=wave), maxlen=0)
        asked = [each for record in journal.records() for each in record["pointer_candidates"]]
        if all(map(has_failed, asked)):
            journal.remove()
            raise InputError(
                f"round {number}: all {len(asked):,} trials failed, the first with: "
                f"{asked[0]['eval_error']}; the same command asks them again"
            )
        journal.finish()
