"""What the writers of all containers have in common."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pointer_rl.files import AtomicFile
from pointer_rl.records.records import check_query_id


class RecordWriter(ABC):
    """Writes a file record by record. The file appears, whole, when the writer is closed.

    As a context manager it closes at the end, and discards the file on an exception. The same
    records give the same bytes. Missing folders are created. Raises InputError, at once if that can
    be known, if the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._target = AtomicFile(path)

    def write(self, query_id: str, record: Mapping[str, Any]) -> None:
        """Append the record of a query. Raises ValueError for NaN, which JSON lacks."""
        check_query_id(query_id)
        self._add(query_id, record)

    def write_encoded(self, query_id: str, record: bytes) -> None:
        """Append the record of a query as `encode_record` returned it."""
        self.write(query_id, json.loads(record))

    def write_aside(self, key: str, value: Any) -> None:
        """Append another program's key that begins with _, which is not a query.

        Raises InputError if the container has no place for it.
        """
        assert key.startswith("_")
        assert key != "_meta", "the writer gets it when it is made"
        self._add_aside(key, value)

    def close(self) -> None:
        """Complete the file and replace what was at `path`. Closing again does nothing."""
        if self._target.file.closed:
            return
        try:
            self._finish()
        except BaseException:
            self.discard()
            raise
        self._target.commit()

    def discard(self) -> None:
        """Delete what was written; `path` stays as it was."""
        self._target.discard()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None:
            self.close()
        else:
            self.discard()

    @abstractmethod
    def _add(self, query_id: str, record: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def _add_aside(self, key: str, value: Any) -> None: ...

    @abstractmethod
    def _finish(self) -> None: ...
