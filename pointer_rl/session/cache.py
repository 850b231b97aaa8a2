"""The response cache: an SQLite file of responses, so that no trial is paid for twice.

It has one row per response, in columns that Datasette and the sqlite3 shell can show. For
Datasette, keys are hex digits, and the foreign key names the column that it refers to. Several
processes may share a file (it uses a write-ahead log, WAL). A process that is killed loses only
what it had not yet put.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import sqlite3
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any

from pointer_rl.errors import InputError, first_line
from pointer_rl.files import cache_folder
from pointer_rl.types import Decoding, Request, Response, Usage

log = logging.getLogger(__name__)

APPLICATION_ID = 0x70725253
"""Marks an SQLite file as a response cache, in the file's header."""
_MAGIC = b"SQLite format 3\0"
VERSION = 3
"""Version of the keys and the tables. A cache of an older version is set aside."""
BUSY_SECONDS = 60.0
"""How long to wait for another process that has locked the file."""
_CHUNK = 256
"""Keys per SELECT statement."""

_SCHEMA = """
CREATE TABLE backends (id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL UNIQUE);
CREATE TABLE responses (
    key TEXT PRIMARY KEY,
    backend INTEGER NOT NULL REFERENCES backends (id),
    created TEXT NOT NULL,
    text TEXT,
    score_logprobs TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    generated_tokens INTEGER NOT NULL,
    images INTEGER NOT NULL
) WITHOUT ROWID;
"""
# Python refuses to read a TEXT value that is not valid UTF-8, hence the casts.
_RESPONSE = (
    "CAST(text AS BLOB), CAST(score_logprobs AS BLOB), prompt_tokens, generated_tokens, images"
)
_CONTENT_ERRORS = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
"""Primary result codes that say that the file's content is wrong."""
_ERRORS = (sqlite3.DatabaseError, UnicodeDecodeError)
"""What the sqlite3 module raises; the second when a message quotes damaged bytes."""
_JSON = json.JSONDecoder()


def default_store() -> Path:
    """The response cache's file when the user names none."""
    return cache_folder() / "responses.sqlite"


def request_key(fingerprint: str, request: Request) -> bytes:
    """Return the key of a request's response, 32 bytes.

    It is the SHA-256 of everything that decides a response: the backend's fingerprint, the prompt
    (roles, texts and image keys, in order), the decoding and the answers to be scored. No image is
    opened. Raises InputError if the key of an image cannot be computed.
    """
    messages = [
        # A text is a string and an image a list, so that no text can be mistaken for an image.
        [message.role, [part if isinstance(part, str) else [part.key] for part in message.parts]]
        for message in request.prompt.messages
    ]
    parts = [VERSION, fingerprint, messages, _decoding(request.decoding), request.score]
    return hashlib.sha256(json.dumps(parts).encode()).digest()


@lru_cache(maxsize=16)
def _decoding(decoding: Decoding | None) -> dict[str, object] | None:
    return None if decoding is None else asdict(decoding)


@dataclass(frozen=True)
class BackendSummary:
    """The cached responses of one backend."""

    fingerprint: str
    responses: int
    bytes: int
    """Size of their keys, timestamps, texts and log-probabilities."""
    oldest: str
    """When the first was added: UTC, as 2026-11-24T20:18:03Z."""
    newest: str


def _close(connection: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.Error):  # for example, in another thread
        connection.close()


