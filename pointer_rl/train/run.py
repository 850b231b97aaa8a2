"""A run of `pointer-rl train` or `pointer-rl sft`: from files to a policy bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pointer_rl.datasets.embeddings import digest_vectors
from pointer_rl.devices import resolve_device
from pointer_rl.errors import InputError, NothingToLearnError
from pointer_rl.files import locked, remove_leftovers, write_text
from pointer_rl.records.beam_dataset import BeamDatasetWithEmbedding
from pointer_rl.records.provenance import PLUGINS, Change
from pointer_rl.registry import Entry, code_of
from pointer_rl.selectors import Selector, SelectorPolicy
from pointer_rl.selectors.bundle import (
    BUNDLE_FILES,
    BundleInfo,
    DataFile,
    is_bundle,
    load_bundle,
    read_query_ids,
    save_bundle,
)
from pointer_rl.selectors.selecting import Policy
from pointer_rl.session.observer import Observer
from pointer_rl.session.resolve import selector_entries
from pointer_rl.session.session import PluginRef
from pointer_rl.train.config import TrainConfig
from pointer_rl.train.groups import Groups
from pointer_rl.train.sources import Source, open_source, start_policy
from pointer_rl.train.trackers import TRACKED, TrackerName, check_trackers, open_trackers
from pointer_rl.train.trainer import (
    AT_START,
    ENOUGH_HELD_OUT,
    EpochLine,
    Trainer,
    imitation,
    round_stages,
)
from pointer_rl.types import NO_ROW

CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.jsonl"
ROUNDS = "rounds"


@dataclass(frozen=True, kw_only=True)
class Output:
    """The folder that a run writes."""

    folder: Path
    overwrite: bool = False
    """Start over; otherwise an interrupted run in the folder is continued."""
    log_to: Collection[TrackerName] = ()
    """Trackers that the metrics of each epoch are also written to."""
    accept_changed: Collection[Change] = ()
    """What of the run may have changed since it began."""

    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes from training into the folder; create it if there is none.

        Raises InputError if one does, and if the folder cannot be written.
        """
        return locked(self.folder / CHECKPOINT)

    def prepare(self, *inputs: Path | None) -> None:
        """Make the folder ready: empty it of the run in it, or keep that to continue.

        Raises InputError if it holds files that would be overwritten but no run, and
        MissingExtraError for a tracker that is not installed, before anything is deleted.
        """
        check_trackers(self.log_to)
        checkpoint, bundle, rounds = (
            self.folder / name for name in (CHECKPOINT, "bundle.json", ROUNDS)
        )
        if self.overwrite:
            self._empty([checkpoint, bundle, rounds], inputs)
        elif not checkpoint.exists():
            written = (self.folder / name for name in (*BUNDLE_FILES, ROUNDS))
            found = next((path for path in written if path.exists()), None)
            if found is not None:
                raise InputError(
                    f"{found}: exists, without the {CHECKPOINT} of a run: name another "
                    "--output-dir, or replace it with --overwrite"
                )
        remove_leftovers(self.folder / ROUNDS)

    def _empty(self, made: Sequence[Path], inputs: Sequence[Path | None]) -> None:
        folder = self.folder.resolve()
        inside = [path for path in inputs if path and path.resolve().is_relative_to(folder)]
        if inside:
            raise InputError(
                f"{inside[0]}: lies in {self.folder}, which --overwrite would empty: give another "
                "--output-dir"
            )
        if any(path.exists() for path in made):
            try:
                for path in (*made, *(self.folder / name for name in (METRICS, *TRACKED))):
                    path.unlink(missing_ok=True) if not path.is_dir() else shutil.rmtree(path)
            except OSError as error:
                raise InputError(f"{path}: cannot be removed ({error.strerror})") from error


