"""`pointer-rl train --online`: propose from the policy, ask, learn from all there is, again.

A round takes queries that have not been asked, lets the best policy so far propose pointers for
them, and has the backend answer, through the store of responses. What comes back is kept as RL data
in rounds/round-N.json: a run that was killed reads it there. Then RCE and GRPO learn from the
groups of all rounds, and of the logged data where there are any. Before there is a group with
something to tell to train on and one to hold out, a round is only asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from pointer_rl.datasets.leakage import AllowedRows, image_content
from pointer_rl.devices import resolve_device
from pointer_rl.errors import InputError
from pointer_rl.generate.pipeline import GenerateConfig, Generation, generate
from pointer_rl.generate.run import SCHEMA_VERSION
from pointer_rl.records.formats import open_writer
from pointer_rl.records.records import to_record
from pointer_rl.registry import registry
from pointer_rl.selectors import SelectorPolicy
from pointer_rl.selectors.bundle import DataFile
from pointer_rl.session.judge import Judge
from pointer_rl.session.resolve import describe_policy
from pointer_rl.session.session import Named, TrialOptions, Workbench
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
from pointer_rl.train.trainer import SPLIT_SEED, EpochLine, Trainer, round_stages, split_by_image
from pointer_rl.types import Example, Outcome, Pool

__all__ = ["OnlineConfig", "OnlineRun", "run_online"]


PROBE = "probe"
"""The generator that proposes: the rewards of its pointers differ by one row, so that few of them
for a query teach much."""


@dataclass(frozen=True, kw_only=True)
class OnlineConfig:
    """What is asked while learning."""

    max_calls: int
    """Trials at most, in all rounds; those that the store already answers count too, so that a run
    is the same whatever it holds."""
    rounds: int = 4
    pointers: int = 4
    """Asked for each query of a round: probes of the rows that the policy ranks highest."""
    rce_epochs: int = 8
    """Of a round."""
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
        """Of a round."""
        return self.max_calls // (self.rounds * self.pointers)


@dataclass(frozen=True, kw_only=True)
class OnlineRun:
    """All that decides a run that asks."""

    trials: TrialOptions
    output: Output
    online: OnlineConfig
    config: TrainConfig = TrainConfig()
    """Of the logged data, where there are any."""
    data: Path | None = None
    """RL data to start with."""
    reward: Named = Named("hard_plus_soft")
    shots: int | None = None
    """None: those of `data` or, without, 2."""
    sft_ckpt: Path | None = None


def run_online(
    run: OnlineRun,
    on_epoch: Callable[[EpochLine], object] = lambda line: None,
    on_start: Callable[[int], object] = lambda queries: None,
    on_query: Callable[[], object] = lambda: None,
    on_outcome: Callable[[Outcome], object] = lambda outcome: None,
    on_tied: Callable[[str], object] = lambda sentence: None,
) -> TrainResult:
    """Learn while asking, and write the bundle.

    `on_tied` is told, in words, of a round that teaches nothing.
    Raises InputError, before the first trial, for what is missing or does not fit; and at the end
    where no round taught anything.
    """
    if run.config.grpo_on == "sampled":
        raise InputError("--grpo-on sampled: online rounds ask probes, which no policy draws")
    if run.config.own_pools:
        raise InputError("--own-pools: online learning proposes from the whole pool")
    workbench = Workbench(run.trials)
    workbench.check_answers(workbench.queries)
    embeddings, pool = workbench.embeddings(workbench.dataset.queries)
    about = workbench.describe_dataset(workbench.queries)
    source = embedded(workbench.dataset, embeddings, pool, about)
    logged = None if run.data is None else source.read(run.data, run.reward)
    images = _images(workbench)
    groups = None
    if logged is not None:
        check_rewarded(logged)
        groups = Groups.of(logged, run.shots).with_images(images)
        check_teaches(logged, groups)
    shots = run.shots or (2 if groups is None else groups.shots)
    allowed = AllowedRows(workbench.dataset.pool)
    allowed.check(workbench.queries, shots)
    start = start_policy(run.sft_ckpt, source, run.config.sizes, run.config.seed)
    judge = workbench.judge()
    run.output.prepare(run.data, run.sft_ckpt)
    asked = workbench.describe(workbench.queries, judge)
    decided = identity(
        run.config,
        source,
        SelectorPolicy(start),
        data=logged and logged.sha256,
        reward=run.reward.name,
        reward_options=dict(run.reward.options),
        shots=shots,
        backend=judge.backend.fingerprint,
        **{name: asked[name] for name in ("dataset", "prompt", "metric", "decoding")},
        online=asdict(run.online),
    )
    asking = _Asking(run, shots, workbench, source, pool, allowed, judge)
    on_start(run.online.rounds * run.online.queries)
    with ExitStack() as stack:
        record = stack.enter_context(Recorder(run.output, on_epoch))
        device = resolve_device(run.trials.device or "auto")
        path = run.output.folder / CHECKPOINT
        trainer = Trainer(start, run.config, device, path, decided, record.epoch)
        record.log = trainer.log
        # A round may be written before anything is learned, and is for this run alone.
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
                asking.ask(path, number, queries, policy, knows, on_query, on_outcome)
            fresh = Groups.of(source.read(path, run.reward), shots).with_images(images)
            groups = fresh if groups is None else groups.joined(fresh)
            known |= {query.id for query in queries}
            missing = _missing(groups, run.config)
            if not fresh.spread.any():
                on_tied(f"round {number}: every group is tied: its trials teach nothing")
            elif missing is not None:
                on_tied(f"round {number}: too little to learn from yet: {missing}")
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
    finish(trainer, source, groups, run.output.folder, data, run.sft_ckpt)
    return TrainResult(run.output.folder, trainer.log, trainer.kept)


def _missing(groups: Groups, config: TrainConfig) -> InputError | None:
    """Why the groups cannot be learned from yet."""
    try:
        split_by_image(groups, config.held_out, SPLIT_SEED, imitate=config.imitate)
    except InputError as error:
        return error
    return None


def _images(workbench: Workbench) -> dict[str, str]:
    """What tells the queries' images apart: ids where all have one, else their content."""
    queries = workbench.dataset.queries
    if all(query.image_id is not None for query in queries):
        return {query.id: str(query.image_id) for query in queries}
    return {query.id: image_content(query) for query in queries}


