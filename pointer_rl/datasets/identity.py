"""Hashes of examples, images included: what a run was made of, the same on every machine.

An image is read once. Its hash is then kept in `images.sqlite` in the cache folder, under the path
of its file, and holds as long as the file's size and times stay. (Not its inode: some network disks
invent another one each time.) The cache is only a shortcut: nothing of it is in a hash.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from pointer_rl.datasets.images import EncodedImage
from pointer_rl.errors import InputError, first_line
from pointer_rl.files import cache_folder
from pointer_rl.types import Example, ImageRef

log = logging.getLogger(__name__)

HASH_BYTES = 16
"""Length of the hash of one example."""
_THREADS = 8
"""Files that are read at a time: on a network disk most of the time is waiting."""
_TOGETHER = 500
"""Files that are looked up, and whose hashes are kept, together."""
_SETTLED = 2_000_000_000
"""Nanoseconds after which another change of a file surely shows in its times."""
Say = Callable[[str], object]
Activity = Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], object]]]
"""`Observer.activity`."""


@contextlib.contextmanager
def unseen(what: str, total: int) -> Iterator[Callable[[int], object]]:
    """For nobody to see."""
    yield lambda steps: None


def image_content(example: Example) -> str:
    """A key of the example's image: equal for equal content."""
    try:
        return example.image.key
    except InputError:
        # An unreadable image equals no other. The example's trials fail and say why.
        return f"unreadable {example.row}"


@dataclass(frozen=True)
class Contents:
    """The hashes of some examples."""

    hashes: Sequence[bytes]
    """[N] SHA-256, cut to `HASH_BYTES`, of id, question, answers, ids, image and episode."""
    unreadable: Collection[int]
    """The indices of the examples whose image cannot be read, and is not in the hash."""

    @property
    def digest(self) -> str:
        """SHA-256 of all hashes, in order."""
        return digest_hashes(self.hashes)


def digest_hashes(hashes: Iterable[bytes]) -> str:
    """SHA-256 of examples' hashes in order, in hex digits."""
    return hashlib.sha256(b"".join(hashes)).hexdigest()


class ExampleHasher:
    """Hashes examples; the same sequence only once."""

    def __init__(self, say: Say = lambda sentence: None, activity: Activity = unseen) -> None:
        self._say = say
        self._activity = activity
        self._done: dict[int, tuple[Sequence[Example], Contents]] = {}

    def __call__(self, examples: Sequence[Example]) -> Contents:
        """The hashes. Reads every image that has not been read before, which may take a while."""
        if id(examples) not in self._done:
            hash_images((each.image for each in examples), self._activity)
            self._done[id(examples)] = (examples, self._hash(examples))
        return self._done[id(examples)][1]

    def _hash(self, examples: Sequence[Example]) -> Contents:
        hashes: list[bytes] = []
        unreadable: set[int] = set()
        first = ""
        with self._activity("hashing examples", len(examples)) as advance:
            for index, each in enumerate(examples):
                try:
                    image = each.image.key
                except InputError as error:  # its trials fail, and say why
                    image = None
                    unreadable.add(index)
                    first = first or f"{each.id}: {error}"
                hashes.append(hash_example(each, image))
                advance(1)
        if unreadable:
            self._say(f"examples whose image cannot be read: {len(unreadable):,}; first: {first}")
        return Contents(hashes, unreadable)


def hash_example(example: Example, image: str | None) -> bytes:
    """The hash of an example whose image has this key; None if it cannot be read."""
    content = (
        example.id,
        example.question,
        example.answers,
        example.question_id,
        example.image_id,
        image,
        *([] if example.episode is None else [example.episode]),
    )
    return hashlib.sha256(json.dumps(content).encode()).digest()[:HASH_BYTES]


def digest_ids(ids: Iterable[object]) -> str:
    """SHA-256 of ids in order, which identifies a pool or a set of queries.

    It is that of one JSON list, encoded item by item because it may be large.
    """
    digest = hashlib.sha256(b"[")
    for position, item in enumerate(ids):
        digest.update(f"{', ' if position else ''}{json.dumps(item)}".encode())
    digest.update(b"]")
    return digest.hexdigest()


