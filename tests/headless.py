"""Headless Chromium for the tests and the benchmark of the report: `make test-browser` has it.

It is driven by puppeteer-core from npm, which needs node.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MODULES = ROOT / "build" / "browser" / "node_modules"


def missing() -> str | None:
    """What is lacking to open a page; None if nothing is."""
    if _chromium() is None:
        return "no chromium"
    if shutil.which("node") is None:
        return "no node"
    return None if (MODULES / "puppeteer-core").is_dir() else "no puppeteer-core: make test-browser"


def look(page: Path, view: str, screenshot: Path | None = None) -> dict[str, Any]:
    """What drive.js says of a page."""
    done = subprocess.run(
        [
            *("node", ROOT / "tests" / "browser" / "drive.js", page.absolute(), view),
            *(() if screenshot is None else (screenshot.absolute(),)),
        ],
        env={**os.environ, "NODE_PATH": str(MODULES), "CHROMIUM": _chromium() or ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser")
