"""The tutorial's notebook: it runs in a kernel of its own, and shows what is in it."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest
from snippets import ROOT, is_as_shown

NOTEBOOK = ROOT / "docs/tutorial/notebook.ipynb"


def cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for each in notebook["cells"] if each["cell_type"] == "code"]


def printed(cell: dict[str, Any]) -> str:
    """The text of a cell's outputs."""
    found = [each.get("text") or each["data"]["text/plain"] for each in cell["outputs"]]
    return "".join(f"{''.join(each).rstrip()}\n" for each in found)


def test_the_committed_notebook_was_run_from_top_to_bottom():
    found = cells(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
    assert [each["execution_count"] for each in found] == list(range(1, len(found) + 1))
    kinds = [output["output_type"] for each in found for output in each["outputs"]]
    assert set(kinds) == {"stream", "execute_result"}
    assert all(each["outputs"] for each in found)
    shown = [each for each in found if "figure(" in "".join(each["source"]).splitlines()[-1]]
    assert len(shown) >= 4
    for each in shown:
        assert {"text/html", "image/svg+xml"} <= each["outputs"][-1]["data"].keys()


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("nbclient", "ipykernel"))),
    reason="needs nbclient and ipykernel: make test-all",
)
def test_the_notebook_shows_what_is_in_it():
    spec = importlib.util.spec_from_file_location("run_notebook", ROOT / "docs/run_notebook.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    again = cells(module.run(NOTEBOOK))
    before = cells(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
    for one, other in zip(before, again, strict=True):
        assert is_as_shown(printed(other), printed(one)), printed(other)