class ResponseCache:
    """Responses by `request_key`, in one SQLite file.

    The file and its folder are created if they do not exist. A cache that is damaged, or of an
    older version, is renamed with a warning and replaced by a new one. Any other file raises
    InputError: one that is no cache, of a newer version, or with a table, view or trigger that is
    not ours, which could run queries of its own. With `must_exist`, for commands that only look
    into a cache, so do all these cases, and the file stays as it is.

    Every method raises InputError if the file cannot be read or written, or if another process
    keeps it locked for a minute.
    """

    def __init__(self, path: Path, *, must_exist: bool = False) -> None:
        self.path = path
        if must_exist and not path.exists():
            raise InputError(f"{path}: no such file: no response is stored there")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(path, error) from error
        try:
            if path.exists() and not path.is_file():
                raise _NotACacheError(path, "not a file")
            if must_exist and not path.stat().st_size:
                raise _NotACacheError(path, "the file is empty")
            self._connection = _connect(path)
        except _DamagedError as error:
            if must_exist or not _claims_to_be_a_cache(path):
                raise
            _set_aside(path, error.reason)
            self._connection = _connect(path)
        # Unlike __del__, this also works at interpreter shutdown.
        weakref.finalize(self, _close, self._connection)
        log.debug("%s: opened", path)

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Response]:
        """Return the cached responses of these keys. A row that cannot be decoded is left out."""
        found: dict[bytes, Response] = {}
        damaged = 0
        with self._reporting_errors() as connection:
            for start in range(0, len(keys), _CHUNK):
                chunk = {key.hex(): key for key in keys[start : start + _CHUNK]}
                marks = ",".join("?" * len(chunk))
                query = f"SELECT key, {_RESPONSE} FROM responses WHERE key IN ({marks})"
                for key, *columns in connection.execute(query, tuple(chunk)):
                    try:
                        found[chunk[key]] = _decode(*columns)
                    except (TypeError, ValueError):
                        damaged += 1
        if damaged:
            log.warning("%s: %d damaged responses are ignored", self.path, damaged)
        return found

    def put(self, fingerprint: str, responses: Sequence[tuple[bytes, Response]]) -> None:
        """Add (key, response) pairs of one backend, replacing those with the same key.

        They are added in one transaction: all of them or none.
        """
        now = _timestamp(time.time())
        # Sorted by key, so that each page of the file is written once.
        ordered = sorted(responses, key=itemgetter(0))
        with self._reporting_errors() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(
                "INSERT OR IGNORE INTO backends (fingerprint) VALUES (?)", (fingerprint,)
            )
            query = "SELECT id FROM backends WHERE fingerprint = ?"
            (backend,) = connection.execute(query, (fingerprint,)).fetchone()
            connection.executemany(
                "INSERT OR REPLACE INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [(key.hex(), backend, now, *_encode(response)) for key, response in ordered],
            )

    def summaries(self) -> list[BackendSummary]:
        """Summarise the responses of each backend, ordered by fingerprint."""
        query = (
            "SELECT fingerprint, count(*),"
            " sum(length(key) + length(created) + ifnull(length(CAST(text AS BLOB)), 0)"
            " + length(score_logprobs)),"
            " min(created), max(created)"
            " FROM responses JOIN backends ON id = backend GROUP BY backend ORDER BY fingerprint"
        )
        with self._reporting_errors() as connection:
            return [BackendSummary(*row) for row in connection.execute(query)]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield every response as a dictionary of its columns, ready for JSON, ordered by key.

        The log-probability of an answer with a probability of 0 is None, since JSON has no
        infinity. Rows that cannot be decoded are left out.
        """
        query = (
            f"SELECT key, fingerprint, created, {_RESPONSE}"
            " FROM responses JOIN backends ON id = backend ORDER BY key"
        )
        with self._reporting_errors() as connection:
            for key, fingerprint, created, *columns in connection.execute(query):
                try:
                    response = _decode(*columns)
                except (TypeError, ValueError):
                    continue
                logprobs = [
                    each if math.isfinite(each) else None for each in response.score_logprobs
                ]
                yield {
                    "key": key,
                    "backend": fingerprint,
                    "created": created,
                    "text": response.text,
                    "score_logprobs": logprobs,
                    **asdict(response.usage),
                }

    def prune(self, fingerprint: str | None = None, before: float | None = None) -> int:
        """Remove the responses of a backend, those older than a time, or (if neither is given) all.

        With both, only that backend's older ones. `before` is in seconds since 1970. Returns how
        many were removed. The file shrinks.
        """
        created = None if before is None else _timestamp(before)
        with self._reporting_errors() as connection:
            connection.execute("BEGIN IMMEDIATE")
            removed = connection.execute(
                "DELETE FROM responses WHERE (?1 IS NULL OR created < ?1) AND (?2 IS NULL OR"
                " backend = (SELECT id FROM backends WHERE fingerprint = ?2))",
                (created, fingerprint),
            ).rowcount
            connection.execute(
                "DELETE FROM backends WHERE id NOT IN (SELECT backend FROM responses)"
            )
        with self._reporting_errors() as connection:
            connection.execute("VACUUM")
            # VACUUM writes the whole file into the WAL. This moves it over and empties the WAL.
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return removed

    def size(self) -> int:
        """Bytes on disk, including the WAL, which is not yet part of the file itself."""
        files = (self.path, Path(f"{self.path}-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        """Close the file. This also happens when the cache is garbage-collected."""
        self._connection.close()

    @contextlib.contextmanager
    def _reporting_errors(self) -> Iterator[sqlite3.Connection]:
        """Commit at the end of the block, or roll back. SQLite's errors become InputErrors."""
        try:
            with self._connection:
                yield self._connection
        except sqlite3.ProgrammingError:
            raise
        except _ERRORS as error:
            if _blames_content(error):
                raise InputError(
                    f"{self.path}: the response cache is damaged ({first_line(error)}): run the "
                    "command again, which sets the file aside and begins a new one"
                ) from error
            raise _unusable(self.path, error) from error


def _encode(response: Response) -> tuple[object, ...]:
    """The columns from `text` to `images`."""
    logprobs = [None if each == -math.inf else float(each) for each in response.score_logprobs]
    usage = response.usage
    return (
        None if response.text is None else _encode_text(response.text),
        json.dumps(logprobs) if logprobs else "[]",
        *(usage.prompt_tokens, usage.generated_tokens, usage.images),
    )


