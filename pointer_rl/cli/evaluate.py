"""`pointer-rl evaluate`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pointer_rl.cli.common import (
    ACCEPT_CHANGED,
    EXECUTOR_OPTIONS,
    FILE,
    RESUME,
    TRIAL_OPTIONS,
    GuideCommand,
    kept_in,
    number_option,
    plugin_refs,
    read_session_options,
    resumable,
    seed_option,
    with_options,
)
from pointer_rl.cli.output import echo, echo_block
from pointer_rl.cli.params import KeyValue, NamedBundle, PluginName

if TYPE_CHECKING:
    from pointer_rl.evaluate.run import EvaluateRun

_CONFIG = ("shots", "primary", "oracle_random", "oracle_retrieval", "limit", "seed")
_SHOTS = re.compile(r"(\d+)(?:(?:\.\.|-)(\d+))?")


def read_shots(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """`2,1,4` and `1..4`; 0, which is asked anyway, is left out."""
    found: dict[int, None] = {}
    for part in value.split(","):
        match = _SHOTS.fullmatch(part.strip())
        if match is None:
            raise click.BadParameter("give numbers, as in --shots 1,2,4 or --shots 1..4")
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last or last > 1000:
            raise click.BadParameter(f"{part}: no range of numbers of demonstrations")
        found |= dict.fromkeys(range(first, last + 1))
    found.pop(0, None)
    if not found:
        raise click.BadParameter("give a number from 1 up; 0 is asked anyway")
    return tuple(found)


def _policies(
    ctx: click.Context, param: click.Parameter, values: tuple[tuple[str, Path], ...]
) -> dict[str, Path]:
    policies: dict[str, Path] = {}
    for name, path in values:
        if name in policies:
            raise click.BadParameter(f"{name}: given twice")
        policies[name] = path
    return policies


@click.command(cls=GuideCommand)
@with_options(TRIAL_OPTIONS)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    type=NamedBundle(),
    callback=_policies,
    help="A policy bundle (also hub:OWNER/NAME) or selector checkpoint, and what to call it "
    "(repeatable).",
)
@click.option(
    "--arm",
    multiple=True,
    type=PluginName("arm"),
    metavar="NAME",
    help="A further arm, such as a plugin's (repeatable).",
)
@click.option("--arm-opt", multiple=True, type=KeyValue("arm"), help="Option of a further arm.")
@click.option(
    "--train-opt",
    multiple=True,
    type=KeyValue("dataset", "dataset"),
    help="Option of the dataset that differs for the queries that arms may learn from, such as "
    "split=train (repeatable)  [default: they learn from the pool's examples].",
)
@click.option(
    "--primary",
    metavar="NAME",
    help="The arm that the verdict is about  [default: the last policy].",
)
@click.option(
    "--shots",
    default="2",
    show_default=True,
    callback=read_shots,
    metavar="N,…",
    help="Numbers of demonstrations, as 2,1,4 or 1..4. The verdict is at those that the primary "
    "policy's bundle was trained at, else at the first.",
)
@number_option("--seeds", 3, help="Random pointers for each query, averaged.")
@number_option(
    "--oracle-random",
    8,
    minimum=0,
    help="Random pointers that the oracle chooses from.",
)
@number_option(
    "--oracle-retrieval",
    8,
    minimum=0,
    help="Pointers of the most similar rows that it chooses from.",
)
@seed_option()
@click.option("--output-path", type=FILE, help="The .json file to write, query by query.")
@click.option("--plot", type=FILE, help="The .png file to draw accuracy by shots in.")
@click.option("--record", is_flag=True, help="Write the verdict into the primary policy's bundle.")
@with_options([*EXECUTOR_OPTIONS, RESUME, ACCEPT_CHANGED])
@click.option("--overwrite", is_flag=True, help="Replace existing files, and start over.")
def evaluate(**given: Any) -> None:
    """Compare policies with random, similar and no demonstrations, on the same questions.

    Says in words whether the primary policy is better than random, or not distinguishable from it,
    and names every other arm that it does not beat. The same questions, wording and decoding for
    every arm; a trial that several share is asked once. An interrupted evaluation with
    --output-path is continued by the same command. Exits 1 if nothing could be measured.
    """
    from pointer_rl.cli.progress import Progress
    from pointer_rl.cli.tables import format_table
    from pointer_rl.errors import InputError

    def kept() -> str:
        if run.output_path is None or not progress.done:
            return "nothing is written"
        return kept_in(run.output_path, progress)

    with Progress() as progress:
        from pointer_rl.evaluate.run import run_evaluation
        from pointer_rl.report.files import ReportFiles
        from pointer_rl.session.journal import AlreadyFinished, partial_path

        files = ReportFiles(**{key: given[key] for key in ("output_path", "plot", "overwrite")})
        run = _run(given)
        try:
            with resumable(progress, kept):
                evaluation = run_evaluation(run, progress)
        except AlreadyFinished as finished:
            if files.plot is not None:
                raise InputError(
                    f"{files.plot}: not drawn, since {run.output_path} was finished before: give "
                    "--overwrite, which asks only what the response cache lacks"
                ) from finished
            progress.stop()
            echo(finished.content["verdict"])
            echo(str(finished))
            return
    rows = evaluation.rows()
    intervals = frozenset({len(rows[0]) - 2, len(rows[0]) - 1})
    numeric = frozenset(range(len(rows[0]))) - intervals - {1}  # all but these and the arm
    echo_block(format_table(rows, numeric=numeric, keys=2, whole=intervals) + "\n")
    for sentence in evaluation.sentences():
        echo(sentence)
    trials = f"{evaluation.trials:,} trials"
    echo(f"{trials}, {evaluation.from_cache:,} of them from the response cache")
    for path in files.write(evaluation):
        echo(f"wrote {path}")
    if run.output_path is not None:
        partial_path(run.output_path).unlink(missing_ok=True)
    for warning in evaluation.warnings():
        echo(f"pointer-rl: {warning}", err=True)
    if evaluation.conclusions is None:
        raise click.exceptions.Exit(1)


def _run(given: dict[str, Any]) -> EvaluateRun:
    from pointer_rl.evaluate.run import EvaluateConfig, EvaluateRun
    from pointer_rl.options import parse_assignments

    return EvaluateRun(
        session=read_session_options(given),
        policies=given["policies"],
        arms=plugin_refs({name: {} for name in given["arm"]}, given["arm_opt"], "--arm-opt"),
        config=EvaluateConfig(
            random_seeds=given["seeds"],
            train_options=parse_assignments(given["train_opt"], "--train-opt"),
            **{key: given[key] for key in _CONFIG},
        ),
        **{key: given[key] for key in ("record", "output_path", "overwrite", "accept_changed")},
    )
