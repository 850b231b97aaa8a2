"""`pointer-rl embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from pointer_rl.cli.common import FILE, GuideCommand
from pointer_rl.cli.output import echo
from pointer_rl.cli.params import KeyValue, PluginName


@click.command(cls=GuideCommand)
@click.option(
    "--dataset",
    "dataset_name",
    required=True,
    type=PluginName("dataset"),
    metavar="NAME",
    help="Dataset loader.",
)
@click.option(
    "--dataset-opt",
    multiple=True,
    type=KeyValue("dataset", "dataset_name"),
    help="An option of the dataset.",
)
@click.option(
    "--encoder",
    "encoder_name",
    required=True,
    type=PluginName("encoder"),
    metavar="NAME",
    help="Encoder.",
)
@click.option(
    "--encoder-opt",
    multiple=True,
    type=KeyValue("encoder", "encoder_name"),
    help="An option of the encoder.",
)
@click.option(
    "--split", type=click.Choice(["queries", "pool"]), required=True, help="Split to embed."
)
@click.option(
    "--output-path",
    type=FILE,
    required=True,
    help="The .safetensors file to write.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Examples per batch.",
)
def embed(
    dataset_name: str,
    dataset_opt: tuple[str, ...],
    encoder_name: str,
    encoder_opt: tuple[str, ...],
    split: Literal["queries", "pool"],
    output_path: Path,
    batch_size: int,
) -> None:
    """Embed the queries or the pool of a dataset into a file of your own.

    The other commands embed what they need by themselves (--encoder) and keep it in the cache
    folder. Run the same command again to resume an interrupted run.
    """
    from pointer_rl.cli.progress import Progress
    from pointer_rl.datasets.embed import describe_encoder, embed_dataset
    from pointer_rl.datasets.identity import ExampleHasher
    from pointer_rl.files import check_writable
    from pointer_rl.options import parse_assignments
    from pointer_rl.registry import registry

    check_writable(output_path, overwrite=True)  # an existing file may be this run's
    dataset = registry().create(
        "dataset", dataset_name, parse_assignments(dataset_opt, "--dataset-opt")
    )
    encoder_plugin = registry().configure(
        "encoder", encoder_name, parse_assignments(encoder_opt, "--encoder-opt")
    )
    length = len(dataset.queries if split == "queries" else dataset.pool)
    with Progress() as progress:
        with progress.activity(f"loading {encoder_name}"):
            encoder = encoder_plugin.create()
        hasher = ExampleHasher(progress.say, progress.activity)
        with progress.activity(f"embedding the {split}", length) as advance:
            embeddings = embed_dataset(
                dataset,
                encoder,
                output_path,
                split=split,
                hasher=hasher,
                encoder_plugin=describe_encoder(encoder_plugin),
                batch_size=batch_size,
                on_batch=advance,
            )
    rows, dimensions = embeddings.vectors.shape
    echo(f"{output_path}: {rows} rows of {dimensions} dimensions ({encoder.fingerprint})")
