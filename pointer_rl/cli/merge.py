"""`pointer-rl merge`."""

from __future__ import annotations

from pathlib import Path

import click

from pointer_rl.cli.common import FILE, GuideCommand
from pointer_rl.cli.output import echo


@click.command(cls=GuideCommand)
@click.argument("files", nargs=-1, required=True, type=FILE)
@click.option("--output-path", required=True, type=FILE, help="The file to write.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def merge(files: tuple[Path, ...], output_path: Path, overwrite: bool) -> None:
    """Join FILES of one run: the shards of a run on several machines, or parts of a dataset.

    Shards are put in the dataset's order, whatever order they are named in: the result is the file
    that one machine would have written. Other files follow one another. A query that occurs in
    several files with equal records is kept once. If its records differ, or the files belong to
    different runs (_meta), nothing is written. The suffixes .json, .jsonl and .parquet (needs
    pyarrow) name the formats of the files.
    """
    from pointer_rl.cli.tables import counted
    from pointer_rl.records.merge import merge_files

    merged = merge_files(files, output_path, overwrite)
    done = merged.converted
    (kind,) = done.kinds
    what = "beam" if kind == "beam data" else "candidate"
    echo(
        f"{counted(len(files), 'file')}: {kind}, {counted(done.queries, 'query', 'queries')}, "
        f"{counted(done.candidates, what)}"
    )
    if merged.repeated:
        queries = counted(merged.repeated, "query", "queries")
        echo(f"in more than one file, equal, and kept once: {queries}")
    for path, found, expected in merged.short:
        echo(f"note: {path} has {found:,} of its {expected:,} queries: it was ended early")
    echo(f"wrote {output_path}")
