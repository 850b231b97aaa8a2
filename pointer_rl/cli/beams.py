"""`pointer-rl beams`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from pointer_rl.cli.common import FILE, GuideCommand, backend_options, read_trial_options

if TYPE_CHECKING:
    from pointer_rl.beams.run import BeamRun

__all__ = ["beams"]


@click.command(cls=GuideCommand)
@click.option("--output-path", required=True, type=FILE, help="The .json or .jsonl file to write.")
@backend_options
@click.option(
    "--shots",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Demonstrations in a pointer.",
)
@click.option(
    "--beam-size",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Pointers kept for each query.",
)
@click.option(
    "--sampler",
    type=click.Choice(["random", "image", "text", "mixed"]),
    default="random",
    show_default=True,
    help="Which demonstrations are tried: random ones, or the most similar.",
)
@click.option(
    "--sub-pool",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    metavar="SIZE",
    help="How many are tried for each query; the pool's size: all.",
)
@click.option(
    "--encoder",
    metavar="NAME",
    help="Encoder of image, text and mixed  [default: the dataset's own].",
)
@click.option(
    "--encoder-opt",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of the encoder (repeatable).",
)
@click.option(
    "--max-calls",
    type=click.IntRange(min=1),
    metavar="N",
    help="Stop before a query with which the VLM might be asked more than N trials.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Of random sub-pools.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing output file.")
def beams(**given: Any) -> None:
    """Make beam data, from which a policy starts: the demonstrations that a VLM itself rates best.

    For each query the VLM scores what each demonstration adds to the log-probability of the
    annotators' answers (InfoScore); the best pointers are kept. Nothing is generated: the backend
    must be one that scores given answers.

    Ctrl-C leaves a valid file of the queries that are done. Run the same command with --overwrite
    to go on: what was asked comes from the store. Exits 1 when no query has a beam.
    """
    from pointer_rl.beams.run import run_beams
    from pointer_rl.cli.progress import Progress
    from pointer_rl.cli.tables import format_table
    from pointer_rl.types import Outcome

    run = _run(given)
    with ExitStack() as stack:
        progress = stack.enter_context(Progress())
        try:
            summary = run_beams(
                run,
                on_start=progress.start,
                on_query=progress.query,
                on_trial=lambda _: progress.outcome(Outcome()),
            )
        except KeyboardInterrupt:
            stack.close()
            done = f"{progress.done:,} queries were tried; their beams are in {run.output_path}"
            message = done if progress.done else "no query was done, nothing is written"
            click.echo(f"pointer-rl: interrupted: {message}", err=True)
            sys.exit(130)
    if summary.queries:
        click.echo(format_table(summary.rows(), numeric=frozenset({0, 1, 2})) + "\n")
    for line in summary.sentences():
        click.echo(line)
    if summary.queries:
        click.echo(f"wrote {run.output_path}: {summary.queries:,} queries, {summary.beams:,} beams")
    for line in summary.warnings():
        click.echo(f"pointer-rl: {line}", err=True)
    if not summary.queries:
        sys.exit(1)


def _run(given: dict[str, Any]) -> BeamRun:
    from pointer_rl.beams.run import BeamConfig, BeamRun
    from pointer_rl.errors import InputError
    from pointer_rl.options import parse_assignments
    from pointer_rl.session.session import Named

    encoder_options = parse_assignments(given["encoder_opt"], "--encoder-opt")
    if encoder_options and given["encoder"] is None:
        raise InputError("--encoder-opt: give --encoder, whose options these are")
    return BeamRun(
        output_path=given["output_path"],
        trials=read_trial_options(given),
        config=BeamConfig(
            encoder=given["encoder"] and Named(given["encoder"], encoder_options),
            **{key: given[key] for key in ("shots", "beam_size", "sampler", "sub_pool", "seed")},
        ),
        max_calls=given["max_calls"],
        overwrite=given["overwrite"],
    )
