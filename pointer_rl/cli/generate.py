"""`pointer-rl generate`."""

from __future__ import annotations

import re
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from pointer_rl.cli.common import FILE, GuideCommand, read_trial_options, trial_options

if TYPE_CHECKING:
    from pointer_rl.generate.run import GenerateRun
    from pointer_rl.generate.summary import Summary
    from pointer_rl.records.shards import Shard
    from pointer_rl.session.session import Named

__all__ = ["generate"]

_NUMBER = re.compile(r"[0-9.]+([eE][-+]?[0-9]+)?")


class _GenerateCommand(GuideCommand):
    """Reads `--temps 1.0 1.3`, too."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        further = False  # whether a number here is one more temperature
        for arg in args:
            if further and _NUMBER.fullmatch(arg):
                spread += ["--temps", arg]
                continue
            further = bool(spread) and spread[-1] == "--temps"
            spread.append(arg)
        return super().parse_args(ctx, spread)


def _temperatures(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> tuple[float, ...]:
    try:
        return tuple(float(each) for value in values for each in value.split(","))
    except ValueError:
        raise click.BadParameter("give numbers, as in --temps 1.0 1.3") from None


def _shard(ctx: click.Context, param: click.Parameter, value: str | None) -> Shard | None:
    from pointer_rl.errors import InputError
    from pointer_rl.records.shards import Shard

    try:
        return None if value is None else Shard.parse(value)
    except InputError as error:
        raise click.BadParameter(str(error)) from None


@click.command(cls=_GenerateCommand)
@click.option("--output-path", required=True, type=FILE, help="The .json or .jsonl file to write.")
@trial_options
@click.option("--sft-ckpt", type=FILE, help="Selector checkpoint that proposes beams and samples.")
@click.option("--beam-data", type=FILE, help="Only the queries that this beam file has.")
@click.option(
    "--shots",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Demonstrations in a pointer.",
)
@click.option(
    "--num-beams",
    type=click.IntRange(min=0),
    default=5,
    show_default=True,
    help="Beams for each query.",
)
@click.option(
    "--num-retrieval",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Pointers of the most similar rows, for each query.",
)
@click.option(
    "--temps",
    multiple=True,
    default=("1.0", "1.3"),
    show_default=True,
    callback=_temperatures,
    metavar="T…",
    help="Sampling temperatures.",
)
@click.option(
    "--num-samples-per-temp",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    help="Samples for each query at each temperature.",
)
@click.option(
    "--num-random",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Uniformly drawn pointers for each query.",
)
@click.option(
    "--generator", "more", multiple=True, metavar="NAME", help="A further candidate generator."
)
@click.option(
    "--generator-opt", multiple=True, metavar="NAME.KEY=VALUE", help="Options of any generator."
)
@click.option(
    "--dedup",
    type=click.Choice(["ordered", "unordered"]),
    default="ordered",
    show_default=True,
    help="Whether the same rows in another order are another candidate.",
)
@click.option(
    "--score-answers",
    is_flag=True,
    help="Record the annotators' answers' probability too (one more pass for each answer).",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Random seed."
)
@click.option(
    "--window",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Queries asked together: more have more in common, fewer are lost by a kill.",
)
@click.option(
    "--max-calls", type=click.IntRange(min=1), help="Stop before the backend is asked more trials."
)
@click.option(
    "--max-seconds",
    type=click.FloatRange(min=0, min_open=True),
    help="Stop at the end of the queries that are under way then.",
)
@click.option(
    "--shard", callback=_shard, metavar="I/N", help="Only the I-th of N parts (see `merge`)."
)
@click.option("--plan", is_flag=True, help="Say what the run would cost, and stop.")
@click.option("--overwrite", is_flag=True, help="Start anew, whatever there is.")
def generate(**given: Any) -> None:
    """Generate RL data: propose pointers for each query, ask the VLM with each, judge the answers.

    `pointer-rl plugins` lists the names, `pointer-rl plugins show NAME` the options of each.

    Without a dataset it runs on the embedded one, glyphs, with the model that comes with it.

    What is done stands in NAME.partial.jsonl until all is. However a run ended, the same command
    goes on with it; of a finished file, it asks the failed trials again. Exits 1 when every trial
    failed.
    """
    from pointer_rl.cli.progress import Progress
    from pointer_rl.cli.tables import format_table
    from pointer_rl.generate.run import run_generate

    run = _run(given)
    if given["plan"]:
        _print_plan(run)
        return
    with ExitStack() as stack:
        progress = stack.enter_context(Progress())
        try:
            summary: Summary = run_generate(
                run,
                on_start=progress.start,
                on_query=progress.query,
                on_outcome=progress.outcome,
            )
        except KeyboardInterrupt:
            stack.close()
            click.echo(f"pointer-rl: interrupted: {_kept(run, progress.done)}", err=True)
            sys.exit(130)
    click.echo(format_table(summary.rows(), numeric=frozenset({1, 2, 3, 4})))
    if summary.from_store:
        trials = f"{summary.from_store + summary.asked:,} trials"
        click.echo(f"{summary.from_store:,} of {trials} came from the store")
    if summary.cost is not None:
        click.echo(
            f"cost {summary.cost:,.4f}: {summary.used.prompt_tokens:,} prompt and "
            f"{summary.used.generated_tokens:,} generated tokens"
        )
    if summary.stopped_by:
        said = f"stopped by {summary.stopped_by} after {summary.asked:,} trials"
        click.echo(f"{said}, {summary.left:,} queries left: {_kept(run, summary.queries)}")
    else:
        click.echo(f"wrote {run.output_path}: {summary.queries:,} queries")
    if summary.first_failure:
        click.echo(
            f"{summary.all.failed:,} trials failed; first: {summary.first_failure}; "
            "the same command asks them again",
            err=True,
        )
    if summary.all.candidates and not summary.all.judged:
        sys.exit(1)


def _print_plan(run: GenerateRun) -> None:
    from pointer_rl.cli.tables import format_table
    from pointer_rl.generate.plan import make_plan

    plan = make_plan(run)
    click.echo(format_table(plan.rows(), numeric=frozenset({1})))
    for line in plan.sentences():
        click.echo(line)


def _kept(run: GenerateRun, queries: int) -> str:
    from pointer_rl.session.journal import partial_path

    if not queries:
        return "no query was done, nothing is written"
    where = partial_path(run.output_path)
    return f"{queries:,} queries are in {where}; the same command goes on from there"


def _run(given: dict[str, Any]) -> GenerateRun:
    from pointer_rl.generate.pipeline import GenerateConfig
    from pointer_rl.generate.run import GenerateRun, Limits

    def of(*names: str) -> dict[str, Any]:
        return {name: given[name] for name in names}

    return GenerateRun(
        trials=read_trial_options(given),
        generators=_generators(given),
        config=GenerateConfig(**of("shots", "seed", "dedup", "window")),
        limits=Limits(**of("max_calls", "max_seconds")),
        **of("output_path", "sft_ckpt", "beam_data", "score_answers", "shard", "overwrite"),
    )


def _generators(given: dict[str, Any]) -> list[Named]:
    """The built-in four in the order of their precedence, then the user's further ones."""
    from pointer_rl.errors import InputError
    from pointer_rl.options import parse_assignments
    from pointer_rl.session.session import Named

    chosen: dict[str, dict[str, object]] = {}
    if given["num_beams"]:
        chosen["beam"] = {"width": given["num_beams"]}
    if given["num_retrieval"]:
        chosen["retrieval"] = {"num": given["num_retrieval"]}
    if given["num_samples_per_temp"] and given["temps"]:
        samples = given["num_samples_per_temp"]
        chosen["sample"] = {"temperatures": given["temps"], "num_samples": samples}
    if given["num_random"]:
        chosen["random"] = {"num": given["num_random"]}
    for name in given["more"]:
        chosen.setdefault(name, {})
    for key, value in parse_assignments(given["generator_opt"], "--generator-opt").items():
        name, dot, option = key.rpartition(".")
        if not dot or name not in chosen:
            raise InputError(
                f"--generator-opt {key}: write NAME.KEY=VALUE for one of {', '.join(chosen)}"
            )
        chosen[name][option] = value
    return [Named(name, options) for name, options in chosen.items()]
