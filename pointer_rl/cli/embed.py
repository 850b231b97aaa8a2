"""`pointer-rl embed`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from pointer_rl.cli.common import (
    FILE,
    GuideCommand,
    number_option,
    plugin_options,
    plugin_ref,
    with_options,
)
from pointer_rl.cli.output import echo

if TYPE_CHECKING:
    from pointer_rl.types import Dataset


@click.command(cls=GuideCommand)
@with_options(
    [
        *plugin_options("dataset", None, "Dataset loader.", required=True),
        *plugin_options("encoder", None, "Encoder.", required=True),
    ]
)
@click.option(
    "--split", type=click.Choice(["queries", "pool"]), required=True, help="Split to embed."
)
@click.option("--output-path", type=FILE, required=True, help="The .safetensors file to write.")
@number_option("--batch-size", 64, help="Examples per batch.")
def embed(
    split: Literal["queries", "pool"], output_path: Path, batch_size: int, **given: Any
) -> None:
    """Embed the queries or the pool of a dataset into a file of your own.

    The other commands embed what they need by themselves (--encoder) and keep it in the cache
    folder. Run the same command again to resume an interrupted run.
    """
    from pointer_rl.cli.progress import Progress
    from pointer_rl.datasets.embed import describe_encoder, embed_dataset
    from pointer_rl.datasets.identity import ExampleHasher
    from pointer_rl.files import check_writable

    check_writable(output_path, overwrite=True)  # an existing file may be this run's
    dataset: Dataset = plugin_ref(given, "dataset").configure("dataset").create()
    encoder_plugin = plugin_ref(given, "encoder").configure("encoder")
    length = len(dataset.queries if split == "queries" else dataset.pool)
    with Progress() as progress:
        with progress.activity(f"loading {given['encoder']}"):
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
