"""`pointer-rl evaluate`, from the command line to its files."""

from __future__ import annotations

import json
import re

import PIL.Image
import pytest
import torch
from toy_selectors import StoppingSelector, installed

from pointer_rl.datasets.embeddings import load_embeddings, save_embeddings
from pointer_rl.evaluate.measure import EvaluationJob
from pointer_rl.selectors import PointerConfig, PointerSelector, save_selector
from pointer_rl.selectors.bundle import BundleInfo, EncoderInfo, load_bundle, save_bundle


def selector(seed=0, dim=6):
    return PointerSelector.seeded(
        PointerConfig(d_model=dim, hidden_dim=4, num_layers=1, num_heads=1, history="gated"), seed
    )


@pytest.fixture
def evaluate(world, cli):
    """Runs on the jsonl world, whose pool are its queries; keeps nothing unless told."""
    save_selector(world.folder / "policy", selector())

    def run(*more, policy=True):
        return cli(
            *("evaluate", "--backend", "copy", "--dataset", "jsonl"),
            *("--dataset-opt", f"path={world.data}"),
            *("--query-emb", str(world.query_emb), "--cand-emb", str(world.cand_emb)),
            *(("--policy", f"RL={world.folder / 'policy'}") if policy else ()),
            *more,
        )

    return run


def bundle(world, shots=2, encoder=None, trained_on=("e1", "x")):
    folder = world.folder / "bundle"
    save_bundle(
        folder,
        selector(1),
        load_embeddings(world.cand_emb).vectors,
        [row["id"] for row in world.rows],
        BundleInfo(shots=shots, encoder=EncoderInfo(fingerprint=encoder), dataset={"name": "x"}),
        trained_on,
    )
    return folder


def one_line(result, *parts):
    assert result.exit_code == 2, result.output
    assert result.output.startswith(("pointer-rl: error: ", "Usage:"))
    message = result.output.strip().splitlines()[-1]
    for part in parts:
        assert part in message
    if not result.output.startswith("Usage:"):
        assert len(result.output.strip().splitlines()) == 1


def test_table_verdict_json_and_picture(evaluate, world):
    output, plot = world.folder / "new" / "result.json", world.folder / "new" / "result.png"
    result = evaluate("--shots", "2,1", "--output-path", str(output), "--plot", str(plot))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split()[:5] == ["shots", "arm", "queries", "calls", "accuracy"]
    arms = [re.split(r"\s{2,}", line.strip())[1] for line in lines[2:15]]
    of_one = ["random", "similarity", "RL", "vote similarity", "vote RL", "oracle"]
    assert arms == ["zero-shot", *of_one, *of_one]
    assert "RL, 2 shots: not distinguishable from random (99 % interval" in result.stdout
    assert "8 of 8 queries share their image with a pool example and are not shown" in result.stdout
    content = json.loads(output.read_text())
    assert content["settings"]["primary"] == "RL"
    assert content["settings"]["backend"]["fingerprint"] == "copy"
    assert f"{content['trials']:,} trials, 0 of them from the response cache" in result.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_policy_that_can_stop_is_compared_with_every_fixed_number(evaluate, world):
    made = StoppingSelector.seeded(selector().config, 0)
    with torch.no_grad():
        made.stop.weight.mul_(9)
    with installed():
        save_selector(world.folder / "policy", made)
        result = evaluate("--shots", "3", "--output-path", str(world.folder / "result.json"))
        assert result.exit_code == 0, result.output
        refused = evaluate("--shots", "3", "--policy", f"RL always 2={world.folder / 'policy'}")
    one_line(refused, "policy 'RL always 2': the name of another arm")
    assert re.search(r"^shots +arm +shown +queries", result.stdout)
    content = json.loads((world.folder / "result.json").read_text())
    shown = {row["arm"]: row["demonstrations"] for row in content["rows"]}
    assert {arm: shown[arm] for arm in shown if arm.startswith("RL ")} == {
        f"RL always {number}": number for number in (1, 2, 3)
    }
    assert 0 < shown["RL"] < 3
    rivals = {each["reference"] for each in content["comparisons"] if each["arm"] == "RL"}
    assert {"zero-shot", "RL always 1", "RL always 2", "RL always 3"} <= rivals


