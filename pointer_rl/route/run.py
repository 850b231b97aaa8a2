"""`pointer-rl run`: from a dataset and a model to the answer whether choosing demonstrations pays.

The other commands' runs, one after the other, in one folder. Each continues where it was
interrupted; `run.json` says which are done, and what decided them.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from pointer_rl.beams.infoscore import AnswerScorer, most_trials
from pointer_rl.beams.run import BeamConfig, BeamRun, run_beams
from pointer_rl.datasets.leakage import AllowedRows
from pointer_rl.datasets.parts import Part
from pointer_rl.errors import InputError, MissingExtraError, NothingToLearnError
from pointer_rl.evaluate.run import (
    EvaluateConfig,
    EvaluateRun,
    check_training_queries,
    run_evaluation,
)
from pointer_rl.files import locked, write_text
from pointer_rl.generate.plan import format_duration, make_plan
from pointer_rl.generate.run import GenerateRun, run_generate
from pointer_rl.options import convert_options
from pointer_rl.records.formats import stream_records
from pointer_rl.records.provenance import Change, differences
from pointer_rl.registry import registry
from pointer_rl.report.files import ReportFiles
from pointer_rl.report.plot import check_drawable
from pointer_rl.selectors.bundle import is_bundle
from pointer_rl.session.journal import AlreadyFinished, partial_path
from pointer_rl.session.judge import Trial
from pointer_rl.session.observer import Observer
from pointer_rl.session.session import PluginRef, Session, SessionOptions
from pointer_rl.session.similarity import similarity_spaces
from pointer_rl.train.config import TrainConfig
from pointer_rl.train.online import OnlineConfig, OnlineRun, run_online
from pointer_rl.train.run import Output, TrainResult, TrainRun, run_training
from pointer_rl.train.trackers import TrackerName, check_trackers
from pointer_rl.types import BackendError
from pointer_rl.validate import ValidationConfig, validate_file
from pointer_rl.validate.report import FORMATS

SETTINGS = "run.json"
BEAMS, SFT, DATA, OFFLINE, ONLINE = "beams.json", "sft", "rl.json", "offline", "online"
EVALUATION, PLOT = "evaluation.json", "accuracy.png"
OUTPUTS = (BEAMS, SFT, DATA, OFFLINE, ONLINE, EVALUATION, PLOT)

SEARCH = PluginRef("first-success", {"answers": True})
"""Proposes in `generate` and online: rows with a query's answer and others, until one trial is
right and one wrong."""
BEAM_QUERIES = 100
"""Most queries for beams, which are dear: a policy starts from them, and does not end there."""
LEAST_BEAM_QUERIES = 4
SUB_POOL = 20
"""Rows that are tried for each of them."""
SFT_TRAINING = TrainConfig(
    rce_epochs=10,
    grpo_epochs=0,
    contrast=0.0,
    rce_temperatures=(1.0, 1.0),
    all_steps=True,
    include_zero_variance=True,
    held_out=0.15,
)
OFFLINE_TRAINING = TrainConfig()
ONLINE_TRAINING = TrainConfig(rce_epochs=8, grpo_epochs=2)
ROUNDS = 3
"""Rounds of online training."""


@dataclass(frozen=True, kw_only=True)
class RouteRun:
    """Everything that decides a route."""

    output_dir: Path
    session: SessionOptions
    """`limit` holds for training queries; `part` is chosen here."""
    test_options: Mapping[str, object] = field(default_factory=dict)
    """Options of the dataset that differ for the test queries. Without any, some of the dataset's
    own images are held out."""
    held_out: float = 0.2
    """Share of the images that is held out."""
    test_limit: int = 500
    """Most test queries."""
    shots: int = 2
    """Demonstrations in a pointer."""
    test_shots: tuple[int, ...] = ()
    """Numbers of demonstrations in the evaluation; by default 1 to `shots`."""
    max_calls: int = 20_000
    """Most trials to learn from, cached ones included: beams, generate and online together."""
    sft: bool | None = None
    """Whether to begin with beams and SFT; None: if the backend scores answers."""
    seed: int = 0
    overwrite: bool = False
    """Start over, whatever there is."""
    log_to: tuple[TrackerName, ...] = ()
    """Trackers that show its trainings."""
    accept_changed: tuple[Change, ...] = ()

    def __post_init__(self) -> None:
        if min(self.shots, self.test_limit) < 1:
            raise InputError("shots and test_limit start at 1")
        if not 0 < self.held_out < 1:
            raise InputError(f"held_out is {self.held_out}: it must be between 0 and 1")
        if self.test_options and self.session.query_emb is not None:
            raise InputError(
                "--test-opt: the embeddings of --query-emb are of the training queries alone; give "
                "an encoder, or hold out some of these queries with --held-out"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the run, as plain JSON: not where it runs, nor where it keeps things."""
        decided = asdict(self)
        for name in ("output_dir", "overwrite", "log_to", "accept_changed"):
            del decided[name]
        for name in ("cache", "device", "executor", "part"):
            del decided["session"][name]
        for kind in ("dataset", "backend", "prompt", "metric", "encoder"):
            plugin = getattr(self.session, kind)
            decided["session"][kind] = None if plugin is None else _typed(kind, plugin)
        test = PluginRef(self.session.dataset.name, self.test_options)
        decided["test_options"] = _typed("dataset", test)["options"]
        plain: dict[str, Any] = json.loads(json.dumps(decided, default=str))
        return plain


