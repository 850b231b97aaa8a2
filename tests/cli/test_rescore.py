"""`pointer-rl rescore`: recorded generations judged again."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest

from pointer_rl.records.closeness import edit_similarity, word_f1
from pointer_rl.records.rescore import rescore_file
from pointer_rl_standard.metrics import VQAAccuracy

META = {
    "schema_version": "1.0",
    "dataset": {"name": "test", "pool_size": 9, "shared_pool": False},
    "prompt": {"name": "short-answer", "options": {}},
    "metric": {"name": "exact", "options": {}, "version": "1"},
    "shots": 1,
    "seed": 5,
}
ANSWERS = ["The dog", "dog", "dog", "cat", "cat"]


def judged(row, raw, answer, correct, **fields):
    return {
        "pointer": [row],
        "gen_method": "random",
        "vqa_pred_answer": answer,
        "vqa_correct": correct,
        "vqa_acc_score": float(correct),
        "vqa_raw_generation": raw,
        **fields,
    }


FAILED = {"pointer": [4], "gen_method": "random", "eval_failed": True, "eval_error": "no memory"}


def document():
    return {
        "_meta": META,
        "q": {
            "query": {"query_id": "q", "gt_answers_raw": ANSWERS, "gt_answers_norm": ANSWERS},
            "mood": "kept",
            "pointer_candidates": [
                judged(0, "the dog\nQuestion", "the dog", 1, note=[1]),
                judged(1, "a dog", "a dog", 0, vqa_gt_prob=0.25),
                judged(2, "cat, dog", "cat", 1, vqa_rel_token_f1=0.5, vqa_eval_mode="fallback"),
                FAILED,
            ],
        },
        "none": {"pointer_candidates": [FAILED]},
    }


@pytest.fixture
def dump(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(content, name="rl.json"):
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / name

    return write


def refused(result, *parts):
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("pointer-rl: error: ")
    assert result.stderr.count("\n") == 1
    for part in parts:
        assert part in result.stderr


def test_another_metric_judges_the_recorded_answers(dump, cli):
    source = dump(document())
    result = cli("rescore", "rl.json", "--output-path", "new.json", "--metric", "vqa")
    assert result.exit_code == 0, result.output
    new = json.loads(source.with_name("new.json").read_text())
    first, second, third, failed = new["q"]["pointer_candidates"]
    for candidate, answer in ((first, "the dog"), (second, "a dog"), (third, "cat")):
        judgement = VQAAccuracy().judge(answer, ANSWERS)
        assert candidate["vqa_pred_answer"] == answer
        assert candidate["vqa_correct"] == int(judgement.correct)
        assert candidate["vqa_acc_score"] == judgement.accuracy
        own = VQAAccuracy().normalise(answer)
        assert candidate["vqa_rel_score"] == max(
            similarity(own, each)
            for similarity in (word_f1, edit_similarity)
            for each in ("dog", "cat")
        )
    assert second["vqa_gt_prob"] == 0.25
    assert first["note"] == [1]
    assert (third["vqa_rel_token_f1"], "vqa_eval_mode" in third) == (1.0, False)
    assert "vqa_rel_token_f1" not in first
    assert failed == FAILED
    assert new["none"] == document()["none"]
    assert new["q"]["query"]["gt_answers_norm"] == ["dog", "dog", "dog", "cat", "cat"]
    assert new["q"]["mood"] == "kept"
    assert result.output.splitlines() == [
        "rl.json: 2 queries, 3 candidates judged again, 2 failed (left as they are)",
        "answers: 0 changed",
        "correct: 1 changed (1 became right, 0 wrong)",
        "accuracy: 3 changed, on average from 0.667 to 0.711",
        "note: vqa_gt_prob of 1 candidate still refers to the answers as the previous metric "
        "normalised them",
        "wrote new.json",
    ]


def test_meta_says_what_judged_and_what_it_was_made_from(dump, cli):
    source = dump(document())
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert (
        cli(
            *(
                "rescore",
                "rl.json",
                "--output-path",
                "new.json",
                "--metric",
                "vqa",
                "--prompt",
                "chat",
            ),
            *("--prompt-opt", "instructions="),
        ).exit_code
        == 0
    )
    meta = json.loads(source.with_name("new.json").read_text())["_meta"]
    changed = {key: value for key, value in meta.items() if META.get(key) != value}
    assert changed == {
        "metric": {"name": "vqa", "options": {}, "version": "1"},
        "parse": {"name": "chat", "options": {"instructions": ""}},
        "rescored_from": {"file": "rl.json", "sha256": digest, "metric": META["metric"]},
    }
    assert list(meta)[: len(META)] == list(META)


def test_another_prompt_cuts_the_answers_out(dump, cli):
    source = dump(document())
    result = cli("rescore", "rl.json", "--output-path", "new.json", "--prompt", "chat")
    assert result.exit_code == 0, result.output
    candidates = json.loads(source.with_name("new.json").read_text())["q"]["pointer_candidates"]
    answers = [each.get("vqa_pred_answer") for each in candidates]
    assert answers == ["the dog", "a dog", "cat, dog", None]
    assert [each.get("vqa_correct") for each in candidates] == [1, 0, 0, None]
    assert "answers: 1 changed\ncorrect: 1 changed (0 became right, 1 wrong)" in result.output


@pytest.mark.parametrize("name", ["new.json", "new.jsonl", "new.parquet"])
def test_what_comes_out_is_valid(dump, cli, name):
    dump(document())
    assert cli("rescore", "rl.json", "--output-path", name, "--metric", "vqa").exit_code == 0
    result = cli("validate", name)
    assert result.exit_code == 0, result.output
    assert "not checked: accuracy (1 of 2 queries" in result.output


def test_the_same_metric_and_parsing_change_nothing_but_what_is_added(world, cli):
    assert world.generate().exit_code == 0
    target = world.output.with_name("new.json")
    result = cli("rescore", str(world.output), "--output-path", str(target), "--prompt", "chat")
    assert result.exit_code == 0, result.output
    for line in ("answers: 0 changed", "correct: 0 changed", "accuracy: 0 changed"):
        assert line in result.output
    old, new = (json.loads(path.read_text()) for path in (world.output, target))
    for content in (old, new):
        del content["_meta"]
        for record in content.values():
            for candidate in record["pointer_candidates"]:
                candidate.pop("vqa_rel_score", None)
    assert new == old


def test_rescoring_is_what_generating_with_that_metric_would_have_been(world, cli):
    assert world.generate("--metric", "exact").exit_code == 0
    exact = json.loads(world.output.read_text())
    assert world.generate("--overwrite").exit_code == 0
    target = world.output.with_name("new.json")
    args = ("rescore", str(world.output), "--output-path", str(target), "--metric", "exact")
    assert cli(*args).exit_code == 0
    new = json.loads(target.read_text())
    assert new["_meta"]["metric"] == exact["_meta"]["metric"]
    for key in exact.keys() - {"_meta"}:
        assert new[key]["query"] == exact[key]["query"]
        for ours, theirs in zip(
            new[key]["pointer_candidates"], exact[key]["pointer_candidates"], strict=True
        ):
            assert {"vqa_rel_score": None, **theirs}.keys() == ours.keys()
            assert {**ours, **theirs} == {**theirs, "vqa_rel_score": ours["vqa_rel_score"]}


def test_old_layouts_and_other_programs_meta_are_taken_in(dump, cli):
    candidate = {**judged(1, "dog", "dog", 0), "pointer": [1], "pointer_global": [7]}
    record = {"query": {"gt_answers_raw": ANSWERS}, "pointer_candidates": [candidate]}
    source = dump({"_meta": {"dataset": "okvqa"}, "q": record})
    refused(cli("rescore", "rl.json", "--output-path", "x.json"), "names no metric: give --metric")
    assert cli("rescore", "rl.json", "--output-path", "x.json", "--metric", "exact").exit_code == 0
    new = json.loads(source.with_name("x.json").read_text())
    assert new["_meta"]["rescored_from"]["meta"] == {"dataset": "okvqa"}
    assert new["q"]["pointer_candidates"][0]["pointer"] == [7]
    assert cli("validate", "x.json").exit_code == 0


# --- what is refused ---


def changed(change):
    content = document()
    change(content["q"])
    content["r"] = content["q"]
    return content


def drop(key):
    def change(record):
        for candidate in record["pointer_candidates"][1:3]:
            candidate.pop(key)

    return change


@pytest.mark.parametrize(
    ("change", "args", "message"),
    [
        (
            drop("vqa_raw_generation"),
            ("--prompt", "chat"),
            "rl.json: query 'q', candidate 1 has no vqa_raw_generation (4 in all have none)",
        ),
        (
            drop("vqa_pred_answer"),
            (),
            "rl.json: query 'q', candidate 1 has no vqa_pred_answer (4 in all have none)",
        ),
        (
            lambda record: record["query"].pop("gt_answers_raw"),
            (),
            "rl.json: query 'q' has no query.gt_answers_raw (2 in all have none)",
        ),
        (
            lambda record: record["query"].update(gt_answers_raw=["dog"]),
            ("--metric", "vqa"),
            "rl.json: 'q': the metric vqa needs the answers of two annotators",
        ),
        (lambda record: record.clear(), (), "rl.json: 'q': neither RL data"),
        (lambda record: None, ("--metric", "vqq"), "unknown metric 'vqq'; did you mean 'vqa'?"),
        (lambda record: None, ("--metric", "vqa", "--metric-opt", "a=1"), "takes no options"),
    ],
)
def test_what_cannot_be_judged_leaves_no_file(dump, cli, tmp_path, change, args, message):
    dump(changed(change))
    refused(cli("rescore", "rl.json", "--output-path", "new.json", *args), message)
    assert [each.name for each in tmp_path.iterdir()] == ["rl.json"]


def test_files_and_options_that_do_not_fit_are_refused(dump, cli):
    dump({"q": {"beams": []}}, "beams.json")
    dump({}, "empty.json")
    source = dump(document())
    exact = ("--metric", "exact")
    refused(cli("rescore", "beams.json", "--output-path", "x.json", *exact), "beam data, which has")
    refused(cli("rescore", "empty.json", "--output-path", "x.json", *exact), "no query in it")
    refused(cli("rescore", "rl.json", "--output-path", "rl.json", *exact), "give --overwrite")
    refused(cli("rescore", "none.json", "--output-path", "x.json"), "cannot read it")
    text = json.dumps(document()["q"])
    (source.with_name("twice.json")).write_text(f'{{"q": {text}, "q": {text}}}')
    refused(cli("rescore", "twice.json", "--output-path", "x.json", *exact), "'q' occurs twice")
    result = cli("rescore", "rl.json", "--output-path", "x.json", "--prompt-opt", "a=1")
    assert result.exit_code == 2
    assert "--prompt-opt sets options of --prompt: name one" in result.stderr


def test_a_file_may_be_rescored_in_place(dump):
    source = dump(document())
    rescore_file(source, source, metric="vqa", overwrite=True)
    assert json.loads(source.read_text())["_meta"]["metric"]["name"] == "vqa"


def test_rescoring_imports_no_torch(dump):
    dump(document())
    code = (
        "import sys\n"
        "from pointer_rl.cli.main import cli\n"
        "try:\n    cli(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = [name for name in ('torch', 'transformers', 'numpy') if name in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    args = [
        "rescore",
        "rl.json",
        "--output-path",
        "new.json",
        "--metric",
        "vqa",
        "--prompt",
        "chat",
    ]
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
