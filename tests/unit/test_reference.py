"""docs/reference is what the code says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_reference_pages_are_up_to_date(tmp_path):
    subprocess.run([sys.executable, str(DOCS / "generate_reference.py"), str(tmp_path)], check=True)
    names = {path.name for path in tmp_path.iterdir()}
    written_by_it = "<!-- Written by docs/generate_reference.py"
    pages = (DOCS / "reference").iterdir()
    assert names == {page.name for page in pages if page.read_text().startswith(written_by_it)}
    for name in names:
        written = (DOCS / "reference" / name).read_text(encoding="utf-8")
        assert written == (tmp_path / name).read_text(encoding="utf-8"), f"{name}: make docs"
