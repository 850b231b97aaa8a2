"""Responses that were paid for, kept in an SQLite file: asked again, they cost microseconds.

Each entry carries a checksum (`trials/keys.py`), so that no damage can pass for a response. Two
processes may share a file (WAL); a killed one loses what it had not put yet, and nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pointer_rl.errors import InputError, first_line
from pointer_rl.session.keys import VERSION, decode_response, encode_response
from pointer_rl.types import Response

__all__ = ["Entry", "ResponseStore", "Tally", "cache_folder", "default_store"]

log = logging.getLogger(__name__)

APPLICATION_ID = 0x70725253
"""In the header of the file: a store of responses, and no other SQLite file."""
BUSY_SECONDS = 60.0
"""How long another process may hold the file."""
_CHUNK = 256
"""Keys looked up by one statement."""

_SCHEMA = """
CREATE TABLE backends (id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL UNIQUE);
CREATE TABLE responses (
    key BLOB PRIMARY KEY, backend INTEGER NOT NULL, created INTEGER NOT NULL, value BLOB NOT NULL
) WITHOUT ROWID;
"""
_UNUSABLE = {
    *("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_FULL"),
    *("SQLITE_IOERR", "SQLITE_PERM", "SQLITE_AUTH", "SQLITE_NOMEM", "SQLITE_TOOBIG"),
    *("SQLITE_NOLFS", "SQLITE_PROTOCOL", "SQLITE_INTERRUPT"),
}
"""Errors that say nothing against the file's content."""

_ERRORS = (sqlite3.DatabaseError, UnicodeDecodeError)
"""What SQLite raises, the second where it quotes damaged bytes."""

T = TypeVar("T")


