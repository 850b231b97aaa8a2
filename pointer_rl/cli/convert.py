"""`pointer-rl convert`."""

from __future__ import annotations

from pathlib import Path

import click

from pointer_rl.cli.common import FILE, GuideCommand
from pointer_rl.cli.output import echo


@click.command(cls=GuideCommand)
@click.argument("source", type=FILE)
@click.argument("target", type=FILE)
@click.option("--overwrite", is_flag=True, help="Replace an existing TARGET.")
def convert(source: Path, target: Path, overwrite: bool) -> None:
    """Write SOURCE, RL data or beam data, to TARGET in the current layout.

    The layouts of Lever-LM and Lever-Plus are upgraded. The suffixes .json, .jsonl and .parquet
    (needs pyarrow) name the formats of the two files. No data is lost, and TARGET appears only when
    it is complete.
    """
    from pointer_rl.cli.tables import counted
    from pointer_rl.records.convert import convert_file

    done = convert_file(source, target, overwrite)
    (kind,) = done.kinds
    what = "beam" if kind == "beam data" else "candidate"
    upgraded = ", ".join(f"{count:,} from {name}" for name, count in sorted(done.upgraded.items()))
    echo(
        f"{source}: {kind}, {counted(done.queries, 'query', 'queries')}, "
        f"{counted(done.candidates, what)}; "
        f"upgraded {upgraded or 'none'}; wrote {target}"
    )