@dataclass(frozen=True, kw_only=True)
class TrainRun:
    """Everything that decides a run on logged data."""

    data: Path
    """RL data, or beam data."""
    output: Output
    config: TrainConfig = TrainConfig()
    reward: PluginRef = PluginRef("hard_plus_soft")
    supervised: bool = False
    """Whether beam data is accepted. It has no rewards, so the best policy is chosen by likelihood.
    """
    shots: int | None = None
    """Demonstrations in a pointer; None takes the number in the data."""
    img_emb: Path | None = None
    query_emb: Path | None = None
    cand_emb: Path | None = None
    encoder: PluginRef | None = None
    """What embeds, without files; by default the encoder that the data name, or their dataset's."""
    sft_ckpt: Path | None = None
    """Bundle or checkpoint to start from; None starts from a new selector."""
    device: str | None = None


@dataclass(frozen=True)
class TrainResult:
    """The outcome of a training run."""

    folder: Path
    log: list[EpochLine] = field(repr=False)
    kept: EpochLine = field(repr=False)
    """The metrics of the policy in the bundle."""
    unchanged: bool = False
    """Whether the run was finished before, and nothing was left to do."""

    def policy(self, device: str = "auto") -> Policy:
        """The policy that was kept, as `Policy.load` reads it from the bundle in the folder."""
        return Policy.load(self.folder, device)

    def sentences(self) -> list[str]:
        """Whether held-out groups say that the policy learned, in words.

        For online runs: first the whole run, then the last round alone, both by the same groups.
        """
        start = next(line for line in self.log if line["round"] == self.kept["round"])
        number = self.kept["held_out_queries"]
        if number < ENOUGH_HELD_OUT:
            return [
                f"WARNING: {_queries(number)} held out, too few to say whether it learned or to "
                f"choose an epoch by (at least {ENOUGH_HELD_OUT}): the last one is kept; use more "
                "queries, or a larger --held-out"
            ]
        key = f"held_out_{self.kept['keep_by']}"
        where = f"{self.kept['stage']} epoch {self.kept['epoch']}"
        verdicts = [self._verdict(start[key], where)]
        if self.kept["round"]:
            in_round = f"round {self.kept['round']}"
            verdicts = [f"{in_round}: {verdicts[0]}"]
            if AT_START in start:
                verdicts.insert(0, f"the run: {self._verdict(start[AT_START], in_round)}")
        if self.kept["keep_by"] == "cross_entropy":
            return verdicts
        verdicts[-1] += f"; the best pointers judged have {start['held_out_best']:.3f}"
        equal = start["zero_variance_groups"]
        return [*verdicts, f"{equal:.0%} of the groups have zero variance and taught nothing"]

    def _verdict(self, before: float, where: str) -> str:
        """The change from `before` to the best policy, which was found at `where`.

        It is compared with a random choice too: a start that was worse is easy to improve on.
        """
        keep_by = self.kept["keep_by"]
        after, random = self.kept[f"held_out_{keep_by}"], self.kept[f"held_out_random_{keep_by}"]
        sign = 1 if keep_by == "reward" else -1
        name = f"held-out {'expected reward' if sign == 1 else 'cross-entropy'}"
        about = f"{_queries(self.kept['held_out_queries'])}, where a random choice has {random:.3f}"
        if before == after:
            return f"it learned nothing: no epoch improved on the {name} of {before:.3f} ({about})"
        change = f"{name} {before:.3f} → {after:.3f} ({where}; {about})"
        if sign * after < sign * before:
            return f"it learned nothing: {change}"
        if sign * after <= sign * random:
            return f"no better than a random choice: {change}"
        return change


def _queries(number: int) -> str:
    return f"{number:,} quer{'y' if number == 1 else 'ies'}"


