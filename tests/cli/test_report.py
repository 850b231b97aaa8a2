"""`pointer-rl report`, of what the other commands write."""

from __future__ import annotations

import json
import statistics
from xml.etree import ElementTree

import pytest
from report_world import Page

from pointer_rl import Session
from pointer_rl.errors import InputError
from pointer_rl.report import figure


@pytest.fixture
def evaluation(world, cli):
    """An evaluation of the baselines on the jsonl world, at two numbers of shots."""
    path = world.folder / "evaluation.json"
    result = cli(
        *("evaluate", "--backend", "copy", "--dataset", "jsonl"),
        *("--dataset-opt", f"path={world.data}", "--shots", "2,1"),
        *("--query-emb", str(world.query_emb), "--cand-emb", str(world.cand_emb)),
        *("--output-path", str(path)),
    )
    assert result.exit_code == 0, result.output
    return path


def page_of(cli, at, *paths, more=()):
    result = cli("report", *map(str, paths), "--output-path", str(at / "report.html"), *more)
    assert result.exit_code == 0, result.output
    return Page(at / "report.html"), result


def test_the_figures_are_those_of_the_evaluation(world, cli, evaluation):
    page, result = page_of(cli, world.folder, evaluation)
    assert "wrote" in result.output
    content = json.loads(evaluation.read_text())
    text = page.text.replace("\n", "")
    assert content["verdict"] in text
    for sentence in content["sentences"]:
        assert sentence.removeprefix("WARNING: ") in text
    compared = {
        (each["arm"], each["shots"]): each
        for each in content["comparisons"]
        if each["reference"] == "random"
    }
    for row in content["rows"]:
        assert f"{row['arm']}{100 * row['accuracy']:.1f}" in text
        if found := compared.get((row["arm"], row["shots"])):
            points = [100 * found[key] for key in ("mean", "low", "high")]
            assert "{:+.1f} {:+.1f} to {:+.1f}".format(*points) in text


def test_wins_and_losses_add_up_to_the_difference_of_the_evaluation(world, cli, evaluation):
    page, _ = page_of(cli, world.folder, evaluation)
    content = json.loads(evaluation.read_text())
    [pairs] = page.data("pairs")
    assert pairs["ids"] == content["query_ids"]
    primary = content["settings"]["primary"]
    assert pairs["highlight"] == f"{primary}, 2 shots"
    for each in content["comparisons"]:
        if (each["arm"], each["shots"]) == (primary, 2):
            shots = 0 if each["reference"] == "zero-shot" else 2
            other = each["reference"] if shots == 0 else f"{each['reference']}, 2 shots"
            values = zip(pairs["arms"][f"{primary}, 2 shots"], pairs["arms"][other], strict=True)
            mean = statistics.fmean(one - two for one, two in values)
            assert mean == pytest.approx(each["mean"], abs=1e-4)


def test_each_query_has_what_every_arm_showed_it(world, cli, evaluation):
    page, _ = page_of(cli, world.folder, evaluation)
    content = json.loads(evaluation.read_text())
    [file] = page.data("page")["files"]
    queries = {query[0]: query for query in page.data("queries-0")}
    for shots, arms in content["pointers"].items():
        for arm, chosen in arms.items():
            name = arm if shots == "0" else f"{arm}, {shots} shot{'s' * (shots != '1')}"
            for id, pointers in zip(content["query_ids"], chosen, strict=True):
                shown = [
                    candidate[1]
                    for candidate in queries[id][4]
                    if name in [file["methods"][number] for number in candidate[0]]
                ]
                assert sorted(shown) == sorted(map(list, {tuple(each) for each in pointers}))


