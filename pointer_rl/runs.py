"""Runs from Python: a session made from plain names, and the commands as its methods.

Each method builds the run that its command builds, and passes it to the same function. The names
and meanings of options are those of the runs' dataclasses (`GenerateRun`, `TrainConfig`, …).
"""

from __future__ import annotations

import logging
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, Union

from pointer_rl.errors import InputError, did_you_mean
from pointer_rl.evaluate.evaluation import Evaluation
from pointer_rl.evaluate.run import EvaluateConfig, EvaluateRun, run_evaluation
from pointer_rl.generate.run import GenerateRun, run_generate
from pointer_rl.generate.summary import Summary
from pointer_rl.options import build_options, convert_value
from pointer_rl.records.formats import stream_records
from pointer_rl.records.shards import Shard
from pointer_rl.report.files import ReportFiles
from pointer_rl.session import session as engine
from pointer_rl.session.cache import default_store
from pointer_rl.session.journal import partial_path
from pointer_rl.session.observer import Observer
from pointer_rl.session.session import PluginRef, SessionOptions
from pointer_rl.train.config import RECIPES, TrainConfig
from pointer_rl.train.online import OnlineConfig, OnlineRun, run_online
from pointer_rl.train.run import Output, TrainResult, TrainRun, run_training
from pointer_rl.types import Decoding

log = logging.getLogger(__name__)

T = TypeVar("T")
Plugin = str | Mapping[str, object] | PluginRef
"""A plugin by its name or, with options, as `{"plugin": "jsonl", "path": "train.jsonl"}`, which is
how configuration files write it."""


class RLData:
    """What `Session.generate` made."""

    def __init__(self, summary: Summary, path: Path) -> None:
        self.summary = summary
        """Counts by generator: `rows()` is a table."""
        self.path: Path | None = path
        """The file; None if the records are only in memory."""

    @cached_property
    def records(self) -> dict[str, Any]:
        """Query id → its record, as in the file, without `_meta`."""
        assert self.path is not None
        return {key: each for key, each in stream_records(self.path) if not key.startswith("_")}

    def __repr__(self) -> str:
        all = self.summary.all
        share = "" if all.share_correct is None else f", {all.share_correct:.0%} correct"
        return f"RLData({self.summary.queries:,} queries, {all.candidates:,} candidates{share})"


class Session(engine.Session):
    """A dataset, a model and the other plugins of a run, and the runs: generate, train, evaluate.

    It is the session that runs work with (`dataset`, `queries`, `backend`, `judge`, …). A run opens
    one of its own with the same options, so it does what its command does, in the same bytes.
    """

    def __init__(
        self,
        dataset: Plugin = "glyphs",
        backend: Plugin = "qwen2vl",
        *,
        prompt: Plugin = "short-answer",
        metric: Plugin = "vqa",
        store: str | Path | bool = True,
        observer: Observer | None = None,
        **options: Any,
    ) -> None:
        """A plugin is a name, or `{"plugin": NAME, OPTION: VALUE, …}`. `store` is the file of kept
        responses: True for that of the command line, False for none. `observer` hears of progress;
        by default what it is told is logged, at level INFO.

        `options` are the fields of `SessionOptions`: encoder, query_emb, cand_emb, limit, device,
        decoding. Raises PointerRLError for what does not exist or does not fit.
        """
        _check_given(options)
        cache = default_store() if store is True else None if store is False else Path(store)
        named = {"dataset": dataset, "backend": backend, "prompt": prompt, "metric": metric}
        [given] = _share({**options, **named, "cache": cache}, SessionOptions)
        super().__init__(SessionOptions(**given), observer or _Logged())

    def __repr__(self) -> str:
        return (
            f"Session(dataset={self.options.dataset.name!r}, "
            f"backend={self.options.backend.name!r}: {len(self.queries):,} queries, "
            f"a pool of {len(self.dataset.pool):,})"
        )

    def generate(self, output_path: str | Path | None = None, **options: Any) -> RLData:
        """`pointer-rl generate`: propose pointers, ask the backend, judge the answers.

        `options` are the fields of `GenerateRun`, such as `generators` (names, or mappings as for
        any plugin), `shots`, `seed`, `sft_ckpt` and `max_calls`. Without `output_path` the records
        are only in memory. An interrupted run is continued by the same call.
        """
        _check_given(options)
        if output_path is None:
            for name in ("max_calls", "max_seconds"):
                if options.get(name) is not None:
                    raise InputError(f"{name}: give an output_path, to continue from there")
            with TemporaryDirectory() as folder:
                made = self.generate(Path(folder) / "rl.jsonl", **options)
                _, made.path = made.records, None  # read before the file is gone
                return made
        [given] = _share({**options, "output_path": output_path}, GenerateRun)
        run = GenerateRun(session=self.options, **given)
        return RLData(run_generate(run, self.observer), run.output_path)

    def train(
        self,
        output_dir: str | Path,
        rl_data: str | Path | None = None,
        *,
        online: bool = False,
        recipe: str = "default",
        **options: Any,
    ) -> TrainResult:
        """`pointer-rl train`: learn from RL data or, with `online`, while asking the backend.

        `options` are the fields of `TrainConfig`, `Output` and `TrainRun` or, online, of
        `OnlineConfig` (which needs `max_calls`) and `OnlineRun`. The result has the bundle's
        `folder` and `policy()`; `sentences()` says whether it learned.
        """
        _check_given(options)
        if recipe not in RECIPES:
            raise InputError(f"recipe {recipe!r}: one of {', '.join(RECIPES)}")
        given = {**options, "data": rl_data, "folder": output_dir}
        if online:
            learning, output, rounds, more = _share(
                given, TrainConfig, Output, OnlineConfig, OnlineRun
            )
            if "max_calls" not in rounds:
                raise InputError("online=True needs max_calls, the most trials that it may run")
            more |= {"session": self.options, "online": OnlineConfig(**rounds)}
        else:
            if rl_data is None:
                raise InputError("give rl_data, or online=True to ask the backend while learning")
            learning, output, more = _share(given, TrainConfig, Output, TrainRun)
            same = _hints(SessionOptions).keys() & _hints(TrainRun).keys()
            more = {**{name: getattr(self.options, name) for name in same}, **more}
        more |= {
            "config": TrainConfig(**{**RECIPES[recipe], **learning}),
            "output": Output(**output),
        }
        if online:
            return run_online(OnlineRun(**more), self.observer)
        return run_training(TrainRun(**more), self.observer)

    def evaluate(
        self,
        policies: Mapping[str, str | Path] | None = None,
        output_path: str | Path | None = None,
        *,
        plot: str | Path | None = None,
        **options: Any,
    ) -> Evaluation:
        """`pointer-rl evaluate`: policies (name → bundle) and baselines on the same questions.

        `options` are the fields of `EvaluateConfig`, such as `shots` (a number, or several), and of
        `EvaluateRun`. The session's `limit` is the size of a random subset. The evaluation has its
        table, `rows()`, and its conclusions, `sentences()`. Raises AlreadyFinished if `output_path`
        has this evaluation already; its `content` says what came of it.
        """
        _check_given(options)
        given = {"limit": self.options.limit, **options, "policies": policies or {}}
        config, more, files = _share(
            {**given, "output_path": output_path, "plot": plot},
            *(EvaluateConfig, EvaluateRun, ReportFiles),
        )
        written = ReportFiles(**files)
        run = EvaluateRun(session=self.options, config=EvaluateConfig(**config), **more)
        evaluation = run_evaluation(run, self.observer)
        written.write(evaluation)
        if run.output_path is not None:
            partial_path(run.output_path).unlink(missing_ok=True)
        return evaluation