def cache_folder() -> Path:
    """POINTER_RL_CACHE, else pointer-rl in XDG_CACHE_HOME, else in ~/.cache."""
    own = os.environ.get("POINTER_RL_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pointer-rl"


def default_store() -> Path:
    """Where responses are kept when the user names no file."""
    return cache_folder() / "responses.sqlite"


@dataclass(frozen=True)
class Entry:
    """One stored response."""

    key: bytes
    fingerprint: str
    created: int
    """Seconds since 1970."""
    response: Response


@dataclass(frozen=True)
class Tally:
    """The stored responses of one backend."""

    fingerprint: str
    entries: int
    bytes: int
    """Of the values."""
    oldest: int
    """When the first was stored, in seconds since 1970."""
    newest: int


class _NotAStoreError(Exception):
    """The file's content cannot be trusted; the message says why."""


class ResponseStore:
    """Responses by `request_key`, in one SQLite file, made with its folder where there is none.

    A file that is damaged, or no store at all, is renamed (a warning says so) and a new one begun,
    when it is opened as well as when it shows later. Raises InputError where the file cannot be
    read or written, or where another process holds it for a minute.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(path, error) from error
        self._open()

    @classmethod
    def existing(cls, path: Path) -> ResponseStore:
        """For commands that look into a file: it stays as it is, whatever it turns out to be.

        Raises InputError where there is none, or no store in it.
        """
        if not path.exists():
            raise InputError(f"{path}: no such file: no response has been stored there yet")
        try:
            _connect(path).close()
        except _NotAStoreError as error:
            raise InputError(f"{path}: {error}; name a store of responses") from error
        return cls(path)

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Response]:
        """The responses that there are, by key. A damaged entry is as good as none."""
        return self._do(lambda connection: self._get(connection, keys))

    def _get(self, connection: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, Response]:
        found: dict[bytes, Response] = {}
        damaged = 0
        for start in range(0, len(keys), _CHUNK):
            chunk = keys[start : start + _CHUNK]
            marks = ",".join("?" * len(chunk))
            query = f"SELECT key, value FROM responses WHERE key IN ({marks})"
            for key, value in connection.execute(query, chunk):
                response = decode_response(key, value)
                if response is None:
                    damaged += 1
                else:
                    found[key] = response
        if damaged:
            log.warning("%s: %d damaged entries are asked anew", self.path, damaged)
        return found

    def put(self, fingerprint: str, responses: Sequence[tuple[bytes, Response]]) -> None:
        """Store (key, response) of one backend in one transaction, over what was there."""
        now = int(time.time())
        rows = [(key, encode_response(key, response)) for key, response in responses]

        def insert(connection: sqlite3.Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(
                "INSERT OR IGNORE INTO backends (fingerprint) VALUES (?)", (fingerprint,)
            )
            connection.executemany(
                "INSERT OR REPLACE INTO responses SELECT ?, id, ?, ? FROM backends"
                " WHERE fingerprint = ?",
                [(key, now, value, fingerprint) for key, value in rows],
            )

        self._do(insert)

    def tallies(self) -> list[Tally]:
        """What there is of each backend, by fingerprint."""
        query = (
            "SELECT fingerprint, count(*), sum(length(value)), min(created), max(created)"
            " FROM responses JOIN backends ON id = backend GROUP BY backend ORDER BY fingerprint"
        )
        return self._do(lambda connection: [Tally(*row) for row in connection.execute(query)])

    def entries(self) -> Iterator[Entry]:
        """All that is not damaged, by key. Raises InputError where the file turns out to be."""
        query = (
            "SELECT key, fingerprint, created, value FROM responses JOIN backends ON id = backend"
        )
        try:
            for key, fingerprint, created, value in self._connection.execute(query):
                response = decode_response(key, value)
                if response is not None:
                    yield Entry(key, fingerprint, created, response)
        except _ERRORS as error:
            raise _unusable(self.path, error) from error

    def prune(self, fingerprint: str | None = None, before: float | None = None) -> int:
        """Remove one backend's entries, those stored before a time, or those that are both.

        Returns how many; the file shrinks.
        """

        def delete(connection: sqlite3.Connection) -> int:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                removed = connection.execute(
                    "DELETE FROM responses WHERE (?1 IS NULL OR created < ?1) AND (?2 IS NULL OR"
                    " backend = (SELECT id FROM backends WHERE fingerprint = ?2))",
                    (before, fingerprint),
                ).rowcount
                connection.execute(
                    "DELETE FROM backends WHERE id NOT IN (SELECT backend FROM responses)"
                )
            connection.execute("VACUUM")
            # What VACUUM wrote is in the WAL, as large as the file, until it is moved over.
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return removed

        return self._do(delete)

    def size(self) -> int:
        """Bytes on disk, those not yet moved into the file itself (WAL) included."""
        files = (self.path, Path(f"{self.path}-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        """Let go of the file. Happens by itself, too, when the store is no longer used."""
        self._connection.close()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, sqlite3.Error):
            self.close()

    # --- damage ---

    def _open(self) -> None:
        """Connect; to a new file if what is there is no store."""
        try:
            self._connection = _connect(self.path)
        except _NotAStoreError as error:
            _set_aside(self.path, str(error))
            try:
                self._connection = _connect(self.path)
            except _NotAStoreError as again:
                raise _unusable(self.path, again) from again
        self._file = _identity(self.path)

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do `work` in a transaction; where the file turns out damaged, again with a new one."""
        for last in (False, True):
            try:
                with self._connection:  # commits, or rolls back
                    return work(self._connection)
            except sqlite3.ProgrammingError:
                raise
            except _ERRORS as error:
                moved = _name(error) == "SQLITE_READONLY_DBMOVED"
                if last or not (moved or _damaged(error)):
                    raise _unusable(self.path, error) from error
                self._connection.close()
                # Another process that shares the file may have set it aside before us.
                if not moved and _identity(self.path) == self._file:
                    _set_aside(self.path, first_line(error))
                self._open()
        raise AssertionError("the last attempt returns or raises")


def _connect(path: Path) -> sqlite3.Connection:
    """Raises _NotAStoreError for what cannot be trusted, InputError for what cannot be used."""
    try:
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    except sqlite3.Error as error:
        raise _unusable(path, error) from error
    try:
        _prepare(connection)
    except _ERRORS as error:
        connection.close()
        if _damaged(error):
            raise _NotAStoreError(first_line(error)) from error
        raise _unusable(path, error) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    """Check that it is a store and whole; make it one where it is empty."""
    if _is_empty(connection):
        _use_wal(connection)
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            if _is_empty(connection):  # still: another process may have been first
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {VERSION}")
    marks = tuple(
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("application_id", "user_version")
    )
    if marks != (APPLICATION_ID, VERSION):
        raise _NotAStoreError("no store of responses, or one of another version")
    (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        raise _NotAStoreError(f"damaged: {verdict.splitlines()[-1]}")
    connection.execute("SELECT key, backend, created, value FROM responses LIMIT 0")
    connection.execute("SELECT id, fingerprint FROM backends LIMIT 0")
    # A power cut may take the last transactions with it, but damages nothing.
    connection.execute("PRAGMA synchronous = NORMAL")


def _is_empty(connection: sqlite3.Connection) -> bool:
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return (application_id, tables) == (0, 0)


def _use_wal(connection: sqlite3.Connection) -> None:
    """Changing the mode does not wait for another process that is doing the same: we do."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if _name(error) != "SQLITE_BUSY" or time.monotonic() > until:
                raise
            time.sleep(0.02)


def _set_aside(path: Path, why: str) -> None:
    """Rename the file and those that belong to it, and say so."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    try:
        for suffix in ("-wal", "-shm", ""):
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{path}{suffix}", f"{aside}{suffix}")
    except OSError as error:
        raise _unusable(path, error) from error
    log.warning("%s: %s; set aside as %s, and a new store begun", path, why, aside.name)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _name(error: Exception) -> str:
    return getattr(error, "sqlite_errorname", "")


def _damaged(error: Exception) -> bool:
    """Whether the content is to blame."""
    return "_".join(_name(error).split("_")[:2]) not in _UNUSABLE


def _unusable(path: Path, error: Exception) -> InputError:
    reason = error.strerror if isinstance(error, OSError) else first_line(error)
    return InputError(
        f"{path}: responses cannot be stored there ({reason}): "
        "name another file with --store, or do without with --no-store"
    )
