"""`pointer-rl train --online`: propose with the policy, ask, learn from everything so far, repeat.

A round takes queries that have not been asked, lets the best policy so far propose pointers for
them, and has the backend answer, through the response cache. The answers are kept as RL data in
rounds/round-N.json, from which an interrupted run continues. Then RCE and GRPO learn from the
groups of all rounds, and of the logged data if there are any. As long as there is no group with
different rewards to train on, or none to hold out, rounds only ask.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

import pointer_rl_schemas
from pointer_rl.datasets.leakage import AllowedRows, image_content
from pointer_rl.devices import resolve_device
from pointer_rl.errors import InputError
from pointer_rl.records.shards import WINDOW
from pointer_rl.selectors import SelectorPolicy
from pointer_rl.selectors.bundle import DataFile
from pointer_rl.session.candidates import CandidateJob
from pointer_rl.session.journal import Journal
from pointer_rl.session.observer import Observer
from pointer_rl.session.resolve import describe_policy
from pointer_rl.session.session import PluginRef, Session, SessionOptions
from pointer_rl.session.windows import due_windows, run_windows
from pointer_rl.train.config import TrainConfig
from pointer_rl.train.groups import Groups
from pointer_rl.train.learner import frozen
from pointer_rl.train.run import (
    CHECKPOINT,
    ROUNDS,
    Output,
    Recorder,
    TrainResult,
    check_rewarded,
    check_teaches,
    finish,
    identity,
)
from pointer_rl.train.sources import Source, embedded, start_policy
from pointer_rl.train.trainer import SPLIT_SEED, Trainer, round_stages, split_by_image
from pointer_rl.types import Example, Executor, Pool

PROBE = "probe"
"""The generator that proposes. Its pointers differ in one row, so that few of them per query teach
much."""


@dataclass(frozen=True, kw_only=True)
class OnlineConfig:
    """What an online run asks."""

    max_calls: int
    """Most trials in all rounds. Cached ones count too, so that a run does not depend on the cache.
    """
    rounds: int = 4
    pointers: int = 4
    """Pointers per query of a round: probes of the rows that the policy ranks highest."""
    rce_epochs: int = 8
    """RCE epochs in a round."""
    grpo_epochs: int = 2

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.pointers < 2:
            raise InputError("rounds starts at 1, and a query needs at least 2 pointers to compare")
        if self.queries < 1:
            raise InputError(
                f"{self.max_calls} calls are too few for {self.rounds} rounds of {self.pointers} "
                "pointers a query: raise --max-calls, or lower --rounds"
            )

    @property
    def queries(self) -> int:
        """Queries in a round."""
        return self.max_calls // (self.rounds * self.pointers)


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
    reward: PluginRef = PluginRef("hard_plus_soft")
    shots: int | None = None
    """Demonstrations in a pointer; None takes the number in `data`, or 2 without data."""
    sft_ckpt: Path | None = None
    executor: PluginRef = PluginRef("in-process")


def run_online(run: OnlineRun, observer: Observer = Observer()) -> TrainResult:
    """Learn while asking, and write the bundle. However the run ends, the same run continues it.

    Raises InputError, before the first trial, for anything that is missing or does not fit, and at
    the end if no round taught anything.
    """
    if run.config.grpo_on == "sampled":
        raise InputError("--grpo-on sampled: online rounds ask probes, which no policy draws")
    if run.config.per_query_pool:
        raise InputError("--own-pools: online learning proposes from the whole pool")
    session = Session(run.session, observer)
    executor: Executor = run.executor.configure("executor").create()
    session.check_answers(session.queries)
    embeddings, pool = session.embeddings(session.dataset.queries)
    about = session.describe_dataset(session.queries)
    source = embedded(session.dataset, embeddings, pool, about)
    logged = None if run.data is None else source.read(run.data, run.reward)
    images = _images(session)
    groups = None
    if logged is not None:
        check_rewarded(logged)
        groups = Groups.of(logged, run.shots).with_images(images)
        check_teaches(logged, groups)
    shots = run.shots or (2 if groups is None else groups.shots)
    AllowedRows(session.dataset.pool).check(session.queries, shots)
    start = start_policy(run.sft_ckpt, source, run.config)
    backend = session.backend
    run.output.prepare(run.data, run.sft_ckpt)
    asked = session.describe(session.queries)
    decided = identity(
        run.config,
        source,
        SelectorPolicy(start),
        data=logged and logged.sha256,
        reward=run.reward.name,
        reward_options=dict(run.reward.options),
        shots=shots,
        backend=backend.fingerprint,
        **{name: asked[name] for name in ("dataset", "prompt", "metric", "decoding")},
        online=asdict(run.online),
    )
    asking = _Asking(run, shots, session, source, pool, executor)
    observer.start(run.online.rounds * run.online.queries)
    with ExitStack() as stack:
        record = stack.enter_context(Recorder(run.output, observer))
        device = resolve_device(run.session.device or "auto")
        path = run.output.folder / CHECKPOINT
        trainer = Trainer(start, run.config, device, path, decided, record.epoch)
        record.log = trainer.log
        # A round may be written before anything is learned, and belongs to this run alone.
        trainer.save()
        done = 0
        if groups is not None:
            stages = round_stages(run.config, 0)
            trainer.fit(groups, stages, first=0)
            done = len(stages)
        online = run.online
        of_round = replace(run.config, rce_epochs=online.rce_epochs, grpo_epochs=online.grpo_epochs)
        known = set() if groups is None else set(groups.ids)
        for number in range(1, run.online.rounds + 1):
            queries = asking.queries(number, known)
            path = run.output.folder / ROUNDS / f"round-{number:02}.json"
            if not path.exists():
                knows = bool(trainer.log) or run.sft_ckpt is not None
                policy = SelectorPolicy(frozen(trainer.best), device)
                asking.ask(path, number, queries, policy, knows)
            else:
                observer.finish(len(queries))
            fresh = Groups.of(source.read(path, run.reward), shots).with_images(images)
            groups = fresh if groups is None else groups.joined(fresh)
            known |= {query.id for query in queries}
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
        raise InputError(
            f"nothing was learned in {online.rounds} rounds: {missing}; their trials are in "
            f"{run.output.folder / ROUNDS}: raise --max-calls or --pointers, with --overwrite"
        )
    data = None if logged is None else DataFile(name=logged.path.name, sha256=logged.sha256)
    written = finish(trainer, source, groups, run.output.folder, data, run.sft_ckpt)
    return TrainResult(run.output.folder, trainer.log, trainer.kept, unchanged=not written)


def _missing(groups: Groups, config: TrainConfig) -> InputError | None:
    """Why the groups cannot be learned from yet; None if they can."""
    try:
        split_by_image(
            groups,
            config.held_out,
            SPLIT_SEED,
            include_zero_variance=config.include_zero_variance,
        )
    except InputError as error:
        return error
    return None


def _images(session: Session) -> dict[str, str]:
    """Query id → its image's id or, unless all queries have one, a key of its content."""
    queries = session.dataset.queries
    if all(query.image_id is not None for query in queries):
        return {query.id: str(query.image_id) for query in queries}
    return {query.id: image_content(query) for query in queries}