# --- images -------------------------------------------------------------------------------------


def hash_images(images: Iterable[ImageRef], activity: Activity = unseen) -> None:
    """Give images that lie in files their keys; those that cannot be read get none."""
    by_place: dict[str, list[EncodedImage]] = {}
    for image in {id(each): each for each in images}.values():  # examples share images
        if isinstance(image, EncodedImage) and not image.has_key:
            place = image.place
            if place is not None:
                by_place.setdefault(place, []).append(image)
    if not by_place:
        return
    places = list(by_place)
    with (
        activity("looking for changed images", len(places)) as advance,
        _KeptHashes(cache_folder() / "images.sqlite") as kept,
        ThreadPoolExecutor(_THREADS) as pool,
    ):
        for start in range(0, len(places), _TOGETHER):
            some = places[start : start + _TOGETHER]
            known = kept.get(some)
            asked = [(place, by_place[place][0]) for place in some]
            shares = (asked[first::_THREADS] for first in range(_THREADS))
            found = dict(chain.from_iterable(pool.map(partial(_hash_all, known), shares)))
            for place, each in found.items():
                for image in by_place[place]:
                    image.set_key(each.hash)
            new = {place: each for place, each in found.items() if each is not known.get(place)}
            kept.put({place: each for place, each in new.items() if each.settled})
            advance(len(some))


@dataclass(frozen=True)
class _Hashed:
    """An image's hash, and the state of its files with which it had that."""

    state: str
    hash: str
    settled: bool = True
    """Whether the files were left alone long enough for a next change to show in their times."""


def _hash_all(
    known: Mapping[str, _Hashed], images: Sequence[tuple[str, EncodedImage]]
) -> list[tuple[str, _Hashed]]:
    """The hashes of the images that can be read, by place."""
    hashed = ((place, _hash(image, known.get(place))) for place, image in images)
    return [(place, each) for place, each in hashed if each is not None]


def _hash(image: EncodedImage, known: _Hashed | None) -> _Hashed | None:
    """The hash of an image, from what is known of it or its content; None if unreadable."""
    try:
        before = image.states()
        state = json.dumps(before)
        if known is not None and known.state == state:
            return known
        hash_ = hashlib.sha256(image.read()).hexdigest()
        unchanged = image.states() == before
    except (OSError, ValueError, InputError):
        return None
    age = time.time_ns() - max((max(each.modified, each.changed) for each in before), default=0)
    return _Hashed(state, hash_, settled=unchanged and age > _SETTLED)


def _encode(place: str) -> bytes:
    return place.encode("utf-8", "surrogatepass")  # a path may be no text


class _KeptHashes:
    """The hashes of files that were read before. Without a file to keep them, there are none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        with self._harmless():
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(path, timeout=60, isolation_level=None)
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS hashes"
                " (place BLOB PRIMARY KEY, state TEXT NOT NULL, hash TEXT NOT NULL) WITHOUT ROWID"
            )
            self._connection = connection

    def get(self, places: Sequence[str]) -> dict[str, _Hashed]:
        found: dict[str, _Hashed] = {}
        with self._harmless():
            if self._connection is not None:
                marks = ",".join("?" * len(places))
                rows = self._connection.execute(
                    f"SELECT place, state, hash FROM hashes WHERE place IN ({marks})",
                    list(map(_encode, places)),
                )
                of = {_encode(place): place for place in places}
                found = {of[place]: _Hashed(*each) for place, *each in rows}
        return found

    def put(self, hashes: Mapping[str, _Hashed]) -> None:
        rows = [(_encode(place), each.state, each.hash) for place, each in hashes.items()]
        with self._harmless():
            if self._connection is not None and rows:
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.executemany("REPLACE INTO hashes VALUES (?, ?, ?)", rows)
                self._connection.execute("COMMIT")

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        """If the file cannot be used, images are read again."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            log.warning(
                "%s: cannot be used (%s): images are read again each time; remove it if it is "
                "damaged",
                self._path,
                first_line(error),
            )
            self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> _KeptHashes:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
