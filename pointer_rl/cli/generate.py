"""`pointer-rl generate`."""

from __future__ import annotations

import re
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pointer_rl.generate.run import GenerateRun, Named
    from pointer_rl.generate.summary import Summary

__all__ = ["generate"]

FILE = click.Path(dir_okay=True, path_type=Path)
_NUMBER = re.compile(r"[0-9.]+([eE][-+]?[0-9]+)?")


class GuideCommand(click.Command):
    """Reads the guide's spellings too: underscores in options, and `--temps 1.0 1.3`."""

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


@click.command(
    cls=GuideCommand,
    context_settings={"token_normalize_func": lambda token: token.replace("_", "-")},
)
@click.option("--output-path", required=True, type=FILE, help="The .json or .jsonl file to write.")
@click.option(
    "--backend",
    "--vqa-model",
    "backend",
    default="qwen2vl",
    show_default=True,
    metavar="NAME",
    help="VQA backend, or an alias such as qwen2.5_vl_3B.",
)
@click.option(
    "--backend-opt", multiple=True, metavar="KEY=VALUE", help="Option of the backend (repeatable)."
)
@click.option(
    "--dataset", default="glyphs", show_default=True, metavar="NAME", help="Dataset loader."
)
@click.option(
    "--dataset-opt", multiple=True, metavar="KEY=VALUE", help="Option of the dataset (repeatable)."
)
@click.option(
    "--prompt", default="short-answer", show_default=True, metavar="NAME", help="Prompt builder."
)
@click.option(
    "--prompt-opt", multiple=True, metavar="KEY=VALUE", help="Option of the prompt (repeatable)."
)
@click.option("--metric", default="vqa", show_default=True, metavar="NAME", help="Accuracy metric.")
@click.option(
    "--metric-opt", multiple=True, metavar="KEY=VALUE", help="Option of the metric (repeatable)."
)
@click.option("--sft-ckpt", type=FILE, help="Selector checkpoint that proposes beams and samples.")
@click.option("--query-emb", type=FILE, help="Embeddings of the queries.")
@click.option("--cand-emb", type=FILE, help="Embeddings of the pool.")
@click.option("--beam-data", type=FILE, help="Only the queries that this beam file has.")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after this many queries.")
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
    "--decoding-opt",
    multiple=True,
    metavar="KEY=VALUE",
    help="max_new_tokens, num_beams, length_penalty, stop (comma-separated).",
)
@click.option("--device", help="cpu, cuda, cuda:1, …; by default the first GPU, if any.")
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Random seed."
)
@click.option("--overwrite", is_flag=True, help="Replace an existing output file.")
def generate(**given: Any) -> None:
    """Generate RL data: propose pointers for each query, ask the VLM with each, judge the answers.

    `pointer-rl plugins` lists the names, `pointer-rl plugins show NAME` the options of each.

    Without a dataset it runs on the embedded one, glyphs, with the model that comes with it.
    Ctrl-C leaves a valid file of the queries that are done. Exits 1 when every trial failed.
    """
    from pointer_rl.cli.tables import format_table
    from pointer_rl.generate.run import run_generate

    run = _run(given)
    with ExitStack() as stack:
        progress = stack.enter_context(_Progress())
        try:
            summary: Summary = run_generate(
                run,
                on_start=progress.start,
                on_query=progress.query,
                on_outcome=progress.outcome,
            )
        except KeyboardInterrupt:
            stack.close()
            done = f"{progress.done:,} queries are in {run.output_path}"
            message = done if progress.done else "no query was done, nothing is written"
            click.echo(f"pointer-rl: interrupted: {message}", err=True)
            sys.exit(130)
    click.echo(format_table(summary.rows(), numeric=frozenset({1, 2, 3, 4})))
    click.echo(f"wrote {run.output_path}: {summary.queries:,} queries")
    if summary.first_failure:
        click.echo(
            f"{summary.all.failed:,} trials failed; first: {summary.first_failure}", err=True
        )
    if summary.all.candidates and not summary.all.judged:
        sys.exit(1)


def _run(given: dict[str, Any]) -> GenerateRun:
    from pointer_rl.generate.pipeline import GenerateConfig
    from pointer_rl.generate.run import GenerateRun, Named
    from pointer_rl.options import build_options, parse_assignments
    from pointer_rl.types import Decoding

    def named(kind: str) -> Named:
        flag = f"{kind}_opt"
        return Named(given[kind], parse_assignments(given[flag], f"--{kind}-opt"))

    decoding = parse_assignments(given["decoding_opt"], "--decoding-opt")
    return GenerateRun(
        dataset=named("dataset"),
        backend=named("backend"),
        prompt=named("prompt"),
        metric=named("metric"),
        generators=_generators(given),
        config=GenerateConfig(shots=given["shots"], seed=given["seed"], dedup=given["dedup"]),
        decoding=build_options(Decoding, decoding, "decoding"),
        **{
            key: given[key]
            for key in (
                *("output_path", "sft_ckpt", "query_emb", "cand_emb", "beam_data"),
                *("limit", "device", "score_answers", "overwrite"),
            )
        },
    )


def _generators(given: dict[str, Any]) -> list[Named]:
    """The built-in four in the order of their precedence, then the user's further ones."""
    from pointer_rl.errors import InputError
    from pointer_rl.generate.run import Named
    from pointer_rl.options import parse_assignments

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


class _Progress:
    """Queries done, rate, time left and the share correct so far; silent where none watches."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("loading", total=None, figures="")
        self._trials = self._judged = self._correct = 0
        self.done = 0
        """Queries written."""

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._bar.stop()

    def start(self, queries: int) -> None:
        self._bar.reset(self._task, total=queries, description="queries")

    def query(self) -> None:
        self.done += 1
        self._bar.advance(self._task)

    def outcome(self, outcome: Any) -> None:
        self._trials += 1
        if outcome.correct is not None:
            self._judged += 1
            self._correct += outcome.correct
        elapsed = self._bar.tasks[0].elapsed or 0
        rate = f"{self._trials / elapsed:.0f} trials/s" if elapsed else ""
        share = f"{self._correct / self._judged:.0%} correct" if self._judged else ""
        self._bar.update(self._task, figures=f"{rate}  {share}")
