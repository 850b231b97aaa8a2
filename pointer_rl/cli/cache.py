"""`pointer-rl cache`: look into what is kept, prune it, export the responses."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pointer_rl.cli.common import FILE, FiniteRange, GuideGroup
from pointer_rl.cli.output import echo, echo_block
from pointer_rl.cli.tables import counted, format_bytes, format_table

if TYPE_CHECKING:
    from pointer_rl.session.cache import ResponseCache

_DAY = 86_400

_store_option = click.option(
    "--store",
    type=FILE,
    help="The response cache's file  [default: responses.sqlite in the cache folder].",
)


@click.group(cls=GuideGroup)
def cache() -> None:
    """Look into the kept responses and embeddings, prune them, or export the responses."""


@cache.command()
@_store_option
def info(store: Path | None) -> None:
    """Print place and size of responses, by backend, and of embeddings."""
    opened = _open(store)
    summaries = opened.summaries()
    number = counted(sum(each.responses for each in summaries), "response")
    echo(f"{opened.path}: {format_bytes(opened.size())}, {number}")
    if summaries:
        rows = [
            ("responses", "size", "oldest (UTC)", "newest (UTC)", "backend"),
            *(
                (
                    f"{each.responses:,}",
                    format_bytes(each.bytes),
                    _minute(each.oldest),
                    _minute(each.newest),
                    each.fingerprint,
                )
                for each in summaries
            ),
        ]
        echo_block("\n" + format_table(rows, numeric=frozenset({0, 1})))
    embeddings = _embeddings()
    if embeddings:
        size = format_bytes(sum(each.stat().st_size for each in embeddings))
        number = counted(len(embeddings), "file")
        echo_block(f"\n{embeddings[0].parent}: {size}, {number} of embeddings")


@cache.command()
@_store_option
@click.option("--fingerprint", help="Remove responses of this backend; a unique prefix will do.")
@click.option(
    "--older-than",
    type=FiniteRange(min=0, max=36_500),
    metavar="DAYS",
    help="Remove responses older than this many days.",
)
@click.option("--all", "everything", is_flag=True, help="Remove all responses.")
@click.option(
    "--embeddings",
    is_flag=True,
    help="Remove embeddings, and no responses: all, or those made before --older-than.",
)
def prune(
    store: Path | None,
    fingerprint: str | None,
    older_than: float | None,
    everything: bool,
    embeddings: bool,
) -> None:
    """Remove responses, or embeddings, from the cache.

    With both --fingerprint and --older-than, only responses that meet both are removed.
    """
    if embeddings:
        if fingerprint is not None or everything:
            raise click.UsageError("--embeddings goes with --older-than alone")
        _prune_embeddings(older_than)
        return
    chosen = fingerprint is not None or older_than is not None
    if chosen == everything:
        raise click.UsageError("say which: --fingerprint, --older-than or both; or --all")
    opened = _open(store)
    if fingerprint is not None:
        fingerprint = _complete(fingerprint, [each.fingerprint for each in opened.summaries()])
    before = None if older_than is None else time.time() - older_than * _DAY
    removed = counted(opened.prune(fingerprint, before), "response")
    left = sum(each.responses for each in opened.summaries())
    echo(f"{opened.path}: {removed} removed, {left:,} left, {format_bytes(opened.size())}")


@cache.command()
@click.argument("target", type=FILE)
@_store_option
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def export(target: Path, store: Path | None, overwrite: bool) -> None:
    """Write all responses to TARGET as JSON lines."""
    from pointer_rl.errors import InputError
    from pointer_rl.files import AtomicFile, check_writable, locked

    opened = _open(store)
    if target.exists() and target.samefile(opened.path):
        raise InputError(f"{target}: is the response cache itself: name another file")
    count = 0
    with locked(target):
        check_writable(target, overwrite=overwrite)
        with AtomicFile(target) as file:
            for row in opened.rows():
                file.write((json.dumps(row, allow_nan=False) + "\n").encode())
                count += 1
    echo(f"wrote {target}: {counted(count, 'response')}")


def _embeddings() -> list[Path]:
    from pointer_rl.files import embeddings_folder

    return sorted(embeddings_folder().glob("*.safetensors"))


def _prune_embeddings(older_than: float | None) -> None:
    from pointer_rl.errors import InputError

    before = math.inf if older_than is None else time.time() - older_than * _DAY
    old = [each for each in _embeddings() if each.stat().st_mtime < before]
    for path in old:
        try:
            path.unlink()
        except OSError as error:
            raise InputError(f"{path}: cannot be removed ({error.strerror})") from error
    echo(f"{counted(len(old), 'file')} of embeddings removed, {len(_embeddings()):,} left")


def _open(store: Path | None) -> ResponseCache:
    from pointer_rl.session.cache import ResponseCache, default_store

    return ResponseCache(store or default_store(), must_exist=True)


def _complete(prefix: str, known: Sequence[str]) -> str:
    """Return the only known fingerprint that starts with `prefix`."""
    from pointer_rl.errors import InputError

    if prefix in known:
        return prefix
    if not prefix:
        raise InputError("--fingerprint is empty: give the beginning of one, or --all")
    found = [each for each in known if each.startswith(prefix)]
    if len(found) != 1:
        what = f"{len(found)} fingerprints begin" if found else "no fingerprint begins"
        raise InputError(
            f"--fingerprint {prefix}: {what} so (the cache has {', '.join(known) or 'none'})"
        )
    return found[0]


def _minute(timestamp: str) -> str:
    """`2026-11-24T20:18:03Z` → `2026-11-24 20:18`; `?` for what is no time."""
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", str(timestamp)):
        return "?"
    return timestamp[:16].replace("T", " ")
