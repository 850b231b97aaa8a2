"""JSON Schemas (draft 2020-12) of the files that pointer-rl writes and reads."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

__all__ = ["load", "read", "version"]


def read(name: str) -> str:
    """The text of the schema of that name. Raises FileNotFoundError."""
    return files(__name__).joinpath(f"{name}.schema.json").read_text(encoding="utf-8")


def load(name: str) -> dict[str, Any]:
    """The schema of that name, e.g. `load("pointer_candidates")`. Raises FileNotFoundError."""
    schema: dict[str, Any] = json.loads(read(name))
    return schema


def version(name: str) -> str:
    """Its version, e.g. "1.0": what `_meta.schema_version` of a file says that is written now."""
    identifier: str = load(name)["$id"]
    return identifier.rpartition(":")[2]