def test_evaluations_stand_side_by_side_with_data_and_trainings(world, cli, evaluation):
    (world.folder / "second.json").write_bytes(evaluation.read_bytes())
    assert world.generate("--num-random", "4").exit_code == 0
    trained = cli(
        *("train", "--rl-data", str(world.output), "--cand-emb", str(world.cand_emb)),
        *("--query-emb", str(world.query_emb), "--output-dir", str(world.folder / "policy")),
        *("--rce-epochs", "2", "--grpo-epochs", "1", "--layers", "1", "--heads", "1"),
    )
    assert trained.exit_code == 0, trained.output
    page, _ = page_of(cli, world.folder, world.folder)
    assert "2 evaluations, 1 file of RL data, 1 training folder" in page.text
    assert "Accuracy in percent, side by side" in page.text
    labels = [
        found for tag, each in page.tags if tag == "svg" and (found := each.get("aria-label"))
    ]
    assert any(label.startswith("RCE loss by epoch: policy from ") for label in labels)
    assert any(label.startswith("Accuracy by number of demonstrations") for label in labels)


def test_an_evaluation_without_answers_is_shown_without_queries(world, cli, evaluation):
    content = json.loads(evaluation.read_text())
    del content["records"], content["pointers"]
    evaluation.write_text(json.dumps(content))
    page, result = page_of(cli, world.folder, evaluation)
    assert content["verdict"] in page.text
    assert "json-queries-0" not in page.raw
    assert "an evaluation without answers, by an earlier version" in result.output
    assert "an evaluation without answers, by an earlier version" in page.text
    assert page.data("pairs")  # wins and losses need accuracies alone


def test_an_evaluation_that_measured_nothing_is_shown(world, cli, evaluation):
    content = json.loads(evaluation.read_text())
    content |= {"verdict": "nothing measured", "comparisons": [], "sentences": []}
    for row in content["rows"]:
        row |= {"accuracy": None, "queries": 0, "gap_recovered": None, "accuracy_by_seed": []}
    for arms in content["accuracies"].values():
        arms |= {arm: [None] * len(content["query_ids"]) for arm in arms if "seed" not in arm}
    evaluation.write_text(json.dumps(content))
    page, _ = page_of(cli, world.folder, evaluation)
    assert "nothing measured" in page.text


@pytest.mark.parametrize("spoil", ["rows", "leakage", "accuracies", "settings"])
def test_a_damaged_evaluation_is_one_line(world, cli, evaluation, spoil):
    content = json.loads(evaluation.read_text())
    content[spoil] = [float("nan")]
    evaluation.write_text(json.dumps(content))
    result = cli("report", str(evaluation), "--output-path", str(world.folder / "report.html"))
    assert result.exit_code == 2
    [line] = result.output.strip().splitlines()
    assert "damaged evaluation" in line


def test_figures_have_the_numbers_of_the_evaluation(world, evaluation):
    content = json.loads(evaluation.read_text())
    shots, arm = content["settings"]["primary_shots"], content["settings"]["primary"]
    shown = " ".join(ElementTree.fromstring(figure("arms", evaluation)._repr_svg_()).itertext())
    for row in content["rows"]:
        if row["shots"] in (0, shots):
            assert f"{row['arm']} {100 * row['accuracy']:.1f}" in shown
    rivals = " ".join(ElementTree.fromstring(figure("rivals", evaluation)._repr_svg_()).itertext())
    for each in content["comparisons"]:
        points = [100 * each[key] for key in ("mean", "low", "high")]
        words = "{:+.1f} ({:+.1f} to {:+.1f})".format(*points)
        if each["reference"] != "random":
            assert (words in rivals) == (each["arm"] == arm)
        elif each["shots"] == shots:
            assert words in shown
    assert "<circle" in figure("shots", evaluation)._repr_html_()
    with pytest.raises(InputError, match="give one"):
        figure("arms", evaluation, evaluation)


def test_an_evaluation_in_memory_has_the_figures_of_its_file(world, evaluation):
    session = Session(
        {"plugin": "jsonl", "path": world.data},
        "copy",
        query_emb=world.query_emb,
        cand_emb=world.cand_emb,
    )
    measured = session.evaluate(shots=1)
    path = world.folder / "again.json"
    path.write_text(measured.to_json())
    assert figure("arms", measured)._repr_svg_() == figure("arms", path)._repr_svg_()
    with pytest.raises(InputError, match="one number of demonstrations"):
        figure("shots", measured)
