"""`pointer-rl doctor`: check the installation, or compare responses."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from pointer_rl.cli.common import (
    BACKEND_OPTIONS,
    DECODING_OPTION,
    GuideCommand,
    number_option,
    plugin_options,
    plugin_ref,
    read_session_options,
    seed_option,
    with_options,
)
from pointer_rl.cli.output import echo, echo_block

AGAINST = plugin_options(
    "against",
    None,
    "Compare with this backend  [default: with itself, one at a time].",
    owner="second backend",
)


@click.command(cls=GuideCommand)
@click.option(
    "--parity",
    is_flag=True,
    help="Ask random trials in batches and one at a time, and compare the responses.",
)
@with_options([*BACKEND_OPTIONS, *AGAINST, DECODING_OPTION])
@number_option("--shots", 2, help="Demonstrations per trial.")
@click.option(
    "--score-answers/--no-score-answers",
    default=True,
    show_default=True,
    help="Also compare the log-probabilities of the annotators' answers.",
)
@seed_option()
@click.pass_context
def doctor(ctx: click.Context, /, parity: bool, **given: Any) -> None:
    """Check the installation or, with --parity, whether batching changes a backend's answers.

    All other options belong to --parity. It asks two trials each of 32 random queries (or --limit):
    first all together, as generate does, then one at a time, with engine=plain if the backend has
    that option. With --against, the second backend is asked instead, all together.

    Exits with 1 if something is broken or, with --parity, if an answer differs.
    """
    if not parity:
        for name in given:
            if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                raise click.UsageError(f"--{name.replace('_', '-')} goes with --parity")
        ctx.exit(_check_installation())
    ctx.exit(_measure_parity(given))


def _check_installation() -> int:
    from pointer_rl.cli.installation import check_installation

    broken = 0
    for finding in check_installation():
        broken += finding.broken
        mark = "BROKEN: " if finding.broken else ""
        echo(f"{finding.subject:<10}{mark}{finding.text}")
    echo_block(f"\n{broken} broken" if broken else "\nnothing is broken")
    return 1 if broken else 0


def _measure_parity(given: dict[str, Any]) -> int:
    from pointer_rl.cli.progress import Progress
    from pointer_rl.evaluate.parity import measure_parity
    from pointer_rl.report.parity import parity_in_words

    options = read_session_options(given)
    with Progress() as progress:
        parity = measure_parity(
            options,
            against=None if given["against"] is None else plugin_ref(given, "against"),
            shots=given["shots"],
            score_answers=given["score_answers"],
            seed=given["seed"],
            observer=progress,
        )
    echo_block(parity_in_words(parity))
    return 1 if parity.differing else 0
