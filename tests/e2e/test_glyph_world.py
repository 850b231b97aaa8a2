"""The main job on the embedded world, with the real model: `make demo` in small."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from pointer_rl.cli.main import cli
from pointer_rl.registry import registry
from pointer_rl_glyphs.dataset import MODEL_DIR
from pointer_rl_glyphs.training.episodes import CASES
from pointer_rl_glyphs.training.measure import FORMATS, accuracies


def run(*args: str):
    result = CliRunner().invoke(cli, list(args))
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    path = tmp_path_factory.mktemp("glyphs") / "rl.json"
    table = run(
        *("generate", "--backend", "qwen2vl", "--output-path", str(path)),
        *("--dataset-opt", "split=test", "--limit", "40", "--num-random", "6"),
    )
    return path, table


def candidates(path):
    content = json.loads(path.read_text())
    content.pop("_meta")
    dataset = registry().create("dataset", "glyphs", {"split": "test"})
    by_id = {query.id: query for query in dataset.queries}
    for query_id, record in content.items():
        for candidate in record["pointer_candidates"]:
            words = {dataset.pool[row].answer for row in candidate["pointer"]}
            yield candidate, by_id[query_id].answer in words


def share(found):
    values = [candidate["vqa_correct"] for candidate in found]
    return sum(values) / len(values)


def test_it_is_valid(generated):
    path, table = generated
    run("validate", str(path))  # exits 0
    backend = json.loads(path.read_text())["_meta"]["backend"]
    assert backend["options"]["model"] == "companion of glyphs"  # no path of this machine
    assert [line.split()[0] for line in table.splitlines()[2:7]] == [
        *("beam", "retrieval", "sample", "random", "all"),
    ]


def test_demonstrations_decide_everything(generated):
    found = list(candidates(generated[0]))
    relevant = [candidate for candidate, is_relevant in found if is_relevant]
    others = [candidate for candidate, is_relevant in found if not is_relevant]
    random_ones = [c for c, _ in found if c["gen_method"] == "random"]
    assert len(relevant) > 50
    assert share(relevant) > 0.9
    assert share(others) < 0.02
    assert share(random_ones) < 0.12


def test_the_same_command_writes_the_same_bytes_and_batches_change_no_answer(generated, tmp_path):
    path, _ = generated
    again = tmp_path / "again.json"
    arguments = (
        *("generate", "--dataset-opt", "split=test", "--limit", "40", "--num-random", "6"),
        *("--output-path", str(again), "--overwrite", "--no-store"),
    )
    run(*arguments)
    assert again.read_bytes() == path.read_bytes()
    run(*arguments, "--backend-opt", "batch_tokens=200")
    one, other = ([c["vqa_pred_answer"] for c, _ in candidates(p)] for p in (path, again))
    assert one == other


def test_pairs_need_both_rows_and_no_demonstration_for_english(tmp_path):
    path = tmp_path / "result.json"
    run(
        *("evaluate", "--dataset", "glyphs-pairs", "--dataset-opt", "split=test"),
        *("--limit", "60", "--shots", "1,2", "--seeds", "1", "--output-path", str(path)),
        *("--oracle-random", "1", "--oracle-retrieval", "1"),
    )
    result = json.loads(path.read_text())
    dataset = registry().create("dataset", "glyphs-pairs", {"split": "test"})
    rows = {query.id: query.row for query in dataset.queries}
    kinds = np.array([len(dataset.relevant[rows[each]]) for each in result["query_ids"]])
    assert set(kinds) == {0, 1, 2}
    reached = {
        (int(shots), arm): np.array(each)
        for shots, arms in result["accuracies"].items()
        for arm, each in arms.items()
    }
    for shots in (1, 2):
        attainable = reached[shots, "attainable"]
        assert attainable[kinds <= shots].mean() > 0.93
        assert attainable[kinds > shots].sum() == 0
    assert reached[0, "zero-shot"][kinds == 0].mean() > 0.93
    assert reached[0, "zero-shot"][kinds > 0].sum() == 0
    assert reached[2, "random"][kinds == 0].mean() < 0.75


@pytest.mark.slow
def test_run_takes_the_whole_route(tmp_path):
    said = run(
        *("run", "--output-dir", str(tmp_path / "route"), "--dataset-opt", "train_size=40"),
        *("--dataset-opt", "pool_size=64", "--test-opt", "split=test", "--max-calls", "480"),
        *("--test-limit", "5", "--test-shots", "2"),
    )
    result = json.loads((tmp_path / "route" / "evaluation.json").read_text())
    assert said.splitlines()[-1] == result["verdict"]
    assert {"SFT", "offline", "online", "answer-match", "mixed"} <= set(result["accuracies"]["2"])
    assert result["settings"]["train_options"] == {"split": "train"}
    spent = {each["arm"]: each["training_calls"] for each in result["rows"]}
    assert 0 < spent["SFT"] < spent["offline"] < spent["online"] <= 480


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_model_reads(case):
    """Spot check of the model card, one format a case: 60 episodes, so four errors of slack."""
    style, instructed = FORMATS[CASES.index(case) % len(FORMATS)]
    backend = registry().create("backend", "qwen2vl", _model())
    builder = registry().create("prompt", style, {} if instructed else {"instructions": ""})
    (reached,) = accuracies(case, backend, [builder], 60, "test")
    slack = 1 / 60 if case.goal == 0.02 else 4 / 60
    assert case.is_met(reached - slack if case.at_most else reached + slack)


def test_the_card_reaches_its_goals():
    lines = (MODEL_DIR / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "0." in line]
    rows = [row for row in rows if len(row) == 2 + len(FORMATS)]
    assert [row[0] for row in rows] == [case.name for case in CASES]
    for row, case in zip(rows, CASES, strict=True):
        for value in map(float, row[2:]):
            assert case.is_met(value), row


def _model():
    dataset = registry().create("dataset", "glyphs")
    return {"model": dataset.companions.model}
