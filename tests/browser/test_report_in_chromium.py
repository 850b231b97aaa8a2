"""The report in headless Chromium: every control works, nothing leaves it, axe finds nothing."""

from __future__ import annotations

import headless
import pytest
from report_world import HOSTILE, write_world

from pointer_rl.escaping import printable
from pointer_rl.report.page import write_report

pytestmark = pytest.mark.skipif(headless.missing() is not None, reason=str(headless.missing()))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    write_report([write_world(folder, queries=40)], folder / "report.html")
    return folder / "report.html"


@pytest.mark.parametrize("view", ["desktop", "phone", "dark"])
def test_every_control_works(page, view):
    seen = headless.look(page, view)
    assert seen["errors"] == []
    assert seen["requests"] == []
    assert seen["axe"] == []
    assert seen["width"] <= 0  # nothing is wider than the window
    used = {name.partition(":")[0] for name in seen["used"]}
    assert {"pairs-tool", "gallery-tool", "search", "questions", "cell", "button"} <= used
    for text in HOSTILE[:6]:
        assert printable(text.replace("\ud800", "")) in seen["text"]
    assert "show all 10,0" in seen["text"]
