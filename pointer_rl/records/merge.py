"""Join the files of one run: shards (`generate --shard i/n`), or parts that follow one another.

Shard i of n has every n-th window of the run's queries, starting with the i-th. Taking a window of
each shard in turn therefore gives the dataset's order, and the result is, byte for byte, the file
of a run without shards. Files that are not shards follow one another in the order given.

All files are read side by side, record by record; of each query, its id and a hash are remembered.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from pointer_rl.errors import InputError
from pointer_rl.files import check_writable, locked
from pointer_rl.records.convert import Converted, Rewriter
from pointer_rl.records.formats import open_writer, read_meta, stream_records
from pointer_rl.records.provenance import CHOICES, EARLIER, choices_of, differences, earlier_of
from pointer_rl.records.shards import Shard, window_of

_Member = tuple[Path, str, Any]
"""File, key, value."""


@dataclass
class Merged:
    """What the merged files contained."""

    converted: Converted
    repeated: int = 0
    """Number of queries that occurred, equal, in more than one file and were kept once."""
    short: list[tuple[Path, int, int]] = field(default_factory=list)
    """(shard whose run ended early, its number of queries, the number that belongs to it)"""


def merge_files(sources: Sequence[Path], target: Path, overwrite: bool = False) -> Merged:
    """Write the data of all `sources` to `target`; all of it, or nothing.

    Raises InputError if they are not of one run (`_meta`, except for `shard`, is the same in all),
    if a shard is missing, if a query has different records, and as `convert_file` does.
    """
    with locked(target):
        check_writable(target, overwrite=overwrite)
        return _merge(sources, target)


def _merge(sources: Sequence[Path], target: Path) -> Merged:
    metas = {source: read_meta(source) for source in sources}
    if len(metas) < len(sources):
        raise InputError("a file is given twice: name each once")
    shards = _shards(metas)
    meta = _common_meta(metas, ignored="shard" if shards else None)
    ordered = sorted(shards, key=shards.__getitem__) or sources
    streams = [_stream(source) for source in ordered]
    with open_writer(target, meta) as writer:
        members = _in_turn(streams, window_of(meta)) if shards else chain(*streams)
        merged, found = _write(members, ordered, Rewriter(writer))
    dataset = (meta or {}).get("dataset")
    queries = dataset.get("num_queries") if isinstance(dataset, dict) else None
    if isinstance(queries, int):
        sizes = {source: each.size(queries, window_of(meta)) for source, each in shards.items()}
        merged.short = [
            (source, found[source], own) for source, own in sizes.items() if found[source] < own
        ]
    return merged


def _stream(source: Path) -> Iterator[_Member]:
    return ((source, key, value) for key, value in stream_records(source) if key != "_meta")


def _in_turn(streams: Sequence[Iterator[_Member]], size: int) -> Iterator[_Member]:
    """The first window of queries of each stream, then the second of each, until all have ended."""
    left = list(streams)
    while left:
        for stream in tuple(left):
            queries = 0
            for member in stream:
                yield member
                queries += not member[1].startswith("_")
                if queries == size:
                    break
            else:
                left.remove(stream)


def _write(
    members: Iterator[_Member], sources: Sequence[Path], rewriter: Rewriter
) -> tuple[Merged, Counter[Path]]:
    """Write each member once. Also returns the number of queries in each file."""
    merged = Merged(rewriter.converted)
    queries: Counter[Path] = Counter()
    number_of = {source: number for number, source in enumerate(sources)}
    # key → hash of its value, and number of the first file with it: one integer is the smallest
    known: dict[str, int] = {}
    conflicts: list[str] = []
    for source, key, value in members:
        is_query = not key.startswith("_")
        queries[source] += is_query
        digest = hash(json.dumps(value, sort_keys=True))
        if key not in known:
            known[key] = digest * len(sources) + number_of[source]
            if not conflicts:
                rewriter.add(f"{source}: {key!r}", key, value)
            continue
        expected, first = divmod(known[key], len(sources))
        if digest == expected:
            merged.repeated += is_query
        else:
            conflicts.append(f"{source}: {key!r} differs from that in {sources[first]}")
    if conflicts:
        others = f" ({len(conflicts):,} such queries in all)" if conflicts[1:] else ""
        raise InputError(f"{conflicts[0]}{others}; keep one of them")
    if not merged.converted.queries:
        raise InputError("no query in these files")
    return merged, queries


# --- do the files belong to one run -------------------------------------------------------------


def _shards(metas: Mapping[Path, Mapping[str, Any] | None]) -> dict[Path, Shard]:
    """The shard that each file is; empty if none is one. Raises InputError if one is missing."""
    shards: dict[Path, Shard] = {}
    numbers: dict[int, Path] = {}
    for source, meta in metas.items():
        shard = Shard.of(meta)
        if shard is None:
            continue
        shards[source] = shard
        total = next(iter(shards.values())).count
        if shard.count != total:
            raise InputError(
                f"{source}: shard {shard.number}/{shard.count}, where others are of {total}: "
                "merge the shards of one run"
            )
        if shard.number in numbers:
            raise InputError(
                f"{source}: shard {shard.number}/{total}, as {numbers[shard.number]} is: name "
                "each shard once"
            )
        numbers[shard.number] = source
    if shards:
        alone = [source for source in metas if source not in shards]
        missing = list(islice((n for n in range(1, total + 1) if n not in numbers), 6))
        if alone:
            raise InputError(f"{alone[0]}: no shard, unlike {next(iter(shards))}: merge one kind")
        if missing:
            names = ", ".join(f"{each}/{total}" for each in missing[:5])
            dots = ", …" if missing[5:] else ""
            raise InputError(f"missing: shard {names}{dots}; name all shards of the run")
    return shards


def _common_meta(
    metas: Mapping[Path, Mapping[str, Any] | None], ignored: str | None
) -> dict[str, Any] | None:
    """The `_meta` of all files, without the key `ignored`. Raises InputError if they differ.

    What backends chose by their machines stays if all chose the same, and what was different before
    a change that was accepted is that of all.
    """
    (first, expected), *others = (
        (source, None if meta is None else {k: v for k, v in meta.items() if k != ignored})
        for source, meta in metas.items()
    )
    for source, meta in others:
        if (meta is None) != (expected is None):
            raise InputError(f"{source if meta is None else first}: no _meta, unlike the others")
        names = [name for name, *_ in differences(expected or {}, meta or {})]
        if names:
            dots = ", …" if names[8:] else ""
            raise InputError(
                f"{source}: its _meta is not {first}'s, it differs in {', '.join(names[:8])}{dots}:"
                " merge files of one run"
            )
        if expected and choices_of(meta or {}) != choices_of(expected):
            expected.pop(CHOICES, None)
        new = [each for each in earlier_of(meta or {}) if each not in earlier_of(expected or {})]
        if expected and new:
            expected[EARLIER] = earlier_of(expected) + new
    return expected
