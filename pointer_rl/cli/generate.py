"""`pointer-rl generate`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from pointer_rl.cli.common import (
    ACCEPT_CHANGED,
    EXECUTOR_OPTIONS,
    FILE,
    RESUME,
    SCORE_ANSWERS,
    SHOTS,
    TRIAL_OPTIONS,
    FiniteRange,
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
from pointer_rl.cli.params import BUNDLE, KeyValue, PluginName

if TYPE_CHECKING:
    from pointer_rl.cli.progress import Progress
    from pointer_rl.generate.run import GenerateRun
    from pointer_rl.records.shards import Shard
    from pointer_rl.session.session import PluginRef

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
@click.option(
    "--output-path", required=True, type=FILE, help="The .json, .jsonl or .parquet file to write."
)
@with_options(TRIAL_OPTIONS)
@click.option(
    "--sft-ckpt",
    type=BUNDLE,
    help="Policy bundle (also hub:OWNER/NAME) or checkpoint that proposes beams and samples.",
)
@click.option("--beam-data", type=FILE, help="Only the queries that this beam file has.")
@with_options([SHOTS])
@click.option(
    "--any-length",
    is_flag=True,
    help="Propose shorter pointers too, down to no demonstration  [default: if the policy can "
    "stop].",
)
@number_option("--num-beams", 5, minimum=0, help="Beams for each query.")
@number_option(
    "--num-retrieval", 1, minimum=0, help="Pointers of the most similar rows, for each query."
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
@number_option(
    "--num-samples-per-temp", 2, minimum=0, help="Samples for each query at each temperature."
)
@number_option("--num-random", 1, minimum=0, help="Uniformly drawn pointers for each query.")
@click.option(
    "--generator",
    "more",
    multiple=True,
    type=PluginName("generator"),
    metavar="NAME",
    help="A further candidate generator (repeatable).",
)
@click.option(
    "--generator-opt",
    multiple=True,
    type=KeyValue("generator"),
    help="Options of any generator.",
)
@click.option(
    "--dedup",
    type=click.Choice(["ordered", "unordered"]),
    default="ordered",
    show_default=True,
    help="Whether the same rows in another order are another candidate.",
)
@with_options([SCORE_ANSWERS])
@seed_option()
@number_option(
    "--window",
    help="Queries asked together: more have more in common, fewer are lost by a kill  [default: "
    "128, or 1024 where there is a GPU].",
)
@number_option(
    "--max-calls",
    help="Ask the VLM at most N trials: a window of queries that could take more is not started  "
    "[default: no limit].",
)
@click.option(
    "--max-seconds",
    type=FiniteRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Stop at the end of the queries that are under way then  [default: no limit].",
)
@click.option(
    "--shard",
    callback=_shard,
    metavar="I/N",
    help="Only the I-th of N parts (see `merge`)  [default: all].",
)
@click.option("--plan", is_flag=True, help="Say what the run would cost, and stop.")
@with_options([*EXECUTOR_OPTIONS, RESUME, ACCEPT_CHANGED])
@click.option("--overwrite", is_flag=True, help="Start over, whatever there is.")
def generate(**given: Any) -> None:
    """Generate RL data: propose pointers for each query, ask the VLM with each, judge the answers.

    `pointer-rl plugins` lists the names, `pointer-rl plugins show NAME` the options of each.

    Without a dataset it runs on the embedded one, glyphs, with the model that comes with it.

    What is done is kept in NAME.partial.jsonl until the run is finished. However a run ended, the
    same command continues it; run on a finished file, it asks the failed trials again. Exits 1 if
    every trial failed.
    """
    from pointer_rl.cli.progress import Progress
    from pointer_rl.cli.tables import format_table

    with Progress() as progress:
        from pointer_rl.generate.run import run_generate
        from pointer_rl.session.journal import AlreadyFinished

        run = _run(given)
        if given["plan"]:
            _print_plan(run, progress)
            return
        with resumable(progress, lambda: kept_in(run.output_path, progress)):
            summary = run_generate(run, progress)
    echo_block(format_table(summary.rows(), numeric=frozenset({1, 2, 3, 4})))
    if summary.from_cache:
        trials = f"{summary.from_cache + summary.asked:,} trials"
        echo(f"{summary.from_cache:,} of {trials} came from the response cache")
    if summary.cost is not None:
        echo(
            f"cost {summary.cost:,.4f}: {summary.used.prompt_tokens:,} prompt and "
            f"{summary.used.generated_tokens:,} generated tokens"
        )
    if summary.stopped_by:
        said = f"stopped by {summary.stopped_by} after {summary.asked:,} trials"
        echo(f"{said}, {summary.left:,} queries left: {kept_in(run.output_path, progress)}")
    elif summary.unchanged:
        echo(str(AlreadyFinished(run.output_path)))
    else:
        echo(f"wrote {run.output_path}: {summary.queries:,} queries")
    if summary.first_failure:
        echo(
            f"{summary.all.failed:,} trials failed; first: {summary.first_failure}; "
            "the same command asks them again",
            err=True,
        )
    if summary.all.candidates and not summary.all.judged:
        raise click.exceptions.Exit(1)


def _print_plan(run: GenerateRun, progress: Progress) -> None:
    from pointer_rl.cli.tables import format_table
    from pointer_rl.generate.plan import make_plan

    plan = make_plan(run, progress)
    progress.stop()
    echo_block(format_table(plan.rows(), numeric=frozenset({1})))
    for line in plan.sentences():
        echo(line)


def _run(given: dict[str, Any]) -> GenerateRun:
    from pointer_rl.generate.run import GenerateRun

    names = (
        *(
            "output_path",
            "shots",
            "any_length",
            "seed",
            "dedup",
            "window",
            "score_answers",
            "sft_ckpt",
        ),
        *("beam_data", "shard", "max_calls", "max_seconds", "overwrite", "accept_changed"),
    )
    return GenerateRun(
        session=read_session_options(given),
        generators=_generators(given),
        **{name: given[name] for name in names},
    )


def _generators(given: dict[str, Any]) -> list[PluginRef]:
    """The built-in four in the order of their precedence, then the user's further ones."""
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
    return plugin_refs(chosen, given["generator_opt"], "--generator-opt")
