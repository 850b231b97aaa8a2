"""A run of `pointer-rl train` or `pointer-rl sft`: from files to a policy bundle."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pointer_rl.data.beam_dataset import BeamDatasetWithEmbedding
from pointer_rl.devices import resolve_device
from pointer_rl.errors import InputError, MissingExtraError
from pointer_rl.policy import SelectorPolicy
from pointer_rl.policy.bundle import BundleInfo, DataFile, save_bundle
from pointer_rl.train.config import TrainConfig
from pointer_rl.train.groups import Groups
from pointer_rl.train.learner import frozen
from pointer_rl.train.sources import Source, open_source, start_policy
from pointer_rl.train.trainer import EpochLine, Trainer, round_stages
from pointer_rl.trials.workbench import Named

__all__ = ["CHECKPOINT", "Output", "TrainResult", "TrainRun", "identity", "run_training"]

CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.jsonl"
ROUNDS = "rounds"
EVENTS = "tensorboard"


@dataclass(frozen=True, kw_only=True)
class Output:
    """The folder that a run writes, and what to do about one that is there."""

    folder: Path
    resume: bool = False
    """Go on from its checkpoint, if any."""
    overwrite: bool = False
    """Start anew."""
    tensorboard: bool = False
    """Write the epochs' lines as TensorBoard's events too."""

    def prepare(self) -> None:
        """Raise InputError for a folder that holds a run, and neither option says what to do."""
        if self.resume and self.overwrite:
            raise InputError("--resume and --overwrite exclude each other")
        there = [self.folder / name for name in (CHECKPOINT, "bundle.json", ROUNDS)]
        found = next((path for path in there if path.exists()), None)
        if found is not None and self.overwrite:
            for path in (*there, self.folder / METRICS):
                path.unlink(missing_ok=True) if not path.is_dir() else shutil.rmtree(path)
        elif found is not None and not self.resume:
            raise InputError(
                f"{found}: exists; --resume goes on with that run, --overwrite starts anew"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written ({error.strerror})") from error


@dataclass(frozen=True, kw_only=True)
class TrainRun:
    """All that decides a run on logged data."""

    data: Path
    """RL data, or beam data."""
    output: Output
    config: TrainConfig = TrainConfig()
    reward: Named = Named("hard_plus_soft")
    supervised: bool = False
    """Beam data will do: where there are no rewards, the policy to keep is chosen by likelihood."""
    shots: int | None = None
    """None: those of the data."""
    img_emb: Path | None = None
    query_emb: Path | None = None
    cand_emb: Path | None = None
    sft_ckpt: Path | None = None
    """The bundle or checkpoint to start from; None: a fresh selector."""
    device: str | None = None


@dataclass(frozen=True)
class TrainResult:
    """What a run says at its end."""

    folder: Path
    log: list[EpochLine]
    keep_by: Literal["reward", "cross_entropy"] = "reward"

    def sentences(self) -> list[str]:
        """In words: whether held-out groups say that it learned."""
        last = max(line["round"] for line in self.log)
        lines = [line for line in self.log if line["round"] == last]
        start, rest = lines[0], lines[1:]
        key = f"held_out_{self.keep_by}"
        sign = 1 if self.keep_by == "reward" else -1
        best = max(rest, key=lambda line: sign * float(line[key]))
        name = f"held-out {'expected reward' if sign == 1 else 'cross-entropy'}"
        if sign * best[key] > sign * start[key]:
            where = f"{best['stage']} epoch {best['epoch']}"
            verdict = f"{name} {start[key]:.3f} → {best[key]:.3f} ({where})"
        else:
            verdict = f"it learned nothing: no epoch improved on the {name} of {start[key]:.3f}"
        if sign == 1:
            verdict += f"; the best pointers judged have {start['held_out_best']:.3f}"
        tied = f"{start['tied_groups']:.0%} of the groups are tied and taught nothing"
        return [verdict, tied]


def identity(
    config: TrainConfig, source: Source, start: SelectorPolicy, **more: Any
) -> dict[str, Any]:
    """What decides a run, as plain JSON: a checkpoint goes on only where it is the same."""
    pool = hashlib.sha256(source.pool.vectors.contiguous().numpy().tobytes())
    decided = {
        **asdict(config),
        "faults": sorted(config.faults),
        "pool": pool.hexdigest(),
        "start": start.hash,
        **more,
    }
    plain: dict[str, Any] = json.loads(json.dumps(decided))
    return plain


def run_training(
    run: TrainRun, on_epoch: Callable[[EpochLine], object] = lambda line: None
) -> TrainResult:
    """Learn from logged data, and write the bundle.

    Raises InputError, before anything is written, for what is missing or does not fit.
    """
    source = open_source(run.data, run.img_emb, run.query_emb, run.cand_emb)
    data = source.read(run.data, run.reward)
    config = run.config
    if data.kind == "beam":
        if not run.supervised:
            raise InputError(f"{run.data}: beam data has no rewards: train with `pointer-rl sft`")
        config = replace(config, keep_by="cross_entropy")
    groups = Groups.of(data, run.shots, own_pools=config.own_pools)
    check_teaches(data, groups)
    start = start_policy(run.sft_ckpt, source, config.sizes, config.seed)
    run.output.prepare()
    decided = identity(
        config,
        source,
        SelectorPolicy(start),
        data=data.sha256,
        reward=run.reward.name,
        reward_options=dict(run.reward.options),
    )
    with ExitStack() as stack:
        record = stack.enter_context(Recorder(run.output, on_epoch))
        trainer = Trainer(
            start,
            config,
            resolve_device(run.device or "auto"),
            run.output.folder / CHECKPOINT,
            decided,
            record.epoch,
        )
        record.log = trainer.log
        trainer.fit(groups, round_stages(config, 0), first=0)
    finish(
        trainer, source, groups, run.output.folder, DataFile(name=run.data.name, sha256=data.sha256)
    )
    return TrainResult(run.output.folder, trainer.log, config.keep_by)


def check_teaches(data: BeamDatasetWithEmbedding, groups: Groups) -> None:
    """Raise InputError where no group has anything to tell."""
    if not groups.spread.any():
        raise InputError(
            f"{data.path}: every group is tied: the candidates of each of its {len(groups):,} "
            "queries all have the same reward, so there is nothing to learn; propose more, and "
            "more different, candidates (retrieval, higher temperatures)"
        )


def finish(
    trainer: Trainer, source: Source, groups: Groups, folder: Path, data: DataFile | None
) -> None:
    """Write the bundle of the best policy."""
    last = max((line for line in trainer.log), key=lambda line: line["round"])
    metrics = {
        key: value
        for key, value in {"held_out_reward": trainer.state.best_reward, **last}.items()
        if key in ("held_out_reward", "held_out_best", "tied_groups")
    }
    metrics["held_out_reward"] = trainer.state.best_reward
    save_bundle(
        folder,
        frozen(trainer.best),
        source.pool.vectors,
        source.pool_ids,
        BundleInfo(
            shots=groups.shots,
            encoder=source.encoder,
            dataset=source.dataset,
            data=data,
            training={"options": trainer.state.run, "metrics": metrics},
        ),
        list(dict.fromkeys(groups.ids)),
    )


class Recorder(AbstractContextManager["Recorder"]):
    """Keeps `metrics.jsonl` true to the log, and TensorBoard's events where asked for."""

    def __init__(self, output: Output, on_epoch: Callable[[EpochLine], object]) -> None:
        self.log: list[EpochLine] = []
        """The trainer's: written anew after each epoch, for a resumed run had other lines."""
        self._path = output.folder / METRICS
        self._on_epoch = on_epoch
        self._events = _event_writer(output.folder / EVENTS) if output.tensorboard else None

    def epoch(self, line: EpochLine) -> None:
        text = "".join(json.dumps(each) + "\n" for each in self.log)
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, self._path)
        if self._events is not None:
            for name, value in _numbers(line).items():
                self._events.add_scalar(name, value, len(self.log) - 1)
        self._on_epoch(line)

    def __exit__(self, *_: object) -> None:
        if self._events is not None:
            self._events.close()


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in line.items() if isinstance(value, float)}


def _event_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError(
            "tensorboard", "--tensorboard", "pointer-rl[tensorboard]"
        ) from error
    return SummaryWriter(str(folder))
