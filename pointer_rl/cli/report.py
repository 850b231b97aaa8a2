"""`pointer-rl report`."""

from __future__ import annotations

from pathlib import Path

import click

from pointer_rl.cli.common import FILE, FiniteRange, GuideCommand, plugin_options, with_options
from pointer_rl.cli.output import echo, note
from pointer_rl.cli.tables import format_bytes


@click.command(cls=GuideCommand)
@click.argument("paths", nargs=-1, required=True, type=FILE, metavar="FILE|FOLDER…")
@click.option("--output-path", required=True, type=FILE, help="The .html file to write.")
@click.option(
    "--max-mb",
    type=FiniteRange(min=1),
    default=25,
    show_default=True,
    help="Size of the page. What does not fit is sampled, and the page says so.",
)
@with_options(
    plugin_options(
        "dataset",
        None,
        "Dataset with the images, and the demonstrations' questions  [default: the one that each "
        "file names].",
    )
)
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def report(
    paths: tuple[Path, ...],
    output_path: Path,
    max_mb: float,
    dataset: str | None,
    dataset_opt: tuple[str, ...],
    overwrite: bool,
) -> None:
    """Write a page about RL data, beam data, trainings and evaluations.

    Takes files and folders, which are searched for them. The page is one file that loads nothing
    from anywhere and opens in any browser: verdict, arms, learning curves, how demonstrations are
    used, what went wrong, and every query with its images and answers.
    """
    from pointer_rl.options import parse_assignments
    from pointer_rl.report.page import ReportOptions, write_report

    options = ReportOptions(
        max_bytes=int(max_mb * 1_000_000),
        dataset=dataset,
        dataset_options=parse_assignments(dataset_opt, "--dataset-opt"),
        overwrite=overwrite,
    )
    written = write_report(paths, output_path, options)
    for sentence in written.left_out:
        note(f"pointer-rl: {sentence}")
    echo(f"wrote {output_path} ({format_bytes(written.size)})")