class _Asking:
    """Rounds of trials."""

    def __init__(
        self,
        run: OnlineRun,
        shots: int,
        workbench: Workbench,
        source: Source,
        pool: Pool,
        allowed: AllowedRows,
        judge: Judge,
    ) -> None:
        self._run = run
        self._shots = shots
        self._workbench = workbench
        self._source = source
        self._pool = pool
        self._allowed = allowed
        self._judge = judge

    def queries(self, number: int, known: set[str]) -> Sequence[Example]:
        """Those of a round, in random order: not asked yet or, once these are used up, again."""
        every = self._workbench.queries
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
        on_query: Callable[[], object],
        on_outcome: Callable[[Outcome], object],
    ) -> None:
        """Write a round's RL data: the whole round or nothing.

        Raises InputError, and keeps nothing, where every trial failed.
        A policy that `knows` nothing yet ranks rows no better than chance: the first round then
        probes the most similar ones.
        """
        ranked_by = "policy" if knows else "similarity"
        options = {"num": self._run.online.pointers, "by": ranked_by}
        probe = registry().configure("generator", PROBE, options)
        # Each round draws anew, for a query that was asked before too.
        seed = (self._run.config.seed + 1) * 1_000_003 + number
        config = GenerateConfig(shots=self._shots, seed=seed)
        rows = {id_: row for row, id_ in enumerate(self._source.queries.ids or ())}
        vectors = self._source.queries.vectors[[rows[query.id] for query in queries]]
        meta = {
            "schema_version": SCHEMA_VERSION,
            **self._workbench.describe(queries, self._judge),
            "policy": describe_policy(policy),
            "generators": [probe.describe()],
            "round": number,
            **asdict(config),
        }
        failures: list[str | None] = []
        with open_writer(path, meta) as writer:
            generation = Generation(
                queries,
                vectors,
                self._pool,
                self._allowed,
                policy,
                {PROBE: probe.create()},
                self._judge,
                config,
            )
            for judged in generate(generation, on_outcome):
                record = to_record(
                    judged.query,
                    judged.candidates,
                    self._workbench.metric.normalise,
                    judged.excluded,
                )
                writer.write(judged.query.id, record)
                failures += [outcome.failure for _, outcome in judged.candidates]
                on_query()
            if all(failures):
                raise InputError(
                    f"round {number}: all {len(failures):,} trials failed, the first with: "
                    f"{failures[0]}; --resume asks them again"
                )