def test_arms_share_trials_and_nothing_is_paid_for_twice(evaluate, world, backends):
    path = world.folder / "a.json"
    assert evaluate("--output-path", str(path)).exit_code == 0
    asked = [request.prompt for request in backends[0].asked]
    assert len(asked) == len(set(asked)) == json.loads(path.read_text())["trials"]
    first = path.read_bytes()
    result = evaluate("--output-path", str(path), "--overwrite")
    assert f"{len(asked)} trials, {len(asked)} of them from the response cache" in result.stdout
    assert backends[1].asked == []
    assert path.read_bytes() == first


def second_interrupts():
    """Instead of `EvaluationJob.run`: the first window runs, the second is interrupted."""
    run, windows = EvaluationJob.run, []

    def interrupt(job, window):
        if windows:
            raise KeyboardInterrupt
        windows.append(window)
        return run(job, window)

    return interrupt


@pytest.fixture
def glyphs(cli, monkeypatch):
    """Runs on ten queries of a tiny glyph world, whose split `train` has twenty."""
    monkeypatch.setattr("pointer_rl_standard.answer_match.STEPS", 3)
    sizes = [f"--dataset-opt={name}" for name in ("pool_size=12", "test_size=10", "train_size=20")]

    def run(*more):
        return cli("evaluate", "--backend", "copy", *sizes, "--dataset-opt", "split=test", *more)

    return run


LEARNING = (
    *("--arm", "fixed", "--arm", "answer-match", "--train-opt", "split=train"),
    *("--arm-opt", "fixed.budget=30", "--arm-opt", "fixed.pointers=4"),
)


def test_arms_learn_from_another_split_and_what_they_ask_is_counted(glyphs, world, backends):
    path = world.folder / "a.json"
    command = (*LEARNING, "--output-path", str(path), "--no-store", "--shots", "1,2")
    result = glyphs(*command)
    assert result.exit_code == 0, result.output
    content = json.loads(path.read_text())
    trained = {(row["arm"], row["shots"]): row["training_calls"] for row in content["rows"]}
    asked = trained["fixed", 1], trained["fixed", 2]
    assert all(20 <= each <= 30 for each in asked)
    assert {trained["answer-match", 2], trained["mixed", 2], trained["oracle", 1]} == {0}
    assert len(backends[0].asked) == sum(asked) + content["trials"]
    assert re.search(rf"2  fixed +10  +{asked[1]} \+ 10 ", result.stdout)
    assert content["settings"]["train_options"] == {"split": "train"}
    again = glyphs(*command)
    assert "finished before; nothing to do" in again.stdout
    other = glyphs(*command, "--seed", "1")
    assert other.exit_code == 2
    assert "a.json: exists, and is another evaluation's (seed: 0, now 1)" in other.output
    assert [len(each.asked) for each in backends[1:]] == [0, 0]
    first = path.read_bytes()
    assert glyphs(*command, "--overwrite").exit_code == 0
    assert path.read_bytes() == first


def test_arms_learn_from_the_pool_by_default(glyphs, backends):
    result = glyphs(*LEARNING[:4], *LEARNING[6:])
    assert result.exit_code == 0, result.output
    assert "fixed" in result.stdout
    assert "answer-match" in result.stdout


