"""Inspect's own reader opens what `export --to inspect` writes, and finds all of it."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import PIL.Image
import pytest
from report_world import HOSTILE, write_world

from pointer_rl.errors import InputError
from pointer_rl.escaping import printable

inspect_log = pytest.importorskip("inspect_ai.log", reason="needs inspect-ai: make test-tools")

from pointer_rl.export.inspect_logs import InspectOptions, write_inspect_logs  # noqa: E402

CHAT = {"prompt": "chat", "prompt_options": {"instructions": ""}}
PROMPT = InspectOptions(**CHAT)


def records_of(path):
    return {key: each for key, each in json.loads(path.read_text()).items() if key != "_meta"}


@pytest.fixture
def rl_data(tmp_path):
    return write_world(tmp_path, queries=12)


def read(path):
    return inspect_log.read_eval_log(str(path), resolve_attachments=True)


def test_a_sample_for_each_candidate(rl_data, tmp_path):
    [path] = write_inspect_logs(rl_data, tmp_path / "logs", PROMPT)
    assert path == tmp_path / "logs" / "rl.eval"
    log, records = read(path), records_of(rl_data)
    assert log.status == "success"
    found = {(each.id, each.epoch): each for each in log.samples}
    assert len(found) == sum(len(each["pointer_candidates"]) for each in records.values()) == 48
    failed = 0
    for id, record in records.items():
        for epoch, candidate in enumerate(record["pointer_candidates"], 1):
            sample = found[id, epoch]
            answers = [*dict.fromkeys(record["query"]["gt_answers_raw"])]
            assert sample.target == answers
            assert sample.metadata["annotators"] == dict.fromkeys(answers, 3)
            for key in ("pointer", "gen_method", "beam_rank", "beam_score", "logprob_score"):
                assert sample.metadata.get(key) == candidate[key]
            assert sample.metadata["demonstrations"] == [f"q{row}" for row in candidate["pointer"]]
            if "eval_failed" in candidate:
                failed += 1
                assert (sample.scores, len(sample.messages)) == (None, 5)
                assert (
                    sample.error.message
                    == candidate["eval_error"].encode("utf-8", "backslashreplace").decode()
                )
                continue
            assert sample.error is None
            assert sample.scores["accuracy"].value == candidate["vqa_acc_score"]
            assert sample.scores["correct"].value == ("C" if candidate["vqa_correct"] else "I")
            raw = candidate["vqa_raw_generation"].encode("utf-8", "backslashreplace").decode()
            assert sample.scores["correct"].explanation == sample.output.completion == raw
            assert sample.scores["correct"].answer == raw.removeprefix("<think>")
    assert failed == 3


def test_messages_are_what_was_asked_with_the_images(rl_data, tmp_path):
    [path] = write_inspect_logs(rl_data, tmp_path / "one.eval", PROMPT)
    sample = read(path).samples[0]
    rows = sample.metadata["pointer"]
    assert [each.role for each in sample.messages] == ["user", "assistant"] * 3
    for message, row in zip(sample.messages[:5:2], [*rows, 0], strict=True):
        image, question = message.content
        assert question.text == f"{HOSTILE[row % len(HOSTILE)]} {row}?".replace("\ud800", "")
        kind, encoded = image.image.split(",")
        assert kind == "data:image/webp;base64"
        pixels = PIL.Image.open(io.BytesIO(base64.b64decode(encoded)))
        assert pixels.size == (90, 60)
        red, *_ = pixels.getpixel((45, 30))
        assert abs(red - 30 * (row % 8)) < 12
    [query] = sample.input
    assert query.content == sample.messages[4].content  # demonstrations are the arm's
    small = InspectOptions(**CHAT, image_side=30, overwrite=True)
    assert write_inspect_logs(rl_data, path, small) == [path]
    image = read(path).samples[0].input[0].content[0].image
    assert PIL.Image.open(io.BytesIO(base64.b64decode(image.split(",")[1]))).size == (30, 20)
    none = InspectOptions(**CHAT, image_side=0, overwrite=True)
    write_inspect_logs(rl_data, path, none)
    assert "0.png" in read(path).samples[0].input[0].content[0].text


def test_results_are_means_over_queries(rl_data, tmp_path):
    [path] = write_inspect_logs(rl_data, tmp_path / "logs", PROMPT)
    header = inspect_log.read_eval_log(str(path), header_only=True)
    by_query = defaultdict(list)
    for id, record in records_of(rl_data).items():
        for each in record["pointer_candidates"]:
            if "vqa_acc_score" in each:
                for method in ("mean", each["gen_method"]):
                    by_query[method, id].append(each["vqa_acc_score"])
    means = defaultdict(list)
    for (method, _), values in by_query.items():
        means[method].append(fmean(values))
    [accuracy] = [each for each in header.results.scores if each.name == "accuracy"]
    found = {name: each.value for name, each in accuracy.metrics.items()}
    del found["stderr"]
    assert found == pytest.approx({method: fmean(each) for method, each in means.items()})
    assert (header.results.total_samples, header.results.completed_samples) == (48, 45)
    assert header.eval.metadata["dataset"]["name"] == "jsonl"


def test_the_same_file_gives_the_same_bytes(rl_data, tmp_path):
    paths = [tmp_path / name / "rl.eval" for name in "ab"]
    for path in paths:
        write_inspect_logs(rl_data, path.parent, PROMPT)
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.fixture
def evaluation(rl_data):
    """Two arms on the records of the data: the first candidate, and the best of all."""
    records = records_of(rl_data)
    pointers = [[each["pointer"] for each in one["pointer_candidates"]] for one in records.values()]
    path, meta = rl_data.with_name("result.json"), json.loads(rl_data.read_text())["_meta"]
    path.write_text(
        json.dumps(
            {
                "verdict": "it helps",
                "rows": [
                    {"arm": "first one", "shots": 2, "accuracy": 0.25},
                    {"arm": "oracle", "shots": 2, "accuracy": 0.75},
                    {"arm": "vote image", "shots": 2, "accuracy": 0.5},
                ],
                "settings": {**meta, "prompt": {"name": "chat"}},
                "pointers": {
                    "2": {
                        "first one": [each[:1] for each in pointers],
                        "oracle": pointers,
                        "vote image": [[] for _ in pointers],
                    }
                },
                "records": records,
            }
        )
    )
    return path


def test_an_evaluation_has_a_log_for_each_arm_that_asked(evaluation, tmp_path):
    paths = write_inspect_logs(evaluation, tmp_path / "logs")
    assert [each.name for each in paths] == [
        "result-first-one-2-shots.eval",
        "result-oracle-2-shots.eval",
    ]
    first, oracle = map(read, paths)
    records = records_of(evaluation)["records"]
    assert {each.id: each.metadata["pointer"] for each in first.samples} == {
        id: one["pointer_candidates"][0]["pointer"] for id, one in records.items()
    }
    assert len(first.samples) == 12
    assert len(oracle.samples) == 48
    assert (first.eval.solver, first.eval.task_args) == ("first one", {"shots": 2})
    assert first.eval.metadata["verdict"] == "it helps"
    for log, accuracy in ((first, 0.25), (oracle, 0.75)):
        assert log.results.scores[0].metrics["mean"].value == accuracy
    with pytest.raises(InputError, match="a log for each arm: name a folder"):
        write_inspect_logs(evaluation, tmp_path / "one.eval")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"settings": []}, "a damaged evaluation"),
        ({"prompt": {"name": "chat", "options": "text"}}, "options of its prompt builder"),
    ],
)
def test_damaged_settings_are_one_line(evaluation, tmp_path, changes, said):
    content = json.loads(evaluation.read_text())
    (content if "settings" in changes else content["settings"]).update(changes)
    evaluation.write_text(json.dumps(content))
    with pytest.raises(InputError, match=said):
        write_inspect_logs(evaluation, tmp_path / "logs")


def test_a_metrics_name_may_be_no_unicode(evaluation, tmp_path):
    content = json.loads(evaluation.read_text())
    content["settings"]["metric"] = {"name": "a\ud800"}
    evaluation.write_text(json.dumps(content))
    first, _ = write_inspect_logs(evaluation, tmp_path / "logs")
    assert read(first).results.scores[0].scorer == "a\\ud800"


def test_arms_with_one_name_for_their_logs_are_refused(evaluation, tmp_path):
    content = json.loads(evaluation.read_text())
    arms = content["pointers"]["2"]
    arms["first-one"] = arms["first one"]
    evaluation.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"the log result-first-one-2-shots\.eval; rename one"):
        write_inspect_logs(evaluation, tmp_path / "logs")


def test_ids_and_texts_that_no_file_can_have(tmp_path):
    rl_data = write_world(tmp_path, queries=8)
    content = json.loads(rl_data.read_text())
    renamed = {key: each for key, each in content.items() if key == "_meta"}
    data = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    for row, text in zip(data, HOSTILE, strict=True):
        old, row["id"] = row["id"], f"../{text[:50]}\0 {row['id']}".replace("\ud800", "")
        renamed[row["id"]] = content[old]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    rl_data.write_text(json.dumps(renamed))
    [path] = write_inspect_logs(rl_data, tmp_path / "logs", PROMPT)
    assert {each.id for each in read(path).samples} == {printable(row["id"]) for row in data}
    for row in data:
        sample = inspect_log.read_eval_log_sample(str(path), printable(row["id"]), 1)
        assert sample.target[0] == row["answers"][0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (InspectOptions(), "does not name its prompt builder: give --prompt"),
        (InspectOptions(**CHAT, dataset="glyphs"), "has no query 'q0'"),
    ],
)
def test_what_is_missing_is_one_line_and_leaves_nothing(rl_data, tmp_path, options, said):
    with pytest.raises(InputError, match=said):
        write_inspect_logs(rl_data, tmp_path / "logs", options)
    assert not (tmp_path / "logs").exists() or not list((tmp_path / "logs").iterdir())


def test_logs_are_replaced_only_if_that_is_wanted(rl_data, tmp_path):
    [path] = write_inspect_logs(rl_data, tmp_path / "logs", PROMPT)
    with pytest.raises(InputError, match=r"rl\.eval: exists"):
        write_inspect_logs(rl_data, tmp_path / "logs", PROMPT)
    assert [each.name for each in path.parent.iterdir()] == ["rl.eval"]


def test_inspect_bundles_it_for_a_web_server(rl_data, tmp_path):
    write_inspect_logs(rl_data, tmp_path / "logs", PROMPT)
    command = [sys.executable, "-m", "inspect_ai", "view", "bundle"]
    folders = ["--log-dir", tmp_path / "logs", "--output-dir", tmp_path / "site"]
    subprocess.run([*command, *folders], check=True, capture_output=True)
    listing = json.loads((tmp_path / "site" / "logs" / "listing.json").read_text())
    assert list(listing) == ["rl.eval"]
    assert listing["rl.eval"]["status"] == "success"
    assert Path(tmp_path / "site" / "logs" / "rl.eval").stat().st_size > 1000
