"""`pointer-rl cache`: the store of responses that were paid for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pointer_rl.cli.common import FILE

if TYPE_CHECKING:
    from pointer_rl.session.store import ResponseStore

__all__ = ["cache"]

_DAY = 86_400

_store_option = click.option(
    "--store", type=FILE, help="The file  [default: responses.sqlite in the cache folder]."
)


@click.group()
def cache() -> None:
    """The store of responses: what is in it, and how to be rid of it."""


@cache.command()
@_store_option
def info(store: Path | None) -> None:
    """Where the store is, how large, and what it has of each backend."""
    from pointer_rl.cli.tables import format_table

    opened = _open(store)
    tallies = opened.tallies()
    responses = sum(each.entries for each in tallies)
    click.echo(f"{opened.path}: {_size(opened.size())}, {responses:,} responses")
    if tallies:
        rows = [
            ("responses", "size", "oldest (UTC)", "newest (UTC)", "backend"),
            *(
                (
                    f"{each.entries:,}",
                    _size(each.bytes),
                    _date(each.oldest),
                    _date(each.newest),
                    each.fingerprint,
                )
                for each in tallies
            ),
        ]
        click.echo("\n" + format_table(rows, numeric=frozenset({0, 1})))


@cache.command()
@_store_option
@click.option("--fingerprint", help="Only this backend's; its beginning will do.")
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    metavar="DAYS",
    help="Only those stored before so many days.",
)
@click.option("--all", "everything", is_flag=True, help="All of them.")
def prune(
    store: Path | None, fingerprint: str | None, older_than: float | None, everything: bool
) -> None:
    """Remove responses: of one backend, old ones, those that are both, or all."""
    chosen = fingerprint is not None or older_than is not None
    if chosen == everything:
        raise click.UsageError("say which: --fingerprint, --older-than or both; or --all")
    opened = _open(store)
    if fingerprint is not None:
        known = [each.fingerprint for each in opened.tallies()]
        fingerprint = _complete(fingerprint, known)
    before = None if older_than is None else time.time() - older_than * _DAY
    removed = opened.prune(fingerprint, before)
    left = sum(each.entries for each in opened.tallies())
    click.echo(
        f"{opened.path}: {removed:,} responses removed, {left:,} left, {_size(opened.size())}"
    )


@cache.command()
@click.argument("target", type=FILE)
@_store_option
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def export(target: Path, store: Path | None, overwrite: bool) -> None:
    """Write all responses to TARGET, one a line of JSON."""
    from pointer_rl.session.export import export_responses

    count = export_responses(_open(store), target, overwrite)
    click.echo(f"wrote {target}: {count:,} responses")


def _open(store: Path | None) -> ResponseStore:
    from pointer_rl.session.store import ResponseStore, default_store

    return ResponseStore.existing(store or default_store())


def _complete(beginning: str, known: Sequence[str]) -> str:
    """The one fingerprint that is meant."""
    from pointer_rl.errors import InputError

    if beginning in known:
        return beginning
    found = [each for each in known if each.startswith(beginning)]
    if len(found) != 1:
        what = f"{len(found)} backends have fingerprints that begin so" if found else "no backend"
        raise InputError(
            f"--fingerprint {beginning}: {what} (there are: {', '.join(known) or 'none'})"
        )
    return found[0]


def _size(count: int) -> str:
    """Bytes, in words."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"


def _date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