def test_the_journal_of_another_run_is_refused_before_anything_is_learned(
    glyphs, world, backends, monkeypatch
):
    path = world.folder / "a.json"
    command = (*LEARNING, "--output-path", str(path), "--no-store")

    monkeypatch.setattr("pointer_rl.session.session.default_window", lambda device: 5)
    with monkeypatch.context() as patch:
        patch.setattr(EvaluationJob, "run", second_interrupts())
        assert glyphs(*command).exit_code == 130
    result = glyphs(*command, "--seed", "1")
    assert result.exit_code == 2
    assert "seed: 0, now 1" in result.output
    assert backends[-1].asked == []


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        ((), ("arm answer-match: ", "8 evaluated queries (such as e0)", "--train-opt KEY=VALUE")),
        (("--train-opt", "path=data.jsonl"), ("--train-opt: 8 queries", "(such as e0)")),
        (("--train-opt", "path=renamed.jsonl"), ("--train-opt: ", "images", "such as e0")),
        (
            ("--train-opt", "path=other.jsonl"),
            ("have no embeddings: give --encoder",),
        ),
        (("--train-opt", "paht=other.jsonl"), ("paht", "path")),
        (("--train-opt", "path=gone.jsonl"), ("gone.jsonl",)),
        (("--train-opt", "path"), ("--train-opt", "path")),
        (("--train-opt", "path=empty.jsonl"), ("empty.jsonl",)),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_may_not_be_learned_from_is_one_line(
    evaluate, world, backends, monkeypatch, more, parts
):
    monkeypatch.chdir(world.folder)
    for name, change in (("renamed", {}), ("other", {"image": "new.png"})):
        lines = [json.dumps(row | {"id": f"n{row['id']}"} | change) for row in world.rows]
        (world.folder / f"{name}.jsonl").write_text("\n".join(lines))
    (world.folder / "empty.jsonl").touch()
    PIL.Image.new("RGB", (4, 4), (99, 0, 0)).save(world.folder / "new.png")
    one_line(evaluate("--arm", "answer-match", *more), *parts)
    assert backends == []


def test_a_limit_is_a_random_subset_of_which_smaller_ones_are_part(evaluate, world):
    def ids(*more):
        path = world.folder / "a.json"
        result = evaluate("--output-path", str(path), "--overwrite", *more)
        assert result.exit_code == 0, result.output
        return json.loads(path.read_text())["query_ids"]

    every = [row["id"] for row in world.rows]
    assert ids() == ids("--limit", "99") == every
    four = ids("--limit", "4")
    assert len(four) == 4
    assert four == sorted(four) != every[:4]
    assert set(ids("--limit", "2")) < set(four)
    assert ids("--limit", "4", "--seed", "1") != four


def test_the_encoders_modes_are_arms(cli, world):
    path = world.folder / "a.json"
    result = cli(
        *("evaluate", "--backend", "copy", "--output-path", str(path), "--limit", "5"),
        *("--dataset-opt", "pool_size=12", "--dataset-opt", "test_size=10"),
        *("--dataset-opt", "split=test"),
    )
    assert result.exit_code == 0, result.output
    content = json.loads(path.read_text())
    of_two = list(content["accuracies"]["2"])
    assert of_two[:5] == ["random", "image", "text", "mixed", "answer-match"]
    assert [each.split(":")[-1] for each in content["settings"]["similarity"].values()] == [
        *("image", "text", "both"),
    ]
    assert content["settings"]["primary"] == "mixed"  # where there is no policy
    assert "mixed, 2 shots: " in result.stdout
    one = cli(
        *("evaluate", "--backend", "copy", "--output-path", str(path), "--limit", "5"),
        *("--dataset-opt", "pool_size=12", "--dataset-opt", "test_size=10", "--overwrite"),
        *("--dataset-opt", "split=test", "--encoder", "glyphs", "--encoder-opt", "mode=text"),
    )
    assert one.exit_code == 0, one.output
    again = json.loads(path.read_text())
    assert again["settings"]["similarity"].keys() == {"similarity"}
    assert again["accuracies"]["2"]["similarity"] == content["accuracies"]["2"]["text"]


