"""docs/reference is what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_reference_pages_are_up_to_date():
    spec = importlib.util.spec_from_file_location("reference", DOCS / "generate_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, content in module.pages().items():
        written = (DOCS / "reference" / name).read_text(encoding="utf-8")
        assert written == content, f"{name} is out of date: make docs"
