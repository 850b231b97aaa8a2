"""Nothing that a run was made of changes without a word."""

from __future__ import annotations

import json
from pathlib import Path

import PIL.Image
import pytest
import torch
from click.testing import CliRunner

from pointer_rl.datasets.embeddings import load_embeddings, save_embeddings
from pointer_rl.datasets.identity import ExampleHasher
from pointer_rl.records.formats import read_meta
from pointer_rl.registry import registry
from pointer_rl.selectors import PointerConfig, PointerSelector
from pointer_rl.selectors.bundle import BundleInfo, EncoderInfo, save_bundle


def refused(result, says: str) -> None:
    """Exit 2, with one line."""
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1, result.stderr
    assert says in lines[0]


def run_cli(*args: str):
    from pointer_rl.cli.main import cli

    return CliRunner().invoke(cli, list(args))


def replace_image(world, name: str = "2.png") -> None:
    PIL.Image.new("RGB", (4, 4), (0, 99, 0)).save(world.folder / name)


def embed(world, encoder: str = "toy 1") -> None:
    """Write embeddings that say what they are of, as `embed` does."""
    dataset = registry().create("dataset", "jsonl", {"path": str(world.data)})
    contents = ExampleHasher()(dataset.queries).hashes
    for path in (world.query_emb, world.cand_emb):
        made = load_embeddings(path)
        save_embeddings(path, made.vectors, made.ids, encoder, contents)


def evaluate(world, *more: str):
    return run_cli(
        *("evaluate", "--backend", "copy", "--dataset", "jsonl"),
        *("--dataset-opt", f"path={world.data}", "--shots", "1"),
        *("--query-emb", str(world.query_emb), "--cand-emb", str(world.cand_emb)),
        *("--output-path", str(world.folder / "e.json"), *more),
    )


def beams(world, *more: str):
    return run_cli(
        *("beams", "--backend", "copy", "--dataset", "jsonl", "--shots", "1"),
        *("--dataset-opt", f"path={world.data}"),
        *("--output-path", str(world.folder / "b.json"), *more),
    )


@pytest.mark.parametrize("command", ["generate", "generate, part", "beams", "evaluate"])
def test_a_changed_image_is_refused_and_can_be_accepted(world, command):
    part = ("--max-calls", "14", "--window", "2") if command == "generate, part" else ()
    run, output = {
        "beams": (beams, world.folder / "b.json"),
        "evaluate": (evaluate, world.folder / "e.json"),
    }.get(command, (type(world).generate, world.output))
    assert run(world, *part).exit_code == 0
    replace_image(world)
    part = part[2:]
    refused(run(world, *part), "an image, question, answer or id of the queries has changed")
    refused(run(world, *part, "--accept-changed", "plugins"), "--accept-changed inputs")
    accepted = run(world, *part, "--accept-changed", "inputs")
    assert accepted.exit_code == 0, accepted.output
    if part:
        meta = read_meta(output)
        assert [each.keys() for each in meta["earlier"]] == [{"inputs"}]
        assert meta["earlier"][0]["inputs"] != meta["inputs"]


def test_a_plan_accepts_what_the_run_would(world):
    part = ("--window", "2", "--max-calls", "14")
    assert world.generate(*part).exit_code == 0
    replace_image(world)
    refused(world.generate("--plan", *part), "accept the change with --accept-changed inputs")
    planned = world.generate("--plan", *part, "--accept-changed", "inputs")
    assert planned.exit_code == 0, planned.output


def test_an_accepted_change_is_kept_through_further_stops(world):
    part = ("--window", "1", "--max-calls", "4")
    world.generate(*part)
    journal = world.output.with_name("rl.partial.jsonl")
    first = json.loads(journal.read_bytes().splitlines()[0])["_meta"]["inputs"]
    for colour in (1, 2):
        PIL.Image.new("RGB", (4, 4), (0, colour, 0)).save(world.folder / "2.png")
        assert world.generate(*part, "--accept-changed", "inputs").exit_code == 0
        assert world.generate(*part).exit_code == 0, "what was accepted is the run's now"
        assert journal.read_bytes().count(b'"_changed"') == colour
    assert world.generate("--window", "1").exit_code == 0
    meta = read_meta(world.output)
    assert len(meta["earlier"]) == 2
    assert meta["earlier"][0]["inputs"] == first
    assert "nothing to do" in world.generate("--window", "1").stdout


