"""Join the files of one run: shards (`generate --shard i/n`), or parts that follow one another.

Shard i of n has every n-th window of the run's queries, starting with the i-th. Taking a window of
each shard in turn therefore gives the dataset's order, and the result is, byte for byte, the file
of a run without shards. Files that are not shards follow one another in the order given.

All files are read side by side, record by record; of each query, its id and a hash are remembered.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from pointer_rl.errors import InputError
from pointer_rl.files import check_writable
from pointer_rl.records.convert import Converted, Rewriter
from pointer_rl.records.formats import open_writer, read_meta, stream_sound_members
from pointer_rl.records.provenance import differences
from pointer_rl.records.shards import Shard, window_of

_Member = tuple[int, str, Any]
"""Index of the file, key, value."""


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
    check_writable(target, overwrite=overwrite)
    metas = {source: read_meta(source) for source in sources}
    if len(metas) < len(sources):
        raise InputError("a file is given twice: name each once")
    shards = _shards(metas)
    meta = _common_meta(metas, ignored="shard" if shards else None)
    ordered = sorted(shards, key=shards.__getitem__) if shards else list(sources)
    with open_writer(target, meta) as writer:
        return _Merge(Rewriter(writer), ordered, shards, meta).run()


class _Merge:
    """The state of one merge."""

    def __init__(
        self,
        rewriter: Rewriter,
        sources: Sequence[Path],
        shards: Mapping[Path, Shard],
        meta: Mapping[str, Any] | None,
    ) -> None:
        self._rewriter = rewriter
        self._sources = sources
        self._shards = shards
        self._meta = meta
        self._merged = Merged(rewriter.converted)
        self._known: dict[str, int] = {}  # key → hash · number of sources + index of the source
        self._queries = dict.fromkeys(sources, 0)
        self._conflict = ""  # describes the first one
        self._conflicts = 0

    def run(self) -> Merged:
        streams = [self._stream(index) for index in range(len(self._sources))]
        for index, key, value in self._in_turn(streams) if self._shards else chain(*streams):
            self._member(index, key, value)
        if self._conflicts:
            others = f" ({self._conflicts:,} such queries in all)" if self._conflicts > 1 else ""
            raise InputError(f"{self._conflict}{others}; keep one of them")
        if not self._merged.converted.queries:
            raise InputError("no query in these files")
        self._merged.short = list(self._short())
        return self._merged

    def _stream(self, index: int) -> Iterator[_Member]:
        for key, value in stream_sound_members(self._sources[index]):
            if key != "_meta":
                yield index, key, value
            elif self._meta is None:
                raise InputError(f"{self._sources[index]}: '_meta' is no object")

    def _in_turn(self, streams: Sequence[Iterator[_Member]]) -> Iterator[_Member]:
        """The first window of each stream, then the second of each, until all have ended."""
        size = window_of(self._meta)
        left = list(streams)
        while left:
            for stream in tuple(left):
                window = list(islice(stream, size))
                yield from window
                if len(window) < size:
                    left.remove(stream)

    def _member(self, index: int, key: str, value: Any) -> None:
        source = self._sources[index]
        self._queries[source] += not key.startswith("_")
        digest = hash(json.dumps(value, sort_keys=True))
        if key in self._known:
            known, first = divmod(self._known[key], len(self._sources))
            if first == index:
                raise InputError(f"{source}: {key!r} occurs twice; keep one of them")
            if known != digest:
                other = self._sources[first]
                self._conflict = self._conflict or f"{source}: {key!r} differs from that in {other}"
                self._conflicts += 1
            else:
                self._merged.repeated += not key.startswith("_")
            return
        self._known[key] = digest * len(self._sources) + index
        if not self._conflicts:
            self._rewriter.add(f"{source}: {key!r}", key, value)

    def _short(self) -> Iterator[tuple[Path, int, int]]:
        dataset = (self._meta or {}).get("dataset")
        queries = dataset.get("num_queries") if isinstance(dataset, dict) else None
        for source, shard in self._shards.items():
            found = self._queries[source]
            if isinstance(queries, int):
                own = shard.size(queries, window_of(self._meta))
                if found < own:
                    yield source, found, own


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
        missing = [each for each in range(1, total + 1) if each not in numbers]
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
    """The `_meta` of all files, without the key `ignored`. Raises InputError if they differ."""
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
    return expected