class _Logged(Observer):
    """Logs what a user should read."""

    def say(self, sentence: str) -> None:
        log.info(sentence)


# --- from plain values to options ---


_RESERVED = {"session", "config", "output", "folder", "data", "cache", "part"}
"""Fields of the runs' dataclasses that the methods of Session set themselves."""


def _check_given(options: Mapping[str, object]) -> None:
    """Raise InputError for a field that is not the caller's to set."""
    for name in options:
        if name in _RESERVED:
            raise InputError(f"no option {name!r}: it follows from the other arguments")


def _share(values: Mapping[str, Any], *classes: type) -> list[dict[str, Any]]:
    """The values that each options class has a field for, converted to the field's type.

    Raises InputError for a value that none of them has a field for.
    """
    known = {name: None for each in classes for name in _hints(each)}
    for name in values:
        if name not in known:
            raise InputError(f"no option {name!r}{did_you_mean(name, known)}")
    return [
        {
            name: _option(name, values[name], hint)
            for name, hint in _hints(each).items()
            if name in values
        }
        for each in classes
    ]


def _hints(options: type) -> dict[str, Any]:
    hints = typing.get_type_hints(options)
    return {each.name: hints[each.name] for each in fields(options)}


def _option(name: str, value: Any, hint: Any) -> Any:
    try:
        return _convert(value, hint)
    except (ValueError, TypeError) as error:
        raise InputError(f"{name}={value!r}: {error}") from error


def _convert(value: Any, hint: Any) -> Any:
    """Paths from strings, plugins from names and mappings, tuples from lists and single values."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        [hint] = [each for each in arguments if each is not type(None)]
        return _convert(value, hint)
    if hint in _FROM_PLAIN:
        return value if isinstance(value, hint) else _FROM_PLAIN[hint](value)
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise InputError(f"{value!r}: give a mapping, from names")
        return {key: _convert(each, arguments[1]) for key, each in value.items()}
    if origin in (Collection, Sequence, tuple):
        several = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
        return tuple(_convert(each, arguments[0]) for each in several)
    return convert_value(value, hint)


def _as_plugin(value: object) -> PluginRef:
    if isinstance(value, str):
        return PluginRef(value)
    if not isinstance(value, Mapping) or not isinstance(value.get("plugin"), str):
        raise InputError(f'a plugin is a name, or {{"plugin": NAME, OPTION: VALUE}}, not {value!r}')
    options = {
        key: str(each) if isinstance(each, Path) else each
        for key, each in value.items()
        if key != "plugin"
    }
    return PluginRef(value["plugin"], options)


_FROM_PLAIN: Mapping[type, Callable[[Any], Any]] = {
    Path: Path,
    PluginRef: _as_plugin,
    Shard: Shard.parse,
    Decoding: lambda value: build_options(Decoding, value, "decoding"),
}
"""Type of a field → how it is made from a plain value."""