def test_a_bundle_says_at_how_many_shots_and_on_what_it_was_trained(evaluate, world):
    folder = bundle(world, shots=1)
    result = evaluate("--policy", f"other={folder}", "--shots", "2,1", "--record")
    assert result.exit_code == 0, result.output
    assert "WARNING: other was trained on 1 of these 8 queries" in result.stdout
    verdict = next(line for line in result.stdout.splitlines() if line.startswith("other, 1 shot"))
    recorded = load_bundle(folder).info.evaluation
    assert recorded["verdict"] == verdict
    assert verdict in (folder / "README.md").read_text()
    # Asked for other numbers of shots than it was trained at, the first is the primary.
    assert "other, 3 shots: " in evaluate("--policy", f"other={folder}", "--shots", "3,2").stdout


def test_a_folder_of_several_seeds_is_one_arm(evaluate, world):
    first, second = (bundle(world, shots=1), world.folder / "seeds" / "seed-1")
    second.parent.mkdir()
    first.rename(second.with_name("seed-0"))
    bundle(world, shots=1, trained_on=("e2", "e3")).rename(second)
    result = evaluate("--policy", f"both={second.parent}", "--shots", "1", "--record")
    assert result.exit_code == 0, result.output
    assert "WARNING: both was trained on 3 of these 8 queries" in result.stdout
    verdict = next(line for line in result.stdout.splitlines() if line.startswith("both, 1 shot"))
    assert "both is the mean of 2 training seeds: " in verdict
    for folder in (second.with_name("seed-0"), second):
        assert load_bundle(folder).info.evaluation["verdict"] == verdict
    # A seed whose training was interrupted is not left out in silence.
    second.with_name("seed-2").mkdir()
    one_line(evaluate("--policy", f"both={second.parent}"), "seed-2", "not a policy bundle")
    second.with_name("seed-2").rmdir()
    (second / "bundle.json").write_text(
        (second / "bundle.json").read_text().replace('"shots": 1', '"shots": 2')
    )
    one_line(evaluate("--policy", f"both={second.parent}"), "seed-1", "other shots", "seed-0")


def test_answer_match_says_why_it_takes_no_part(evaluate, glyphs):
    assert "answer-match takes no part: the pool, which arms learn from" in evaluate().stdout
    assert re.search(r"2  answer-match +10 +10 ", glyphs().stdout)
    assert "\nanswer-match, 2 shots: " in glyphs("--primary", "answer-match").stdout
    one_line(evaluate("--primary", "answer-match"), "arm answer-match: the pool")


def test_the_same_picture_under_another_image_id_is_a_leak(evaluate, world):
    for number, row in enumerate(world.rows):
        row |= {"image_id": number, "image": f"{max(number, 1)}.png"}
    world.write()
    said = evaluate().stdout
    assert "8 of 8 queries share their image with a pool example" in said
    assert "WARNING: 2 may be shown it, under another image_id" in said


def test_nothing_is_recorded_unasked_or_in_what_is_no_bundle(evaluate, world):
    folder = bundle(world)
    assert evaluate("--policy", f"other={folder}").exit_code == 0
    assert load_bundle(folder).info.evaluation is None
    one_line(evaluate("--record"), "the primary arm is not a policy bundle")


def test_failures_leave_queries_out_and_all_of_them_exit_1(evaluate, world, backends):
    world.rows[3]["answers"] = ["a"]  # too few for the metric
    world.write()
    result = evaluate("--output-path", str(world.folder / "a.json"), "--seeds", "1")
    assert result.exit_code == 0, result.output
    assert "WARNING, not to be trusted: " in result.stderr
    assert "1 of 8 queries left out at 2 shots, where a trial failed (first: " in result.stderr
    assert "; 7 queries" in result.stdout
    for number in range(8):
        (world.folder / f"{number}.png").write_bytes(b"no picture %d" % number)
    path = world.folder / "b.json"
    result = evaluate("--output-path", str(path))
    assert result.exit_code == 1
    assert "nothing measured: a trial of every query failed" in result.stdout
    assert json.loads(path.read_text())["comparisons"] == []


