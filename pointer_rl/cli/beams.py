"""`pointer-rl beams`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from pointer_rl.cli.common import (
    ACCEPT_CHANGED,
    BACKEND_OPTIONS,
    ENCODER_OPTIONS,
    EXECUTOR_OPTIONS,
    FILE,
    RESUME,
    SHOTS,
    STORE_OPTIONS,
    GuideCommand,
    kept_in,
    number_option,
    read_session_options,
    resumable,
    seed_option,
    with_options,
)
from pointer_rl.cli.output import echo, echo_block

if TYPE_CHECKING:
    from pointer_rl.beams.run import BeamRun


@click.command(cls=GuideCommand)
@click.option(
    "--output-path", required=True, type=FILE, help="The .json, .jsonl or .parquet file to write."
)
@with_options([*BACKEND_OPTIONS, *STORE_OPTIONS, SHOTS])
@click.option(
    "--any-length",
    is_flag=True,
    help="End a beam before the demonstrations that make the answers less likely.",
)
@number_option("--beam-size", 5, help="Pointers kept for each query.")
@click.option(
    "--sampler",
    type=click.Choice(["random", "image", "text", "mixed"]),
    default="random",
    show_default=True,
    help="Which demonstrations are tried: random ones, or the most similar.",
)
@number_option(
    "--sub-pool",
    64,
    metavar="SIZE",
    help="How many are tried for each query; the pool's size: all.",
)
@with_options(ENCODER_OPTIONS)
@number_option(
    "--max-calls",
    help="Ask the VLM at most N trials: a window of queries that could take more is not started  "
    "[default: no limit].",
)
@seed_option("Of random sub-pools.")
@with_options([*EXECUTOR_OPTIONS, RESUME, ACCEPT_CHANGED])
@click.option("--overwrite", is_flag=True, help="Start over, whatever there is.")
def beams(**given: Any) -> None:
    """Make beam data, from which a policy starts: the demonstrations that a VLM itself rates best.

    For each query the VLM scores what each demonstration adds to the log-probability of the
    annotators' answers (InfoScore); the best pointers are kept. Nothing is generated: the backend
    must be one that scores given answers.

    What is done is kept in NAME.partial.jsonl until the run is finished. However a run ended, the
    same command continues it. Exits 1 if no query has a beam.
    """
    from pointer_rl.cli.progress import Progress
    from pointer_rl.cli.tables import format_table

    with Progress() as progress:
        from pointer_rl.beams.run import run_beams
        from pointer_rl.session.journal import AlreadyFinished

        run = _run(given)
        with resumable(progress, lambda: kept_in(run.output_path, progress)):
            summary = run_beams(run, progress)
    if summary.queries:
        echo_block(format_table(summary.rows(), numeric=frozenset({0, 1, 2})) + "\n")
    for line in summary.sentences():
        echo(line)
    for line in summary.warnings():
        echo(f"pointer-rl: {line}", err=True)
    if summary.stopped_by:
        said = f"stopped by {summary.stopped_by}, {summary.left:,} queries left"
        echo(f"{said}: {kept_in(run.output_path, progress)}")
    elif summary.unchanged:
        echo(str(AlreadyFinished(run.output_path)))
    elif summary.queries:
        echo(f"wrote {run.output_path}: {summary.queries:,} queries, {summary.beams:,} beams")
    if not summary.queries:
        raise click.exceptions.Exit(1)


def _run(given: dict[str, Any]) -> BeamRun:
    from pointer_rl.beams.run import BeamConfig, BeamRun
    from pointer_rl.errors import InputError

    source = click.get_current_context().get_parameter_source("encoder")
    if given["sampler"] == "random" and source is ParameterSource.COMMANDLINE:
        raise InputError("--encoder: the sampler random compares nothing; choose another")
    return BeamRun(
        output_path=given["output_path"],
        session=read_session_options(given),
        config=BeamConfig(
            **{
                key: given[key]
                for key in ("shots", "any_length", "beam_size", "sampler", "sub_pool", "seed")
            },
        ),
        max_calls=given["max_calls"],
        overwrite=given["overwrite"],
        accept_changed=given["accept_changed"],
    )
