"""`pointer-rl export`."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from pointer_rl.cli.common import FILE, GuideCommand, number_option, plugin_options, with_options
from pointer_rl.cli.output import echo, note
from pointer_rl.cli.tables import counted, format_bytes


@click.command(cls=GuideCommand)
@click.argument("file", type=FILE)
@click.option(
    "--to",
    type=click.Choice(["inspect", "hub"]),
    required=True,
    help="inspect: Inspect logs, from RL data or an evaluation. hub: a folder for the Hugging Face "
    "Hub, from RL data or beam data.",
)
@click.option(
    "--output-path",
    required=True,
    type=FILE,
    help="Folder to write into. An Inspect log of RL data may also be an .eval file.",
)
@number_option(
    "--image-side",
    192,
    minimum=0,
    help="inspect: largest width and height of images, in pixels; 0 leaves them out. `--to hub` "
    "writes them as they are.",
)
@with_options(
    [
        *plugin_options("dataset", None, "Dataset of FILE  [default: the one that it names]."),
        *plugin_options(
            "prompt", None, "inspect: prompt builder of FILE  [default: the one that it names]."
        ),
    ]
)
@click.option("--overwrite", is_flag=True, help="Replace what an earlier export wrote.")
def export(
    file: Path,
    to: str,
    output_path: Path,
    image_side: int,
    dataset: str | None,
    dataset_opt: tuple[str, ...],
    prompt: str | None,
    prompt_opt: tuple[str, ...],
    overwrite: bool,
) -> None:
    """Export FILE, with its images, for other tools.

    `--to inspect` writes logs for `inspect view`: one for RL data; for an evaluation, one per arm
    and number of shots. `--to hub` writes Parquet and a dataset card, for `datasets.load_dataset`.
    """
    from pointer_rl.options import parse_assignments

    source = click.get_current_context().get_parameter_source
    for name in ("image_side", "prompt", "prompt_opt"):
        if to == "hub" and source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"--{name.replace('_', '-')} is for --to inspect alone; leave it out"
            )
    dataset_options = parse_assignments(dataset_opt, "--dataset-opt")
    if to == "inspect":
        from pointer_rl.export.inspect_logs import InspectOptions, write_inspect_logs

        options = InspectOptions(
            image_side=image_side,
            dataset=dataset,
            dataset_options=dataset_options,
            prompt=prompt,
            prompt_options=parse_assignments(prompt_opt, "--prompt-opt"),
            overwrite=overwrite,
        )
        for path in write_inspect_logs(file, output_path, options):
            echo(f"wrote {path} ({format_bytes(path.stat().st_size)})")
        return
    from pointer_rl.export.dataset_folder import write_dataset_folder

    written = write_dataset_folder(
        file,
        output_path,
        dataset=dataset,
        dataset_options=dataset_options,
        overwrite=overwrite,
    )
    counts = [counted(written.records.queries, "query", "queries")]
    counts += [f"{number:,} examples in {name}" for name, number in written.examples.items()]
    if written.unreadable:
        number = counted(written.unreadable, "example")
        note(
            f"pointer-rl: {number} written without an image, because it cannot be read; check the "
            "dataset's files"
        )
    echo(f"wrote {output_path}: {', '.join(counts)}")