def _encode_text(text: str) -> str | bytes:
    """The text, or bytes if it is not valid Unicode.

    A byte-level tokenizer may leave half a surrogate pair in what it decodes.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def _decode(
    text: bytes | None, logprobs: bytes, prompt_tokens: int, generated_tokens: int, images: int
) -> Response:
    """Reverse `_encode`. Raises TypeError or ValueError for damaged columns."""
    scores: tuple[float, ...] = ()
    if logprobs != b"[]":
        values, _ = _JSON.raw_decode(logprobs.decode())
        scores = tuple([-math.inf if each is None else each for each in values])
    return Response(
        None if text is None else text.decode("utf-8", "surrogatepass"),
        scores,
        Usage(prompt_tokens, generated_tokens, images),
    )


def _timestamp(seconds: float) -> str:
    """Seconds since 1970 as UTC in ISO 8601: such strings sort by time."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- opening ---


class _NotACacheError(InputError):
    """The file is not a response cache that this version can use."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}; name a response cache with --store")
        self.reason = reason


class _DamagedError(_NotACacheError):
    """The file is damaged or outdated, and may be set aside if it is a response cache."""


def _connect(path: Path) -> sqlite3.Connection:
    """Open a response cache. A file that is missing or empty becomes one.

    Raises _NotACacheError if the content is to blame (_DamagedError if it may be ours), and
    InputError if the file cannot be used.
    """
    try:
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    except sqlite3.Error as error:
        raise _unusable(path, error) from error
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(connection.close)
        try:
            _prepare(connection, path)
        except _ERRORS as error:
            if not _blames_content(error):
                raise _unusable(path, error) from error
            raise _DamagedError(path, first_line(error)) from error
        on_failure.pop_all()
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Create the tables in an empty file; check the content of any other."""
    connection.execute("PRAGMA trusted_schema = OFF")
    if _is_empty(connection):
        _use_wal(connection)
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            if _is_empty(connection):  # another process may have been first
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {VERSION}")
    application_id, version = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("application_id", "user_version")
    )
    if application_id != APPLICATION_ID:
        raise _NotACacheError(path, "not a response cache")
    if version > VERSION:
        raise _NotACacheError(
            path, f"a response cache of version {version}, newer than {VERSION}: upgrade pointer-rl"
        )
    if version < VERSION:
        raise _DamagedError(path, f"a response cache of the older version {version}")
    # Before anything else is executed: a view or trigger would run queries of its own.
    ours, found = _our_definitions(), _definitions(connection)
    if len(found) > len(ours):
        kind, name, _ = min(found - ours)
        raise _NotACacheError(path, f"holds the {kind} {name!r}, which no response cache has")
    if found != ours:
        raise _DamagedError(path, "damaged: its tables are not a response cache's")
    (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        raise _DamagedError(path, f"damaged: {verdict.splitlines()[-1]}")
    connection.execute(
        f"SELECT key, fingerprint, created, {_RESPONSE}"
        " FROM responses JOIN backends ON id = backend LIMIT 0"
    )
    # A power cut may lose the last transactions, but cannot damage the file.
    connection.execute("PRAGMA synchronous = NORMAL")


def _definitions(connection: sqlite3.Connection) -> set[tuple[str, str, str]]:
    """(type, name, SQL) of the tables and whatever else a file defines, but for SQLite's own."""
    query = "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
    return set(connection.execute(query))


@lru_cache(maxsize=1)
def _our_definitions() -> set[tuple[str, str, str]]:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(_SCHEMA)
        return _definitions(connection)


def _claims_to_be_a_cache(path: Path) -> bool:
    """Whether it begins as SQLite's files do, with our application id (offset 68)."""
    with path.open("rb") as file:
        header = file.read(72)
    return header.startswith(_MAGIC) and header[68:] == APPLICATION_ID.to_bytes(4, "big")


def _is_empty(connection: sqlite3.Connection) -> bool:
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return (application_id, tables) == (0, 0)


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to WAL. SQLite does not wait for another process that is switching, so this does."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.02)


def _set_aside(path: Path, why: str) -> None:
    """Rename the file and the WAL that belongs to it, and log a warning."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    try:
        for suffix in ("-wal", "-shm", ""):
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{path}{suffix}", f"{aside}{suffix}")
    except OSError as error:
        raise _unusable(path, error) from error
    log.warning("%s: %s; set aside as %s, and a new cache begun", path, why, aside.name)


def _blames_content(error: Exception) -> bool:
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF in _CONTENT_ERRORS


def _unusable(path: Path, error: Exception) -> InputError:
    reason = error.strerror if isinstance(error, OSError) else first_line(error)
    return InputError(
        f"{path}: responses cannot be stored there ({reason}): "
        "name another file with --store, or do without with --no-store"
    )
