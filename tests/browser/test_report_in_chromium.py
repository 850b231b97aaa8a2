"""The report in headless Chromium: every control works, nothing leaves it, axe finds nothing."""

from __future__ import annotations

import json
from statistics import fmean

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


def test_filters_and_wins_count_what_the_data_say(page):
    records = json.loads((page.parent / "rl.json").read_text())
    queries = [each["pointer_candidates"] for key, each in records.items() if key != "_meta"]
    counts = headless.look(page, "desktop")["counts"]

    def of(method):
        return [
            [each for each in query if method in ("all", each["gen_method"])] for query in queries
        ]

    def has(group, correct):
        return any(each.get("vqa_correct") == correct for each in group)

    for method in ("all", "beam", "random"):
        groups = of(method)
        assert counts[f"{method}: any"] == len(groups)
        assert counts[f"{method}: right"] == sum(has(each, 1) for each in groups)
        assert counts[f"{method}: wrong"] == sum(has(each, 0) for each in groups)
        assert counts[f"{method}: flipped"] == sum(has(e, 1) and has(e, 0) for e in groups)
        failed = sum(any("eval_failed" in each for each in group) for group in groups)
        assert counts[f"{method}: failed"] == failed
    means = [
        [
            fmean([each["vqa_acc_score"] for each in group if "vqa_acc_score" in each])
            for group in of(method)
        ]
        for method in ("beam", "random")
    ]
    differences = [(one - other, one) for one, other in zip(*means, strict=True)]
    assert counts["cells"] == [
        sum(difference > 1e-9 for difference, _ in differences),
        sum(abs(difference) <= 1e-9 and one > 0 for difference, one in differences),
        sum(abs(difference) <= 1e-9 and one == 0 for difference, one in differences),
        sum(difference < -1e-9 for difference, _ in differences),
    ]
