"""`pointer-rl validate`."""

from __future__ import annotations

from pathlib import Path

import click

from pointer_rl.cli.common import FILE, GuideCommand
from pointer_rl.cli.output import echo, echo_block
from pointer_rl.errors import InputError


@click.command(cls=GuideCommand)
@click.argument("files", nargs=-1, required=True, type=FILE)
@click.option(
    "--pool-size", type=int, help="Number of rows in the pool  [default: the number in _meta]."
)
@click.option(
    "--recompute/--no-recompute",
    default=True,
    show_default=True,
    help="Judge the recorded answers again, with the metric that _meta names.",
)
@click.option(
    "--max-findings",
    type=int,
    default=100,
    show_default=True,
    help="Number of findings to show per file; the others are counted.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "github"]),
    default="text",
    show_default=True,
    help="Text, JSON for programs, or annotations of a GitHub workflow.",
)
def validate(
    files: tuple[Path, ...], pool_size: int | None, recompute: bool, max_findings: int, form: str
) -> None:
    """Check FILES of RL data (.json, .jsonl or .parquet).

    Exits with 0 if all files are valid, 1 if there are findings, 2 if a file cannot be read.
    """
    from pointer_rl.validate import Report, ValidationConfig, validate_file
    from pointer_rl.validate.report import FORMATS, annotate_unreadable

    config = ValidationConfig(pool_size=pool_size, recompute=recompute, max_findings=max_findings)
    reports: list[Report] = []
    unreadable: dict[Path, str] = {}
    for path in files:
        try:
            reports.append(validate_file(path, config))
        except InputError as error:
            unreadable[path] = str(error)
    if reports:
        echo_block(FORMATS[form](reports))
    if form == "github":
        for path, message in unreadable.items():
            echo(annotate_unreadable(path, message))
    if unreadable:
        raise InputError("; ".join(unreadable.values()))
    if any(report.num_findings for report in reports):
        raise click.exceptions.Exit(1)
