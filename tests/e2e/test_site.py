"""The documentation as a whole: links with their anchors, and the site."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
CODE = re.compile(r"^(`{3,})[^\n]*\n.*?^\1\s*$|`[^`\n]+`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^()\s]+)\)")


def prose(page: Path) -> str:
    """The page without code."""
    return CODE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """What a link to a heading may name: as forges and MyST spell it."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    headings = re.findall(r"^#{1,3} +(.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_a_file_and_a_heading(page):
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.slow
@pytest.mark.skipif(find_spec("sphinx") is None, reason="needs the extra docs")
def test_the_site_builds_without_a_warning_and_shows_every_page(tmp_path):
    options = ["-W", "--keep-going", "--quiet", "-d", str(tmp_path / "doctrees")]
    subprocess.run(
        [sys.executable, "-m", "sphinx", *options, str(ROOT / "docs"), str(tmp_path / "site")],
        check=True,
    )
    for page in PAGES[1:]:
        built = tmp_path / "site" / page.relative_to(ROOT / "docs").with_suffix(".html")
        assert built.exists(), page
    notebook = (tmp_path / "site" / "tutorial" / "notebook.html").read_text(encoding="utf-8")
    assert notebook.count('<div class="pointer-rl-figure">') >= 4
    index = (tmp_path / "site" / "llms.txt").read_text(encoding="utf-8")
    for link in re.findall(r"^- \[[^\]]+\]\(([^)]+)\): .", index, re.MULTILINE):
        assert (tmp_path / "site" / link).exists(), link
    assert index.count("](") >= len(PAGES) - 8  # the pages of sections are headings
    python = (tmp_path / "site" / "reference" / "python.html").read_text(encoding="utf-8")
    import pointer_rl

    assert [name for name in pointer_rl.__all__ if f'id="pointer_rl.{name}"' not in python] == []