class _Asking:
    """Asks rounds of trials."""

    def __init__(
        self,
        run: OnlineRun,
        shots: int,
        session: Session,
        source: Source,
        pool: Pool,
        executor: Executor,
    ) -> None:
        self._run = run
        self._shots = shots
        self._session = session
        self._source = source
        self._pool = pool
        self._executor = executor

    def queries(self, number: int, known: set[str]) -> Sequence[Example]:
        """The queries of a round, in random order; queries that were asked before come last."""
        every = self._session.queries
        rng = np.random.default_rng([self._run.config.seed, number])
        drawn = [every[index] for index in rng.permutation(len(every))]
        drawn.sort(key=lambda query: query.id in known)
        return drawn[: self._run.online.queries]

    def ask(
        self,
        path: Path,
        number: int,
        queries: Sequence[Example],
        policy: SelectorPolicy,
        knows: bool,
    ) -> None:
        """Write a round's RL data.

        A policy that `knows` nothing yet ranks rows no better than chance, so the first round then
        probes the most similar rows. Raises InputError, and keeps nothing, if every trial failed.
        """
        ranked_by = "policy" if knows else "similarity"
        probe = PluginRef(PROBE, {"num": self._run.online.pointers, "by": ranked_by})
        # Each round draws anew, also for a query that was asked before.
        seed = (self._run.config.seed + 1) * 1_000_003 + number
        rows = {id_: row for row, id_ in enumerate(self._source.queries.ids or ())}
        job = CandidateJob(
            session=self._session,
            queries=queries,
            embeddings=self._source.queries.vectors[[rows[query.id] for query in queries]],
            pool=self._pool,
            policy=policy,
            generators={PROBE: probe},
            shots=self._shots,
            seed=seed,
        )
        meta = {
            "schema_version": pointer_rl_schemas.version("pointer_candidates"),
            **self._session.describe(queries),
            "policy": describe_policy(policy),
            "generators": [probe.configure("generator").describe()],
            "round": number,
            "max_shots" if job.any_length else "shots": self._shots,
            "seed": seed,
            "dedup": job.dedup,
            "window": WINDOW,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        ids = [query.id for query in queries]
        with Journal(path, meta, ids) as journal:
            todo = due_windows(journal, WINDOW, cached=self._session.cache is not None)
            deque(run_windows(job, todo, self._executor, journal, self._session.observer), maxlen=0)
            failures = [
                candidate.get("eval_error")
                for record in journal.records()
                for candidate in record["pointer_candidates"]
            ]
            if all(failures):
                journal.remove()
                raise InputError(
                    f"round {number}: all {len(failures):,} trials failed, the first with: "
                    f"{failures[0]}; the same command asks them again"
                )
            journal.finish()