def test_the_same_images_elsewhere_are_the_same(world, tmp_path):
    assert world.generate("--window", "2", "--max-calls", "14").exit_code == 0
    (tmp_path / "moved").mkdir()
    for row in world.rows:
        (tmp_path / row["image"]).rename(tmp_path / "moved" / row["image"])
        row["image"] = f"moved/{row['image']}"
    world.write()
    again = world.generate("--window", "2")
    assert again.exit_code == 0, again.output


def test_images_named_in_another_order_are_refused(world):
    world.generate("--max-calls", "14", "--window", "2")
    world.rows[0]["image"], world.rows[1]["image"] = "1.png", "0.png"
    world.write()
    refused(world.generate("--window", "2"), "of the queries has changed")


@pytest.mark.parametrize("what", ["image", "question", "answers"])
def test_embeddings_of_other_content_are_refused(world, what):
    embed(world)
    assert world.generate("--max-calls", "14", "--window", "2").exit_code == 0
    if what == "image":
        replace_image(world)
    else:
        world.rows[2][what] = "another?" if what == "question" else ["c"]
        world.write()
    for run in (type(world).generate, evaluate):
        refused(
            run(world, "--overwrite"),
            "1 of 8 examples have changed since they were embedded (image, question, answers or "
            "ids; the first: 'e2'): embed this split again",
        )
    embed(world)
    assert world.generate("--overwrite").exit_code == 0


def test_embeddings_that_do_not_say_their_content_are_recorded(world, caplog):
    world.generate()
    assert read_meta(world.output)["inputs"]["not_compared"] == ["queries", "pool"]
    assert sum("so a change cannot be noticed" in each for each in caplog.messages) == 2
    embed(world)
    world.generate("--overwrite")
    inputs = read_meta(world.output)["inputs"]
    assert "not_compared" not in inputs
    assert inputs["encoder"] == "toy 1"


def bundle(world, encoder: str | None) -> Path:
    folder = world.folder / "policy"
    config = PointerConfig(d_model=6, hidden_dim=4, num_layers=1, num_heads=1)
    pool = load_embeddings(world.cand_emb)
    info = BundleInfo(shots=2, encoder=EncoderInfo(fingerprint=encoder), dataset={})
    save_bundle(folder, PointerSelector.seeded(config, 0), pool.vectors, pool.ids, info, [])
    return folder


def test_a_policy_for_another_encoder_is_refused(world):
    embed(world, "toy 1")
    policy = bundle(world, "toy 2")
    says = "a bundle for another encoder (toy 2); these embeddings come from toy 1"
    refused(world.generate("--sft-ckpt", str(policy), selector=True), says)
    refused(evaluate(world, "--policy", f"mine={policy}"), says)
    refused(evaluate(world, "--arm", "policy", "--arm-opt", f"policy.path={policy}"), says)
    policy = bundle(world, "toy 1")
    assert world.generate("--sft-ckpt", str(policy), selector=True).exit_code == 0


def test_a_policy_of_an_unknown_encoder_is_noted(world, caplog):
    embed(world, "toy 1")
    policy = bundle(world, None)
    assert world.generate("--sft-ckpt", str(policy), selector=True).exit_code == 0
    assert "which encoder the policy was trained with is not known" in caplog.text
    assert read_meta(world.output)["policy"]["encoder"] is None


# --- training ---


