"""`pointer-rl run`."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from pointer_rl.cli.common import (
    ACCEPT_CHANGED,
    EXECUTOR_OPTIONS,
    FILE,
    LOG_TO,
    RESUME,
    SHOTS,
    TRIAL_OPTIONS,
    FiniteRange,
    GuideCommand,
    number_option,
    read_session_options,
    resumable,
    seed_option,
    with_options,
)
from pointer_rl.cli.evaluate import read_shots
from pointer_rl.cli.output import echo, echo_block
from pointer_rl.cli.params import KeyValue
from pointer_rl.cli.tables import format_table

if TYPE_CHECKING:
    from pointer_rl.route.run import Route, RouteRun, Stage

_KEPT = "what is done is kept; the same command continues"


def _test_shots(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    return () if value is None else read_shots(ctx, param, value)


@click.command(cls=GuideCommand)
@click.option(
    "--output-dir",
    required=True,
    type=FILE,
    help="Folder for everything: beams.json, sft, rl.json, offline, online, evaluation.json, "
    "accuracy.png, and run.json, which says what is done.",
)
@with_options([*TRIAL_OPTIONS, SHOTS])
@click.option(
    "--sft/--no-sft",
    default=None,
    help="Begin with beams and a policy from them  [default: if the backend scores answers].",
)
@number_option(
    "--max-calls",
    20_000,
    metavar="N",
    help="Most trials to learn from, those in the cache included: beams, generate and train "
    "--online together. The evaluation has its own.",
)
@click.option(
    "--held-out",
    type=FiniteRange(0, 1, min_open=True, max_open=True),
    default=0.2,
    show_default=True,
    help="Share of the images whose queries are only evaluated on.",
)
@click.option(
    "--test-opt",
    multiple=True,
    type=KeyValue("dataset", "dataset"),
    help="Option of the dataset that differs for the test queries, such as split=test "
    "(repeatable). Nothing is held out then.",
)
@number_option("--test-limit", 500, metavar="N", help="Most test queries, a random subset.")
@click.option(
    "--test-shots",
    callback=_test_shots,
    metavar="N,…",
    help="Numbers of demonstrations to evaluate at, as 2,1,4 or 1..4  [default: 1 to --shots].",
)
@seed_option()
@click.option("--plan", is_flag=True, help="Say what the run would cost, and stop.")
@with_options([LOG_TO, *EXECUTOR_OPTIONS, RESUME, ACCEPT_CHANGED])
@click.option("--overwrite", is_flag=True, help="Start over in a folder that holds a run.")
def run(**given: Any) -> None:
    """Find out whether choosing demonstrations pays off: the whole route in one folder.

    Splits the queries by image into training and test queries, makes beams and a first policy from
    them, RL data, and a policy from that, which then learns further while it asks. At last all
    policies are compared with the baselines on the test queries.

    However a run ended, the same command continues it. --limit counts training queries.
    """
    from pointer_rl.cli.progress import Progress
    from pointer_rl.route.run import open_route

    if given["plan"] and given["overwrite"]:
        raise click.UsageError("--plan changes nothing: give it without --overwrite")
    with ExitStack() as opened:
        with Progress() as progress:
            route = opened.enter_context(open_route(_run(given), progress))
            if not given["plan"]:
                route.begin()
            rows, time = route.rows(), route.time() if given["plan"] else None
        echo_block(format_table(rows, numeric=frozenset({1, 2})))
        if route.without_sft is not None:
            echo(f"without beams and SFT: {route.without_sft}")
        if time is not None:
            echo(time)
            return
        for number, stage in enumerate(route.stages, start=1):
            heading = f"[{number}/{len(route.stages)}] {stage.name}"
            if route.is_finished(stage):
                echo(f"{heading}: finished before, in {stage.output}")
            else:
                echo_block(f"\n{heading}: {stage.output}")
                _complete(route, stage)
        echo_block(f"\nwrote {given['output_dir']}")
        echo(route.verdict)


def _complete(route: Route, stage: Stage) -> None:
    from pointer_rl.cli.progress import Progress
    from pointer_rl.cli.train import epoch_text

    with Progress(epoch_text) as progress, resumable(progress, lambda: _KEPT):
        result = route.complete(stage, progress)
    if result.rows:
        echo_block(format_table(result.rows, numeric=result.numeric) + "\n")
    for sentence in result.sentences:
        echo(sentence)


def _run(given: dict[str, Any]) -> RouteRun:
    from pointer_rl.options import parse_assignments
    from pointer_rl.route.run import RouteRun

    names = ("output_dir", "held_out", "test_limit", "shots", "test_shots", "max_calls", "sft")
    return RouteRun(
        session=read_session_options(given),
        test_options=parse_assignments(given["test_opt"], "--test-opt"),
        **{name: given[name] for name in (*names, "seed", "overwrite", "log_to", "accept_changed")},
    )
