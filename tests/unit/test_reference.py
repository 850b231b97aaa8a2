"""docs/reference is what the code says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from pointer_rl.cli.main import cli
from pointer_rl.cli.params import long_name
from pointer_rl.records.fields import BEAM, CANDIDATE, QUERY

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


def commands(command, path="pointer-rl"):
    yield path, command
    for name, each in getattr(command, "commands", {}).items():
        yield from commands(each, f"{path}-{name}")


def test_every_option_of_every_command_has_an_anchor_of_its_own():
    page = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    anchors = re.findall(r'<a id="([^"]+)"', page)
    headings = {each.replace(" ", "-") for each in re.findall(r"^## (.+)$", page, re.MULTILINE)}
    assert len({*anchors, *headings}) == len(anchors) + len(headings)
    assert headings >= {path for path, _ in commands(cli)}  # plugins have further ones
    options = {
        f"{path}--{long_name(each)}"
        for path, command in commands(cli)
        for each in command.params
        if isinstance(each, click.Option) and not each.hidden
    }
    assert options <= set(anchors)


@pytest.mark.parametrize("name", ["pointer_candidates", "beams"])
def test_every_field_of_the_files_has_a_row(name):
    page = (DOCS / "reference" / "schema.md").read_text(encoding="utf-8")
    fields = QUERY.keys() | (CANDIDATE if name == "pointer_candidates" else BEAM).keys()
    assert [
        each for each in fields if not re.search(rf"^\| \**`{each}`\** \| \w", page, re.M)
    ] == []
