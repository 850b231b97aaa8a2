"""`pointer-rl push`."""

from __future__ import annotations

import re
from pathlib import Path

import click

from pointer_rl.cli.common import FILE, GuideCommand
from pointer_rl.cli.output import echo, note


@click.command(cls=GuideCommand)
@click.argument("repository", metavar="OWNER/NAME")
@click.argument("folder", type=FILE)
def push(repository: str, folder: Path) -> None:
    """Upload a policy bundle, or a dataset, to the Hugging Face Hub.

    FOLDER is a policy bundle, or has Parquet files and a dataset card, README.md. Its other files
    are not uploaded. A new repository is private until its owner changes that on the Hub. The token
    comes from HF_TOKEN or `hf auth login`.
    """
    from pointer_rl.errors import InputError
    from pointer_rl.hub import REPOSITORY, upload
    from pointer_rl.selectors.bundle import BUNDLE_FILES, check_bundle, is_bundle, seed_folders

    if not re.fullmatch(REPOSITORY, repository):
        raise InputError(f"{repository!r} is not the name of a repository; write OWNER/NAME")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    if is_bundle(folder) or seed_folders(folder):
        if check_bundle(folder).info.evaluation is None:
            note(
                "pointer-rl: this policy was never evaluated; evaluate --record adds the result to "
                "its card"
            )
        echo(f"wrote {upload(repository, folder, 'model', BUNDLE_FILES)}")
        echo(f"its name in commands is hub:{repository}")
        return
    card, data = "README.md", "*.parquet"
    if not (folder / card).is_file() or not any(folder.rglob(data)):
        raise InputError(f"{folder}: neither a policy bundle nor Parquet files with a {card}")
    echo(f"wrote {upload(repository, folder, 'dataset', [card, data])}")