def identity(
    config: TrainConfig,
    source: Source,
    start: SelectorPolicy,
    entries: Sequence[Entry] = (),
    *,
    supervised: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """What decides a run, as plain JSON: only the same run can continue a checkpoint.

    entries: what the run uses besides its selector. supervised: SFT, which has fewer options.
    """
    code = code_of([*selector_entries([start]), *entries])
    decided = {
        **({PLUGINS: code} if code else {}),
        **(_sft_options(config) if supervised else asdict(config)),
        "queries": digest_vectors(source.queries.vectors),
        "pool": digest_vectors(source.pool.vectors),
        "start": start.hash,
        **more,
    }
    plain: dict[str, Any] = json.loads(json.dumps(decided))
    return plain


def _sft_options(config: TrainConfig) -> dict[str, Any]:
    same = ("batch_size", "per_query_pool", "held_out", "seed", "selector", "selector_options")
    return {
        "epochs": config.rce_epochs,
        "lr": config.rce_lr,
        "temperature": config.rce_temperatures[0],
        "keep_by": config.keep_by,
        **{name: getattr(config, name) for name in same},
    }


def _described_reward(reward: PluginRef) -> dict[str, Any]:
    return {"reward": reward.name, "reward_options": dict(reward.options)}


def run_training(run: TrainRun, observer: Observer = Observer()) -> TrainResult:
    """Learn from logged data and write the bundle. However the run ends, the same run continues it.

    Raises InputError, before anything is written, for anything that is missing or does not fit,
    for the folder of another run, and for one that cannot be written.
    """
    with run.output.locked():
        return _run_training(run, observer)


def _run_training(run: TrainRun, observer: Observer) -> TrainResult:
    source = open_source(
        run.data,
        run.img_emb,
        run.query_emb,
        run.cand_emb,
        run.encoder,
        run.sft_ckpt,
        run.device,
        observer,
    )
    data = source.read(run.data, run.reward)
    not_compared = source.compare(data)
    config = run.config
    if not run.supervised:
        check_rewarded(data)
    report_left_out(data, observer)
    if data.kind == "beam":
        config = replace(config, keep_by="cross_entropy")
    groups = Groups.of(
        data,
        run.shots,
        per_query_pool=config.per_query_pool,
        demonstration_price=config.demonstration_price,
    )
    if not config.include_zero_variance:
        check_teaches(data, groups)
    if config.grpo_on == "sampled" and config.grpo_epochs and not groups.sampled.any():
        raise InputError(
            f"{run.data}: GRPO on sampled candidates, and none of these was (gen_method sample): "
            "generate some, or give --grpo-on all"
        )
    start = start_policy(run.sft_ckpt, source, config)
    check_may_stop(start, groups, config, observer)
    run.output.prepare(run.data, run.sft_ckpt)
    decided = identity(
        config,
        source,
        SelectorPolicy(start),
        [run.reward.configure("reward").entry],
        supervised=run.supervised,
        data=data.sha256,
        **({} if data.kind == "beam" else _described_reward(run.reward)),
        **({"not_compared": not_compared} if not_compared else {}),
    )
    with recorded_trainer(start, config, run.device, run.output, decided, observer) as trainer:
        stages = imitation(config) if run.supervised else round_stages(config, 0)
        trainer.fit(groups, stages, first=0)
    file = DataFile(name=run.data.name, sha256=data.sha256)
    written = finish(trainer, source, groups, run.output.folder, file, [data], run.sft_ckpt)
    return TrainResult(run.output.folder, trainer.log, trainer.kept, unchanged=not written)


def check_rewarded(data: BeamDatasetWithEmbedding) -> None:
    """Raise InputError for beam data: its scores are not rewards."""
    if data.kind == "beam":
        raise InputError(f"{data.path}: beam data has no rewards: train with `pointer-rl sft`")


def report_left_out(data: BeamDatasetWithEmbedding, observer: Observer) -> None:
    """Say how many candidates nothing can be learned from, because they have no reward."""
    if data.failed or data.without_reward:
        observer.say(
            f"{data.path.name}: {data.failed:,} candidates whose trial failed and "
            f"{data.without_reward:,} without a reward are left out"
        )


def check_teaches(data: BeamDatasetWithEmbedding, groups: Groups) -> None:
    """Raise NothingToLearnError if the rewards of every group are equal."""
    if groups.zero_variance.all():
        raise NothingToLearnError(
            f"{data.path}: every group has zero variance: the candidates of each of its "
            f"{len(groups):,} queries all have the same reward, so there is nothing to learn; "
            "propose more, and more different, candidates (retrieval, higher temperatures)"
        )


def check_may_stop(
    selector: Selector, groups: Groups | None, config: TrainConfig, observer: Observer
) -> None:
    """Raise InputError for a price that a selector cannot act on; say so of shorter pointers."""
    if selector.can_stop:
        return
    if config.demonstration_price:
        raise InputError(
            "--demonstration-price: this selector always shows as many demonstrations as it is "
            "asked for; train one that may stop (--selector-opt stop=true)"
        )
    if groups is not None and (groups.pointers == NO_ROW).any():
        observer.say(
            "this selector cannot stop: from shorter pointers it learns which rows to show, and "
            "not how many (--selector-opt stop=true)"
        )


def finish(
    trainer: Trainer,
    source: Source,
    groups: Groups,
    folder: Path,
    data: DataFile | None,
    learned_from: Iterable[BeamDatasetWithEmbedding],
    start: Path | None,
) -> bool:
    """Write the bundle of the best policy; False if it already existed.

    A bundle that is there keeps the evaluation that was recorded in it since. The queries that the
    bundle `start` was trained on are added to those of this run.
    """
    seen = read_query_ids(start) if start is not None and is_bundle(start) else ()
    names = ("reward", "random_reward", "best", "cross_entropy", "random_cross_entropy", "queries")
    keys = (*(f"held_out_{name}" for name in names), "zero_variance_groups")
    metrics = {key: trainer.kept[key] for key in keys if key in trainer.kept}
    best = trainer.best
    calls = _calls(start, learned_from)
    known = [each for each in calls.values() if each is not None]
    training = {
        "options": trainer.state.run,
        "metrics": metrics,
        "calls": sum(known) if len(known) == len(calls) else None,
        "calls_by_file": calls,
    }
    if _is_written(folder, best, training):
        return False
    save_bundle(
        folder,
        best,
        source.pool.vectors,
        source.pool_ids,
        BundleInfo(
            shots=groups.shots,
            encoder=source.encoder,
            dataset=source.dataset,
            data=data,
            training=training,
        ),
        list(dict.fromkeys([*seen, *groups.ids])),
    )
    return True


def has_learned(start: Path | None, data: BeamDatasetWithEmbedding) -> bool:
    """Whether a policy that training starts from was trained on this file."""
    return data.sha256 in _calls(start, [])


def _calls(
    start: Path | None, learned_from: Iterable[BeamDatasetWithEmbedding]
) -> dict[str, int | None]:
    """Trials by the hash of the file that has them, those of the starting policy included.

    A file that both have learned from was paid for once. None: unknown.
    """
    before: Mapping[str, int | None] = {}
    if start is not None:
        recorded = load_bundle(start).info.training if is_bundle(start) else {}
        before = recorded.get("calls_by_file", {str(start.name): None})
    return {**before, **{each.sha256: each.trials for each in learned_from}}


def _is_written(folder: Path, policy: Selector, training: Mapping[str, Any]) -> bool:
    """Whether the folder has the complete bundle of this run and policy."""
    if not is_bundle(folder):
        return False
    try:
        bundle = load_bundle(folder)
    except InputError:
        return False
    return bundle.policy.hash == SelectorPolicy(policy).hash and bundle.info.training == training


@contextmanager
def recorded_trainer(
    start: Selector,
    config: TrainConfig,
    device: str | None,
    output: Output,
    decided: Mapping[str, Any],
    observer: Observer,
) -> Iterator[Trainer]:
    """A trainer that continues what is in the output folder, and writes metrics at each epoch.

    They go to `metrics.jsonl` and to the trackers.
    """

    def record(line: EpochLine, of: int) -> None:
        # The whole log is written: the file may be ahead of a resumed run's checkpoint.
        text = "".join(json.dumps(each) + "\n" for each in trainer.log)
        write_text(output.folder / METRICS, text)
        update_trackers()
        observer.epoch(line, of)

    checkpoint = output.folder / CHECKPOINT
    place = resolve_device(device or "auto")
    trainer = Trainer(start, config, place, checkpoint, decided, record, output.accept_changed)
    with open_trackers(output.log_to, output.folder, decided, trainer.log) as update_trackers:
        yield trainer