def test_interrupted_the_same_command_continues_it(evaluate, world, backends, monkeypatch):
    monkeypatch.setattr("pointer_rl.session.session.default_window", lambda device: 3)
    path = world.folder / "a.json"
    command = ("--output-path", str(path), "--no-store")
    assert evaluate(*command).exit_code == 0
    whole, trials = path.read_bytes(), len(backends[0].asked)
    path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(EvaluationJob, "run", second_interrupts())
        result = evaluate(*command)
    assert result.exit_code == 130
    assert f"interrupted: 3 queries are in {path.with_name('a.partial.jsonl')}" in result.stderr
    assert not path.exists()
    one_line(evaluate(*command, "--seed", "1"), "seed: 0, now 1")
    assert evaluate(*command).exit_code == 0
    assert path.read_bytes() == whole
    assert 0 < len(backends[-1].asked) < trials
    assert not path.with_name("a.partial.jsonl").exists()


def test_a_finished_evaluation_says_so_and_asks_nothing(evaluate, world, backends):
    path = world.folder / "a.json"
    command = ("--output-path", str(path), "--no-store")
    assert evaluate(*command).exit_code == 0
    result = evaluate(*command)
    assert result.exit_code == 0
    assert json.loads(path.read_text())["verdict"] in result.stdout
    assert "finished before; nothing to do" in result.stdout
    assert backends[1].asked == []
    one_line(evaluate(*command, "--seeds", "2"), "random_seeds: 3, now 2")
    plot = world.folder / "a.png"
    one_line(evaluate(*command, "--plot", str(plot)), "not drawn, since", "give --overwrite")
    assert not plot.exists()
    content = json.loads(path.read_text())
    for broken in ({}, {key: content[key] for key in content if key != "verdict"}):
        path.write_text(json.dumps(broken))
        one_line(evaluate(*command), "exists and is not an evaluation")


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (("--shots", "0"), ("0 is asked anyway",)),
        (("--shots", "two"), ("--shots 1,2,4 or --shots 1..4",)),
        (("--shots", "3..1"), ("no range",)),
        (("--shots", "8"), ("7", "8 shots")),
        (("--policy", "nothing"), ("NAME=BUNDLE",)),
        (("--policy", "RL=x"), ("RL", "given twice")),
        (("--policy", "oracle=policy"), ("'oracle'", "another arm's")),
        (("--policy", "vote RL=policy"), ("'vote RL'",)),
        (("--policy", "A=absent"), ("absent", "no such checkpoint")),
        (("--primary", "random"), ("'random'", "RL", "similarity")),
        (("--encoder", "clip"), ("q.safetensors", "have all embeddings", "not both")),
        (("--encoder-opt", "mode=text"), ("--encoder",)),
        (("--output-path", "a.jsonl"), ("a.jsonl", ".json")),
        (("--output-path", "policy"), ("policy", ".json")),
        (("--output-path", "data.jsonl/a.json"), ("a.json", "cannot be written")),
        (("--plot", "a.jpg"), ("a.jpg", ".png")),
        (("--plot", "0.png"), ("0.png", "exists", "--overwrite")),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_does_not_fit_is_one_line_before_anything_is_asked(
    evaluate, world, backends, monkeypatch, more, parts
):
    monkeypatch.chdir(world.folder)
    one_line(evaluate(*more), *parts)
    assert backends == []


def test_a_policy_for_other_embeddings_is_refused(evaluate, world, backends):
    save_selector(world.folder / "wide", selector(dim=8))
    one_line(evaluate("--policy", f"W={world.folder / 'wide'}"), "arm W", "takes 8")
    ids = [row["id"] for row in world.rows]
    for path in (world.query_emb, world.cand_emb):
        save_embeddings(path, torch.randn(8, 6), ids, encoder="this one")
    folder = bundle(world, encoder="that one")
    one_line(
        evaluate("--policy", f"B={folder}"),
        *("policy B", "a bundle for another encoder (that one)", "this one"),
    )
    assert backends == []
