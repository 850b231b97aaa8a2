"""The JSON Schemas (draft 2020-12) of the files that pointer-rl reads and writes."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

__all__ = ["load", "read", "version"]


def read(name: str) -> str:
    """Return the text of a schema. Raises FileNotFoundError."""
    return files(__name__).joinpath(f"{name}.schema.json").read_text(encoding="utf-8")


def load(name: str) -> dict[str, Any]:
    """Return a schema, e.g. `load("pointer_candidates")`. Raises FileNotFoundError."""
    schema: dict[str, Any] = json.loads(read(name))
    return schema


def version(name: str) -> str:
    """Return a schema's version, e.g. "1.0". New files carry it as `_meta.schema_version`."""
    identifier: str = load(name)["$id"]
    return identifier.rpartition(":")[2]
