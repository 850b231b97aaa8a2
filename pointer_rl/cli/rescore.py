"""`pointer-rl rescore`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pointer_rl.cli.common import FILE, GuideCommand, plugin_options, with_options
from pointer_rl.cli.output import echo

if TYPE_CHECKING:
    from pointer_rl.records.rescore import Rescored


@click.command(cls=GuideCommand)
@click.argument("source", type=FILE)
@click.option("--output-path", required=True, type=FILE, help="The file to write.")
@with_options(
    [
        *plugin_options("metric", None, "Accuracy metric  [default: the one named in the file]."),
        *plugin_options(
            "prompt",
            None,
            "Prompt builder that extracts the answers from the raw generations  [default: keep "
            "the recorded answers].",
            owner="prompt builder",
        ),
    ]
)
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def rescore(
    source: Path,
    output_path: Path,
    metric: str | None,
    metric_opt: tuple[str, ...],
    prompt: str | None,
    prompt_opt: tuple[str, ...],
    overwrite: bool,
) -> None:
    """Judge the recorded generations of SOURCE again, without calling a VLM.

    Uses another metric, or extracts the answers in another way. Also computes vqa_rel_score, the
    similarity of each answer to the annotators' answers. Failed candidates stay failed. Rewards
    need no rescoring: `train --reward-mode` computes them from the recorded outcomes.
    """
    from pointer_rl.options import parse_assignments
    from pointer_rl.records.rescore import rescore_file

    for flag, name, options in (("metric", metric, metric_opt), ("prompt", prompt, prompt_opt)):
        if options and name is None:
            raise click.UsageError(f"--{flag}-opt sets options of --{flag}: name one")
    done = rescore_file(
        source,
        output_path,
        metric=metric,
        metric_options=parse_assignments(metric_opt, "--metric-opt"),
        prompt=prompt,
        prompt_options=parse_assignments(prompt_opt, "--prompt-opt"),
        overwrite=overwrite,
    )
    _print(source, output_path, done)


def _print(source: Path, target: Path, done: Rescored) -> None:
    from pointer_rl.cli.tables import counted

    echo(
        f"{source}: {counted(done.queries, 'query', 'queries')}, "
        f"{counted(done.judged, 'candidate')} judged again, "
        f"{done.failed:,} failed (left as they are)"
    )
    echo(f"answers: {done.answers:,} changed")
    echo(
        f"correct: {done.became_right + done.became_wrong:,} changed "
        f"({done.became_right:,} became right, {done.became_wrong:,} wrong)"
    )
    accuracies = f"accuracy: {done.accuracies:,} changed"
    if done.judged:
        before, after = (each / done.judged for each in (done.accuracy_before, done.accuracy_after))
        accuracies += f", on average from {before:.3f} to {after:.3f}"
    echo(accuracies)
    if done.other_normalisation:
        echo(
            f"note: vqa_gt_prob of {counted(done.other_normalisation, 'candidate')} still refers "
            "to the answers as the previous metric normalised them"
        )
    echo(f"wrote {target}")
