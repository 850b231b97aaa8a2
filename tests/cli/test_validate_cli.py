"""`pointer-rl validate`: formats and exit statuses."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from pointer_rl.cli.validate import validate
from pointer_rl.errors import InputError

GOOD = {"pointer": [1], "gen_method": "beam", "beam_rank": 0, "beam_score": 1.0}
OUTCOME = {"vqa_pred_answer": "x", "vqa_correct": 1, "vqa_acc_score": 1.0}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    def write(name, *candidates):
        record = {"pointer_candidates": [{**each, **OUTCOME} for each in candidates]}
        (tmp_path / name).write_text(json.dumps({"q": record}))

    write("good.json", GOOD, {"pointer": [2], "gen_method": "random"})
    write("bad.json", {**GOOD, "beam_rank": -1}, {**GOOD, "pointer": [2, 2]})
    (tmp_path / "cut.json").write_text('{"q": ')
    (tmp_path / "number.json").write_text("3")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(validate, arguments)


@pytest.mark.usefixtures("folder")
def test_a_valid_file_exits_0_and_is_summed_up():
    result = run("good.json", "--pool-size", "3")
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "good.json: valid; 1 query, 2 candidates (beam 1, random 1), 0 failed",
        "    not checked: own-demonstration (_meta.dataset.shared_pool is not given)",
        "    not checked: shots (_meta gives neither shots nor max_shots)",
        "    not checked: accuracy (_meta.metric is not given)",
    ]


@pytest.mark.usefixtures("folder")
def test_findings_exit_1():
    result = run("good.json", "bad.json", "--max-findings", "1")
    assert result.exit_code == 1
    assert (
        "bad.json:1: /q/pointer_candidates/0/beam_rank\n"
        "    schema.minimum: beam_rank is -1, below 0\n"
        "    to do: write beam_rank: an integer: the rank among the query's beams"
    ) in result.output
    assert "bad.json: 1 more finding (show it with a larger --max-findings)" in result.output
    assert "bad.json: 2 findings; 1 query, 2 candidates (beam 2), 0 failed" in result.output


@pytest.mark.usefixtures("folder")
def test_a_file_that_cannot_be_read_does_not_hide_the_others():
    result = run("cut.json", "bad.json", "number.json")
    assert isinstance(result.exception, InputError)  # which the root group turns into exit 2
    assert "cut.json: line 1, column 7: the JSON ends too early" in str(result.exception)
    assert "number.json: line 1" in str(result.exception)
    assert "bad.json: 2 findings" in result.output


@pytest.mark.usefixtures("folder")
def test_json_is_for_programs():
    result = run("bad.json", "good.json", "--format", "json", "--no-recompute")
    assert result.exit_code == 1
    bad, good = json.loads(result.output)["files"]
    assert bad["file"] == "bad.json"
    assert bad["findings"][1] == {
        "rule": "row-repeated",
        "pointer": "/q/pointer_candidates/1/pointer",
        "message": "pointer holds 2 more than once",
        "fix": bad["findings"][1]["fix"],
        "line": 1,
    }
    assert good["num_findings"] == 0
    assert good["candidates"] == {"beam": 1, "random": 1}
    assert {"rule": "accuracy", "reason": "switched off (--no-recompute)"} in good["not_checked"]


def test_github_annotations_are_escaped(folder):
    (folder / "a,b:c.json").write_text(
        json.dumps({"100%\n": {"pointer_candidates": [{**GOOD, **OUTCOME, "beam_rank": "%\n"}]}})
    )
    result = run("a,b:c.json", "--format", "github")
    assert result.exit_code == 1
    annotation, notice = result.output.splitlines()
    assert annotation.startswith(
        "::error file=a%2Cb%3Ac.json,line=1,title=schema.type::"
        '/100%25%0A/pointer_candidates/0/beam_rank: beam_rank is "%25\\n", not of type'
    )
    assert notice.startswith("::notice file=a%2Cb%3Ac.json::1 finding; 1 query")


@pytest.mark.usefixtures("folder")
def test_github_sees_what_is_not_shown_and_what_cannot_be_read():
    result = run("bad.json", "cut.json", "--format", "github", "--max-findings", "1")
    assert isinstance(result.exception, InputError)
    first, notice, unreadable = result.output.splitlines()
    assert first.startswith("::error file=bad.json,line=1,title=schema.minimum::/q/pointer_cand")
    assert notice.startswith("::notice file=bad.json::2 findings; 1 query, 2 candidates")
    assert notice.endswith("(1 not shown: see --max-findings)")
    assert unreadable.startswith(
        "::error file=cut.json,title=unreadable::cut.json: line 1, column 7: the JSON ends"
    )


@pytest.mark.usefixtures("folder")
def test_settings_that_mean_nothing_are_refused():
    assert isinstance(run("good.json", "--pool-size", "0").exception, InputError)
    assert run("good.json", "--format", "xml").exit_code == 2
    assert run().exit_code == 2
