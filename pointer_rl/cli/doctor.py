"""`pointer-rl doctor`."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from pointer_rl.cli.common import GuideCommand, asking_options, read_session_options

__all__ = ["doctor"]


@click.command(cls=GuideCommand)
@click.option(
    "--parity",
    is_flag=True,
    help="Ask random trials together and one at a time, and compare what comes back.",
)
@asking_options
@click.option(
    "--shots",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Demonstrations in a trial.",
)
@click.option(
    "--score-answers/--no-score-answers",
    default=True,
    show_default=True,
    help="Compare the annotators' answers' log-probabilities too.",
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@click.pass_context
def doctor(ctx: click.Context, /, parity: bool, **given: Any) -> None:
    """Say what is installed and usable; with --parity, whether a backend's batches change answers.

    All other options are of --parity, which asks two trials each of 32 queries (or --limit), first
    together as generate does, then each alone, with engine=plain where the backend has it.

    Exits 1 when something is broken, with --parity when an answer differs.
    """
    if not parity:
        for name in given:
            if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                raise click.UsageError(f"--{name.replace('_', '-')} goes with --parity")
        ctx.exit(_check_installation())
    ctx.exit(_measure_parity(given))


def _check_installation() -> int:
    from pointer_rl.installation import check_installation

    broken = 0
    for finding in check_installation():
        broken += finding.broken
        mark = "BROKEN: " if finding.broken else ""
        click.echo(f"{finding.subject:<10}{mark}{finding.text}")
    click.echo(f"\n{broken} broken" if broken else "\nnothing is broken")
    return 1 if broken else 0


def _measure_parity(given: dict[str, Any]) -> int:
    from pointer_rl.cli.progress import Progress
    from pointer_rl.evaluate.parity import ParityRun, measure_parity
    from pointer_rl.report.parity import parity_in_words

    shots, seed, score = (given.pop(key) for key in ("shots", "seed", "score_answers"))
    session = read_session_options(given)
    run = ParityRun(session=session, shots=shots, seed=seed, score_answers=score)
    with Progress() as progress:
        parity = measure_parity(run, progress)
    click.echo(parity_in_words(parity))
    return 1 if parity.differing else 0
