"""`pointer-rl glyphs DIR`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from pointer_rl.options import build_options, parse_assignments
from pointer_rl_glyphs.options import GlyphsOptions


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--dataset-opt",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of the dataset glyphs; pointer-rl plugins show dataset:glyphs lists them.",
)
def glyphs(folder: Path, assignments: tuple[str, ...]) -> None:
    """Write the glyph dataset to FOLDER: images, and questions and annotations in VQAv2's format.

    All splits are written; `--dataset vqa` reads them.
    """
    from pointer_rl_glyphs.vqa_export import export_vqa, reading_options

    values = parse_assignments(assignments, "--dataset-opt")
    options = build_options(GlyphsOptions, values, "dataset glyphs")
    export_vqa(options, folder)
    flags = " ".join(
        f"--dataset-opt {shlex.quote(each)}" for each in reading_options(folder, options.split)
    )
    click.echo(f"wrote {folder}; read it with: --dataset vqa {flags}")