@dataclass(frozen=True)
class Result:
    """What a stage has to say: a table, and sentences."""

    sentences: Sequence[str]
    rows: Sequence[Sequence[str]] = ()
    """Header and lines."""
    numeric: frozenset[int] = frozenset()
    """The columns that hold numbers."""


@dataclass(frozen=True)
class Stage:
    """One command of the route."""

    name: str
    output: Path
    """What it writes."""
    run: Callable[[Observer], Result]
    queries: int | None = None
    calls: int | None = None
    """Trials at most, if that is known."""
    note: str = ""


class Route:
    """The stages of a run, in order. Made by `open_route`."""

    def __init__(self, run: RouteRun, observer: Observer = Observer()) -> None:
        """Raises PointerRLError for anything that is missing or does not fit."""
        self._run = run
        self._folder = run.output_dir
        train, test = run.session, replace(run.session, limit=None)
        if run.test_options:
            options = {**run.session.dataset.options, **run.test_options}
            test = replace(test, dataset=replace(test.dataset, options=options))
        else:
            part = Part(side="training", share=run.held_out, seed=run.seed)
            train, test = (
                replace(train, part=part),
                replace(test, part=replace(part, side="held-out")),
            )
        self._train, self._test = train, test
        self.training = Session(train, observer)
        self.testing = Session(test, observer)
        self._check()
        self._path = self._folder / SETTINGS
        begun = self._path.exists() and not run.overwrite
        self._state: dict[str, Any] = {"settings": run.settings, "finished": []}
        if begun:
            self._state = self._read()

    def _check(self) -> None:
        check_trackers(self._run.log_to)
        training, testing = self.training, self.testing
        pools = [each.hasher(each.dataset.pool).digest for each in (training, testing)]
        if pools[0] != pools[1]:
            raise InputError(
                f"--test-opt: with these options the pool is another one ("
                f"{len(testing.dataset.pool):,} examples, and {len(training.dataset.pool):,} in "
                "training): name one for both, such as --dataset-opt pool=FILE"
            )
        check_training_queries(training.dataset.queries, testing.dataset.queries, "--test-opt")
        for each, shots in ((training, self._run.shots), (testing, max(self._test_shots))):
            each.check_answers(each.queries)
            AllowedRows(each.dataset.pool).check(each.queries, shots)
        least = 3 * max(LEAST_BEAM_QUERIES * self._most_per_beam, ROUNDS * self._most_per_query)
        if self._run.max_calls < least:
            raise InputError(
                f"--max-calls {self._run.max_calls}: too few to learn from; allow {least:,}"
            )

    # --- the folder ---

    def begin(self) -> None:
        """Note in the folder that this run begins, unless it is continued.

        Raises InputError if there are files of a run without its settings.
        """
        outputs = [self._folder / name for name in OUTPUTS]
        if self._run.overwrite:
            self._path.unlink(missing_ok=True)  # first: what is left after a kill is not this run's
            for each in outputs:
                partial_path(each).unlink(missing_ok=True)
                if each.is_dir():
                    Output(folder=each, overwrite=True).prepare()
                else:
                    each.unlink(missing_ok=True)
        if self._path.exists():
            return
        found = next((each for each in outputs if each.exists()), None)
        if found is not None:
            raise InputError(
                f"{found}: exists, without the {SETTINGS} of a run: name another --output-dir, or "
                "replace it with --overwrite"
            )
        self._state["without_sft"] = self.without_sft
        self._write()

    def _read(self) -> dict[str, Any]:
        path = self._path
        try:
            state: dict[str, Any] = json.loads(path.read_bytes())
            changes = list(differences(state["settings"], self._run.settings))
            _ = state["finished"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path}: not that of a run ({type(error).__name__}): name another --output-dir, "
                "or start over with --overwrite"
            ) from error
        if changes:
            said = "; ".join(
                f"{name}: {json.dumps(before)}, now {json.dumps(now)}"
                for name, before, now in changes[:3]
            )
            raise InputError(
                f"{path}: of a run with other options ({said}): give the same ones to continue it, "
                "name another --output-dir, or start over with --overwrite"
            )
        return state

    def _write(self) -> None:
        write_text(self._path, json.dumps(self._state, indent=1) + "\n")

    def is_finished(self, stage: Stage) -> bool:
        """Whether an earlier run finished it."""
        return stage.name in self._state["finished"] and stage.output.exists()

    def complete(self, stage: Stage, observer: Observer) -> Result:
        """Run a stage, or what is left of it."""
        result = stage.run(observer)
        gc.collect()  # the next stage loads the model again
        if stage.name not in self._state["finished"]:
            self._state["finished"].append(stage.name)
            self._write()
        return result

    # --- what is done ---

    @cached_property
    def without_sft(self) -> str | None:
        """Why there are neither beams nor SFT; None if there are.

        If that is for the backend to decide, it is loaded, and asked to score up to four queries.
        """
        if "without_sft" in self._state:
            return self._state["without_sft"]  # type: ignore[no-any-return]
        if self._run.sft is not None:
            return None if self._run.sft else "--no-sft"
        # A session of its own, so that the model does not stay in memory.
        session = Session(self._train, self.training.observer)
        judge = session.judge()
        scorer = AnswerScorer(judge.prompt, judge.backend)
        reason, asked = "no query has answers", None
        for query in islice((each for each in session.queries if each.answers), 4):
            [(_, found)] = scorer.score([Trial(query, [])])
            if not isinstance(found, BackendError):
                return None
            reason, asked = found.message, query
        if asked is not None and all(each.failure for _, each in judge.answer([Trial(asked, [])])):
            raise InputError(f"the backend does not answer ({reason}): put that right, or --no-sft")
        return f"the backend does not score answers ({reason})"

    @cached_property
    def stages(self) -> list[Stage]:
        """Everything to do, in order."""
        run, folder = self._run, self._folder
        number = len(self.training.queries)
        most = self._most_per_query
        beam_queries = beam_calls = 0
        if self.without_sft is None:
            beam_queries = min(BEAM_QUERIES, number, run.max_calls // 3 // self._most_per_beam)
            beam_calls = beam_queries * self._most_per_beam
        half = (run.max_calls - beam_calls) // 2
        generate_calls = min(half, number * most)
        tested = min(run.test_limit, len(self.testing.dataset.queries))
        first = [
            Stage(
                "beams",
                folder / BEAMS,
                lambda observer: self._beams(beam_queries, observer),
                queries=beam_queries,
                calls=beam_calls,
                note="InfoScore of single rows",
            ),
            Stage("sft", folder / SFT, self._sft, queries=beam_queries, note="a first policy"),
        ]
        return [
            *(first if beam_queries else ()),
            Stage(
                "generate",
                folder / DATA,
                lambda observer: self._generate(generate_calls, observer),
                queries=number,
                calls=generate_calls,
                note="until these calls are spent",
            ),
            Stage("validate", folder / DATA, self._validate),
            Stage("train", folder / OFFLINE, self._offline, note="from these trials"),
            Stage(
                "train --online",
                folder / ONLINE,
                self._online,
                queries=number,
                note=f"the rest of {run.max_calls:,} calls, {half:,} or more",
            ),
            Stage(
                "evaluate",
                folder / EVALUATION,
                self._evaluate,
                queries=tested,
                calls=tested * self._calls_per_test_query,
                note="not part of --max-calls",
            ),
        ]

    @property
    def _sub_pool(self) -> int:
        return max(SUB_POOL, self._run.shots)

    @property
    def _most_per_beam(self) -> int:
        tried = min(self._sub_pool, len(self.training.dataset.pool))
        return most_trials(tried, self._run.shots, beam_size=1)

    @cached_property
    def _most_per_query(self) -> int:
        budget: int = SEARCH.configure("generator").create().budget
        return budget

    @property
    def _calls_per_test_query(self) -> int:
        """Pointers that an evaluation shows a query, if no two arms choose the same."""
        config = EvaluateConfig()
        similar = len(similarity_spaces(self.testing, ()))
        learned = 1 + len(self._policies)  # answer-match
        attainable = self.testing.dataset.relevant is not None
        oracle = config.oracle_random + config.oracle_retrieval
        each = config.random_seeds + similar + learned + oracle + attainable
        return 1 + len(self._test_shots) * each

    @property
    def _test_shots(self) -> tuple[int, ...]:
        return self._run.test_shots or tuple(range(1, self._run.shots + 1))

    @property
    def _policies(self) -> dict[str, Path]:
        names = {} if self.without_sft else {"SFT": SFT}
        names |= {"offline": OFFLINE, "online": ONLINE}
        return {name: self._folder / folder for name, folder in names.items()}

    def _beams(self, queries: int, observer: Observer) -> Result:
        run = self._run
        mixed = "mixed" in similarity_spaces(self.training, ())
        summary = run_beams(
            BeamRun(
                output_path=self._folder / BEAMS,
                session=replace(self._train, limit=queries),
                config=BeamConfig(
                    shots=run.shots,
                    beam_size=1,
                    sampler="mixed" if mixed else "random",
                    sub_pool=self._sub_pool,
                    seed=run.seed,
                ),
                accept_changed=run.accept_changed,
            ),
            observer,
        )
        if not summary.queries:
            raise InputError(f"no query has a beam: {summary.first_failure}")
        said = [*summary.sentences(), *summary.warnings()]
        return Result(said, summary.rows(), frozenset({0, 1, 2}))

    def _sft(self, observer: Observer) -> Result:
        return self._train_on(BEAMS, SFT, None, SFT_TRAINING, observer)

    def _generate(self, trials: int, observer: Observer) -> Result:
        summary = run_generate(self._generate_run(trials), observer)
        if not summary.all.judged:
            raise InputError(
                f"all {summary.all.failed:,} trials failed, the first with: "
                f"{summary.first_failure}; the same command asks them again"
            )
        said = [f"{summary.queries:,} queries, {summary.all.candidates:,} trials"]
        if summary.first_failure:
            said.append(f"{summary.all.failed:,} trials failed; first: {summary.first_failure}")
        return Result(said, summary.rows(), frozenset({1, 2, 3, 4}))

    def _generate_run(self, trials: int) -> GenerateRun:
        run = self._run
        return GenerateRun(
            output_path=self._folder / DATA,
            session=self._train,
            generators=[SEARCH],
            shots=run.shots,
            seed=run.seed,
            trials=trials,
            accept_changed=run.accept_changed,
        )

    def _validate(self, observer: Observer) -> Result:
        report = validate_file(self._folder / DATA, ValidationConfig())
        said = FORMATS["text"]([report]).splitlines()
        if report.num_findings:
            raise InputError("; ".join(said[:3]))
        return Result(said)

    def _offline(self, observer: Observer) -> Result:
        return self._train_on(DATA, OFFLINE, self._latest(SFT), OFFLINE_TRAINING, observer)

    def _train_on(
        self, data: str, output: str, start: Path | None, config: TrainConfig, observer: Observer
    ) -> Result:
        run, session = self._run, self._train
        training = TrainRun(
            data=self._folder / data,
            supervised=data == BEAMS,
            output=self._output(output),
            config=replace(config, seed=run.seed),
            shots=run.shots,
            query_emb=session.query_emb,
            cand_emb=session.cand_emb,
            encoder=session.encoder,
            sft_ckpt=start,
            device=session.device,
        )
        return _learned(lambda: run_training(training, observer))

    def _latest(self, *names: str) -> Path | None:
        """The bundle that was trained last; None if there is none, or nothing was to be learned."""
        folders = [self._folder / name for name in names]
        return next((each for each in reversed(folders) if is_bundle(each)), None)

    def _output(self, name: str) -> Output:
        run = self._run
        return Output(
            folder=self._folder / name, log_to=run.log_to, accept_changed=run.accept_changed
        )

    def _online(self, observer: Observer) -> Result:
        run = self._run
        asked = [DATA] if self.without_sft else [BEAMS, DATA]
        spent = sum(_trials_in(self._folder / name) for name in asked)
        training = OnlineRun(
            session=self._train,
            output=self._output(ONLINE),
            online=OnlineConfig(max_calls=run.max_calls - spent, rounds=ROUNDS),
            config=replace(ONLINE_TRAINING, seed=run.seed),
            data=self._folder / DATA,
            search=SEARCH,
            shots=run.shots,
            sft_ckpt=self._latest(SFT, OFFLINE),
        )
        return _learned(lambda: run_online(training, observer))

    def _evaluate(self, observer: Observer) -> Result:
        run, path = self._run, self._folder / EVALUATION
        said = []
        plot: Path | None = self._folder / PLOT
        try:
            check_drawable(self._folder / PLOT)
        except MissingExtraError as error:
            plot = None
            said.append(f"no {PLOT}: {error}")
        files = ReportFiles(output_path=path, plot=plot)
        policies = {name: path for name, path in self._policies.items() if is_bundle(path)}
        if not policies:
            said.append("nothing was learned, so the verdict is about similar demonstrations")
        described = self.training.dataset_plugin.describe()["options"]
        config = EvaluateConfig(
            shots=self._test_shots,
            limit=run.test_limit,
            seed=run.seed,
            train_options={name: described[name] for name in run.test_options},
        )
        try:
            evaluation = run_evaluation(
                EvaluateRun(
                    session=self._test,
                    policies=policies,
                    config=config,
                    record=bool(policies),
                    output_path=path,
                    accept_changed=run.accept_changed,
                ),
                observer,
            )
        except AlreadyFinished as finished:
            return Result(finished.content["sentences"][1:])
        finally:
            if path.exists():
                partial_path(path).unlink(missing_ok=True)
        if evaluation.conclusions is None:
            raise InputError(evaluation.verdict)
        files.write(evaluation)
        partial_path(path).unlink(missing_ok=True)
        rows = evaluation.rows()
        said += [*evaluation.sentences()[1:], *evaluation.warnings()]
        return Result(said, rows, frozenset({0, *range(2, len(rows[0]) - 2)}))

    @property
    def verdict(self) -> str:
        """What the evaluation says, once it is finished."""
        said: str = json.loads((self._folder / EVALUATION).read_bytes())["verdict"]
        return said

    # --- what it would cost ---

    def rows(self) -> list[tuple[str, ...]]:
        """Header and lines of a table of the stages."""
        return [
            ("stage", "queries", "calls", ""),
            *(
                (
                    each.name,
                    "" if each.queries is None else f"{each.queries:,}",
                    "" if each.calls is None else f"up to {each.calls:,}",
                    "finished" if self.is_finished(each) else each.note,
                )
                for each in self.stages
            ),
        ]

    def time(self) -> str:
        """How long all calls would take, in words. Asks some trials of `generate`."""
        by_name = {each.name: each for each in self.stages}
        run = self._generate_run(by_name["generate"].calls or 0)
        plan = make_plan(run, self.training.observer)
        if plan.seconds is None:
            return "no time was measured: too few trials are left to ask, or none was answered"
        calls = self._run.max_calls + (by_name["evaluate"].calls or 0)
        rate = plan.to_ask / plan.seconds
        return (
            f"at most {calls:,} calls: about {format_duration(calls / rate)} at {rate:,.1f} a "
            f"second, measured on {plan.measured:,}; and some minutes of training"
        )


@contextmanager
def open_route(run: RouteRun, observer: Observer = Observer()) -> Iterator[Route]:
    """The stages of a run, while no other process may write its folder.

    Raises PointerRLError for anything that is missing or does not fit, and for the folder of
    another run.
    """
    with locked(run.output_dir / SETTINGS):
        yield Route(run, observer)


def _typed(kind: str, plugin: PluginRef) -> dict[str, Any]:
    """Name and given options of a plugin, the same from a command line and from a file."""
    entry = registry().find(kind, plugin.name)
    given = {**entry.aliases.get(plugin.name, {}), **plugin.options}
    given.pop("device", None)
    owner = f"{kind} {plugin.name}"
    options = {} if entry.options is None else convert_options(entry.options, given, owner)
    return {"name": entry.name, "options": options}


def _learned(train: Callable[[], TrainResult]) -> Result:
    """What a training has to say. That there was nothing to learn is an answer, too."""
    try:
        return Result(train().sentences())
    except NothingToLearnError as error:
        return Result([f"no policy from this: {error}"])


def _trials_in(path: Path) -> int:
    """The trials that made a file, by its records."""
    return sum(
        record["trials"] if "beams" in record else len(record["pointer_candidates"])
        for key, record in stream_records(path)
        if not key.startswith("_")
    )