@pytest.fixture
def logged(world, cli):
    """RL data of the world, and `train` on it."""
    embed(world)
    assert world.generate("--num-random", "4").exit_code == 0
    data = json.loads(world.output.read_text())
    for number, record in enumerate(v for k, v in data.items() if k != "_meta"):
        for index, candidate in enumerate(record["pointer_candidates"]):
            candidate["vqa_correct"] = (number + index) % 2
            candidate["vqa_acc_score"] = float(candidate["vqa_correct"])
    world.output.write_text(json.dumps(data))

    def train(query_emb: Path, cand_emb: Path):
        return cli(
            *("train", "--beam-data", str(world.output), "--output-dir", str(world.folder / "run")),
            *("--query-emb", str(query_emb), "--cand-emb", str(cand_emb), "--overwrite"),
            *("--rce-epochs", "1", "--grpo-epochs", "0", "--layers", "1", "--heads", "1"),
        )

    return train


@pytest.mark.parametrize("side", ["queries", "pool"])
def test_training_refuses_embeddings_in_another_order(world, logged, side):
    emb = {"queries": world.folder / "q.pt", "pool": world.folder / "c.pt"}
    vectors = load_embeddings(world.query_emb).vectors
    for path in emb.values():
        torch.save(vectors, path)
    assert logged(*emb.values()).exit_code == 0, "the same values need no ids"
    torch.save(vectors.flip(0), emb[side])
    refused(logged(*emb.values()), f"the embeddings of the {side} are of other examples")


def test_training_refuses_embeddings_of_changed_images(world, logged):
    assert logged(world.query_emb, world.cand_emb).exit_code == 0
    replace_image(world)
    embed(world)
    refused(logged(world.query_emb, world.cand_emb), "an image, a question or an answer may have")


def test_training_takes_another_encoder_of_the_same_examples(world, logged, caplog):
    for path in (world.query_emb, world.cand_emb):
        made = load_embeddings(path)
        save_embeddings(path, made.vectors.flip(1), made.ids, "toy 2", made.contents)
    assert logged(world.query_emb, world.cand_emb).exit_code == 0
    assert "not compared" not in caplog.text
    for path in (world.query_emb, world.cand_emb):
        save_embeddings(path, made.vectors.flip(1), made.ids, "toy 2")
    assert logged(world.query_emb, world.cand_emb).exit_code == 0
    assert "embeddings of the queries and the pool are of the same images" in caplog.text
    training = json.loads((world.folder / "run" / "bundle.json").read_text())["training"]
    assert training["options"]["not_compared"] == ["queries", "pool"]


# --- the code of plugins ---

PLUGIN = """
from pointer_rl.hookspecs import hookimpl
from pointer_rl.types import Judgement

class Same:
    version = "1"
    def normalise(self, answer): return answer
    def judge(self, answer, answers): return Judgement(answer in answers, float(answer in answers))

@hookimpl
def pointer_rl_register_metrics(register):
    register("same", Same, summary="the same")
"""


def test_a_plugins_changed_code_is_refused_and_can_be_accepted(world):
    plugin = world.folder / "same.py"
    plugin.write_text(PLUGIN)
    registry().load_file(plugin)
    args = ("--metric", "same", "--window", "2")
    assert world.generate(*args, "--max-calls", "14").exit_code == 0
    plugin.write_text(PLUGIN + "# edited\n")
    refused(world.generate(*args), "the code of the plugin same has changed")
    refused(world.generate(*args), "accept the change with --accept-changed plugins")
    assert world.generate(*args, "--accept-changed", "plugins").exit_code == 0
    meta = read_meta(world.output)
    (before,) = meta["earlier"]
    assert before["plugins"].keys() == meta["plugins"].keys() >= {"same"}
    assert before["plugins"]["same"] != meta["plugins"]["same"]


def test_a_run_without_foreign_plugins_names_none(world, tmp_path):
    from pointer_rl.registry import code_of

    names = [("metric", "vqa"), ("dataset", "jsonl"), ("reward", "hard_plus_soft")]
    assert code_of([registry().find(*each) for each in names]) == {}
