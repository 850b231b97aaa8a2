"""`pointer-rl answer`, with a backend that copies the last demonstration's answer."""

from __future__ import annotations

import json

import pytest
import torch

from pointer_rl.registry import registry
from pointer_rl.selectors import PointerConfig, PointerSelector
from pointer_rl.selectors.bundle import BundleInfo, EncoderInfo, save_bundle

LENGTHS = """
import torch
from pointer_rl import hookimpl

class Lengths:
    dim = 6
    fingerprint = "lengths"

    def encode(self, examples):
        lengths = torch.tensor([[float(len(each.question))] for each in examples])
        return torch.sin(lengths * torch.arange(1, self.dim + 1))

@hookimpl
def pointer_rl_register_encoders(register):
    register("lengths", Lengths, summary="the question's length")
"""


@pytest.fixture
def place(world, tmp_path, monkeypatch):
    """The jsonl world with a policy over its pool, and three questions; commands run in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lengths.py").write_text(LENGTHS)
    registry().load_file(tmp_path / "lengths.py")
    config = PointerConfig(d_model=6, hidden_dim=4, num_layers=1, num_heads=1, history="gated")
    save_bundle(
        tmp_path / "policy",
        PointerSelector.seeded(config, 0),
        torch.randn(8, 6, generator=torch.Generator().manual_seed(1)),
        [row["id"] for row in world.rows],
        BundleInfo(
            shots=2,
            encoder=EncoderInfo(fingerprint="lengths", name="lengths"),
            dataset={"name": "jsonl", "options": {"path": "data.jsonl"}},
        ),
        ["q"],
    )
    questions = [{"id": f"n{i}", "image": f"{i}.png", "question": "?" * (i + 1)} for i in range(3)]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(each) + "\n" for each in questions))
    return world


def answer(cli, *args):
    return cli("answer", "policy", "--backend", "copy", *args)


def last_answer(world, pointer):
    return world.rows[pointer[-1]]["answers"][0]


def test_many_questions_give_a_line_of_json_each(place, cli):
    done = answer(cli, "--queries", "new.jsonl")
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    selected = [
        json.loads(line)
        for line in cli("select", "policy", "--queries", "new.jsonl").stdout.splitlines()
    ]
    assert [{key: line[key] for key in selected[0]} for line in lines] == selected
    for line in lines:
        assert line["answer"] == last_answer(place, line["pointer"])
        assert line["answer"] in line["raw_generation"]


def test_what_was_answered_is_not_asked_again(place, cli, backends):
    first = answer(cli, "--queries", "new.jsonl")
    assert answer(cli, "--queries", "new.jsonl").stdout == first.stdout
    assert answer(cli, "--queries", "new.jsonl", "--no-store").stdout == first.stdout
    assert [len(each.asked) for each in backends] == [3, 0, 3]


def test_one_question_on_a_terminal_is_answered_in_words(place, cli, terminal):
    args = ("--image", "1.png", "--question", "what?")
    told = json.loads(answer(cli, *args, "--json").stdout)
    done = answer(cli, *args)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[:3] == ["query 0: what?", "  1.png", f"  answer: {told['answer']}"]
    assert lines[4:-1] == [
        line
        for number, row in enumerate(told["pointer"], 1)
        for line in (
            f"  {number}. row {row} (e{row}): q{row}? → {'ab'[row % 2]}",
            f"     {row}.png",
        )
    ]


def test_an_image_that_cannot_be_read_fails_its_questions_alone(place, cli):
    lines = [json.loads(each) for each in answer(cli, "--queries", "new.jsonl").stdout.splitlines()]
    gone = lines[0]["pointer"][0]
    (place.folder / f"{gone}.png").unlink()
    done = answer(cli, "--queries", "new.jsonl", "--no-store")
    assert done.exit_code == 1
    failed = [line for line in lines if gone in line["pointer"] or line["query_id"] == f"n{gone}"]
    again = [json.loads(each) for each in done.stdout.splitlines()]
    for before, after in zip(lines, again, strict=True):
        if before in failed:
            assert after["eval_failed"] is True
            assert f"{gone}.png: cannot read the image" in after["eval_error"]
            assert "answer" not in after
        else:
            assert after == before
    [line] = done.stderr.splitlines()
    assert line.startswith(f"pointer-rl: {len(failed)} of 3 questions not answered (n0: ")


@pytest.mark.parametrize(
    ("args", "saying"),
    [
        ((), "give either --question and --image, or --queries"),
        (("--image", "1.png"), "give either --question and --image, or --queries"),
        (("--queries", "new.jsonl", "--dataset-opt", "path=no.jsonl"), "no.jsonl: cannot read it"),
        (("--queries", "new.jsonl", "--dataset", "jsonl"), "needs the option path"),
        (("--queries", "new.jsonl", "--dataset-opt", "path=short.jsonl"), "pool (3 examples) has"),
        (("--queries", "new.jsonl", "--shots", "9"), "9 shots need a pool of at least as many"),
        (("--queries", "new.jsonl", "--backend", "copi"), "did you mean 'copy'?"),
        (("--queries", "new.jsonl", "--store", "x", "--no-store"), "exclude each other"),
    ],
)
def test_what_cannot_be_answered_is_one_line(place, cli, args, saying):
    lines = place.data.read_text().splitlines(keepends=True)
    (place.folder / "short.jsonl").write_text("".join(lines[:3]))
    done = answer(cli, *args)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    line = done.stderr.splitlines()[-1]
    assert saying in line
    assert "--query-emb" not in line


def test_a_bundle_without_a_dataset_needs_one(place, cli):
    path = place.folder / "policy" / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dataset": {}}))
    done = answer(cli, "--queries", "new.jsonl")
    assert done.exit_code == 2
    assert "policy does not name its dataset: give --dataset and --dataset-opt" in done.stderr
    named = ("--dataset", "jsonl", "--dataset-opt", "path=data.jsonl")
    assert answer(cli, "--queries", "new.jsonl", *named).exit_code == 0
