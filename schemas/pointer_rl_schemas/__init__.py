"""JSON Schemas (draft 2020-12) of the files that pointer-rl writes and reads."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

__all__ = ["load"]


def load(name: str) -> dict[str, Any]:
    """The schema of that name, e.g. `load("pointer_candidates")`. Raises FileNotFoundError."""
    resource = files(__name__).joinpath(f"{name}.schema.json")
    schema: dict[str, Any] = json.loads(resource.read_text(encoding="utf-8"))
    return schema
