"""`pointer-rl train` and `sft`: from files to a bundle, what they refuse, and learning online."""

from __future__ import annotations

import dataclasses
import itertools
import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import CopyBackend
from toy_selectors import installed
from training_worlds import class_groups

from pointer_rl.datasets.embeddings import load_embeddings, save_embeddings
from pointer_rl.selectors import SelectorPolicy
from pointer_rl.selectors.bundle import load_bundle, update_evaluation
from pointer_rl.session.cache import default_store
from pointer_rl.testing import example
from pointer_rl.train.state import load_state
from pointer_rl.types import Pool, QueryBatch

CPU = torch.device("cpu")


def candidate(pointer, reward, method="random"):
    return {
        **{"pointer": list(pointer), "gen_method": method, "vqa_pred_answer": "a"},
        **{"vqa_correct": int(reward > 0.4), "vqa_acc_score": reward},
    }


class Place:
    """RL data and beam data of 40 queries over a pool of 24, with embeddings of an encoder."""

    def __init__(self, folder, cli) -> None:
        self.folder, self._cli = folder, cli
        groups = class_groups(0, 40, dim=8)
        pool_ids = [f"p{row}" for row in range(24)]
        save_embeddings(folder / "q.safetensors", groups.queries, groups.ids, "encoder one")
        save_embeddings(folder / "c.safetensors", groups.pool, pool_ids, "encoder one")
        records, beams = {}, {}
        for index, id_ in enumerate(groups.ids):
            own = range(groups.offsets[index], groups.offsets[index + 1])
            judged = [(groups.pointers[each].tolist(), float(groups.rewards[each])) for each in own]
            records[id_] = {"pointer_candidates": [candidate(*each) for each in judged]}
            found = [{"pointer": rows, "score": score} for rows, score in judged]
            beams[id_] = {"beams": sorted(found, key=lambda beam: -beam["score"])}
        self.records = records
        self.write("rl.json", records)
        self.write("beams.json", beams)

    def write(self, name, content):
        (self.folder / name).write_text(json.dumps(content))

    def run(
        self,
        *args,
        command="train",
        data="rl.json",
        output="out",
        embeddings=True,
        sizes=("--layers", "1"),
    ):
        given = ("--query-emb", "q.safetensors", "--cand-emb", "c.safetensors") * embeddings
        sizes = () if "--sft-ckpt" in args else sizes
        epochs = {"train": ("--rce-epochs", "2", "--grpo-epochs", "1"), "sft": ("--epochs", "2")}
        return self._cli(
            *(command, "--beam-data", data, "--output-dir", output),
            *(*given, "--held-out", "0.3", *sizes, *epochs[command], *args),
        )

    def metrics(self, output="out"):
        lines = (self.folder / output / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def place(tmp_path, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path, cli)


def succeeds(result):
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def one_line(result, *parts):
    assert result.exit_code == 2, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("pointer-rl: error: ")]
    assert len(lines) == 1, result.output
    assert result.output.splitlines()[-1] == lines[0]
    for part in parts:
        assert part in lines[0]


def test_several_seeds_train_into_a_folder_each_which_a_later_command_starts_from(place):
    output = succeeds(place.run("--seeds", "2", "--seed", "3", output="both"))
    assert [line for line in output if line.startswith("seed ")] == ["seed 3:", "seed 4:"]
    succeeds(place.run("--seed", "4", output="four"))
    hashes = [
        load_bundle(place.folder / name).policy.hash
        for name in ("both/seed-3", "both/seed-4", "four")
    ]
    assert hashes[1] == hashes[2] != hashes[0]
    again = succeeds(place.run("--seeds", "2", "--seed", "3", output="both"))
    assert sum("nothing to do" in line for line in again) == 2
    start = ("--sft-ckpt", "both")
    succeeds(place.run("--seeds", "2", "--seed", "3", *start, output="next"))
    succeeds(place.run("--seed", "4", "--sft-ckpt", "both/seed-4", output="next-four"))
    assert (
        load_bundle(place.folder / "next" / "seed-4").policy.hash
        == load_bundle(place.folder / "next-four").policy.hash
    )


def test_a_selector_that_cannot_stop_says_what_shorter_pointers_do_not_teach_it(place):
    for record in place.records.values():
        record["pointer_candidates"].append(candidate((), 0.3))
    place.write("any.json", place.records)
    said = "this selector cannot stop: from shorter pointers it learns which rows to show"
    assert any(said in line for line in succeeds(place.run(data="any.json")))
    stops = place.run("--selector-opt", "stop=true", data="any.json", output="stops")
    assert not any(said in line for line in succeeds(stops))
    assert not any(said in line for line in succeeds(place.run(output="all")))


def test_seeds_and_a_single_training_do_not_share_a_folder(place):
    succeeds(place.run("--seeds", "2", output="both"))
    one_line(place.run(output="both"), "both/seed-0", "give --seeds")
    one_line(place.run("--seeds", "2", "--seed", "1", output="both"), "both/seed-0", "another")
    one_line(place.run("--sft-ckpt", "both", output="next"), "both", "seed-0")
    three = ("--seeds", "3", "--sft-ckpt", "both")
    one_line(place.run(*three, output="next"), "both/seed-2", "--sft-ckpt", "each seed")
    last = ("--seeds", "2", "--seed", str(2**31 - 1))
    one_line(place.run(*last, output="next"), "--seeds 2 from ", "above 2147483647")
    # What was refused before it began leaves nothing that is in the way.
    one_line(place.run("--seeds", "2", data="gone.json", output="next"), "gone.json")
    succeeds(place.run(output="next"))
    succeeds(place.run(output="one"))
    one_line(place.run("--seeds", "2", output="one"), "one", "another training's")


# --- on data ---------------------------------------------------------------------------------


def test_a_bundle_a_line_an_epoch_and_a_verdict(place):
    *epochs, verdict, share, wrote = succeeds(place.run())
    assert [line.split()[:2] for line in epochs] == [
        *(["start", "0"], ["rce", "1"], ["rce", "2"], ["grpo", "1"]),
    ]
    assert verdict.startswith(("held-out expected reward ", "it learned nothing"))
    assert re.fullmatch(r"\d+% of the groups have zero variance and taught nothing", share)
    assert wrote == "wrote out"
    lines = place.metrics()
    assert [line["stage"] for line in lines] == ["start", "rce", "rce", "grpo"]
    for name in ("rce", "contrast", "entropy", "held_out_reward", "zero_variance_groups"):
        assert name in lines[1]
    for name in ("ppo", "kl", "ratio", "clipped", "entropy", "held_out_reward"):
        assert name in lines[3]
    bundle = load_bundle(place.folder / "out")
    assert bundle.info.shots == 2
    assert bundle.info.encoder.fingerprint == "encoder one"
    assert bundle.info.data.name == "rl.json"
    kept = max(lines, key=lambda line: line["held_out_reward"])
    metrics = bundle.info.training["metrics"]
    assert metrics["held_out_reward"] == pytest.approx(kept["held_out_reward"])
    assert bundle.info.training["options"]["rce_epochs"] == 2


def test_the_guides_spelling(place, cli):
    """Its command: underscores, and one matrix for queries and pool, by row."""
    vectors = torch.cat(
        [
            load_embeddings(place.folder / "c.safetensors").vectors,
            load_embeddings(place.folder / "q.safetensors").vectors,
        ]
    )
    torch.save(vectors, place.folder / "all.pt")
    records = {str(24 + index): record for index, record in enumerate(place.records.values())}
    place.write("guide.json", records)
    result = cli(
        *("train", "--beam_data", "guide.json", "--img_emb", "all.pt", "--output_dir", "out"),
        *("--rce_epochs", "2", "--grpo_epochs", "1", "--batch_size", "16", "--rce_lr", "1e-3"),
        *("--grpo_lr", "1e-4", "--kl_beta", "0.1", "--device", "cpu", "--held_out", "0.3"),
    )
    succeeds(result)
    options = load_bundle(place.folder / "out").info.training["options"]
    names = ("rce_epochs", "grpo_epochs", "batch_size", "rce_lr", "grpo_lr", "kl_beta")
    assert [options[name] for name in names] == [2, 1, 16, 1e-3, 1e-4, 0.1]


def test_another_selector_is_trained_bundled_and_trained_further(place):
    with installed():
        succeeds(place.run("--selector", "toy", "--selector-opt", "scale=0.5", sizes=()))
        bundle = load_bundle(place.folder / "out")
        assert (bundle.policy.name, bundle.policy.config.scale) == ("toy", 0.5)
        document = json.loads((place.folder / "out" / "bundle.json").read_text())
        assert document["policy"]["selector"] == "toy"
        succeeds(place.run("--sft-ckpt", "out", output="further"))
        assert load_bundle(place.folder / "further").policy.name == "toy"
        one_line(place.run("--selector", "toy", output="no"), "toy has no option 'num_layers'")
    one_line(place.run("--selector", "toy", output="no"), "unknown selector 'toy'")
    one_line(place.run("--sft-ckpt", "out", output="no"), "out/config.json: unknown selector 'toy'")


def test_sizes_are_options_of_the_selector(place):
    given = ("--selector-opt", "num_layers=1", "--selector-opt", "history=gated")
    succeeds(place.run(*given, sizes=()))
    succeeds(place.run("--layers", "1", "--history", "gated", sizes=(), output="short"))
    one, other = (load_bundle(place.folder / name).policy for name in ("out", "short"))
    assert one.hash == other.hash
    assert (one.config.num_layers, one.config.history) == (1, "gated")


def test_zero_is_a_value(place):
    succeeds(place.run("--grpo-epochs", "0", "--contrast", "0", "--kl-beta", "0"))
    assert {line["stage"] for line in place.metrics()} == {"start", "rce"}
    options = load_bundle(place.folder / "out").info.training["options"]
    assert (options["contrast"], options["kl_beta"], options["grpo_epochs"]) == (0, 0, 0)
    one_line(place.run("--rce-epochs", "0", "--grpo-epochs", "0", output="none"), "no epochs")


def test_recipes_are_defaults_that_options_overrule(place):
    succeeds(place.run("--recipe", "guide", "--kl-beta", "0.7"))
    options = load_bundle(place.folder / "out").info.training["options"]
    names = ("old_policy", "kl_beta", "grpo_lr")
    assert [options[name] for name in names] == ["start", 0.7, 5e-6]


def test_the_same_command_continues_a_run_and_anything_else_is_refused(place):
    succeeds(place.run(output="whole"))
    succeeds(place.run())
    assert "finished before; nothing to do" in succeeds(place.run())[-1]
    one_line(place.run("--seed", "3"), "holds a run with seed 0, now 3")
    one_line(place.run("--rce-epochs", "5"), "holds a run with rce_epochs")
    place.write("rl2.json", dict(list(place.records.items())[:30]))
    one_line(place.run(data="rl2.json"), "holds a run with data")
    (place.folder / "out" / "bundle.json").unlink()
    assert succeeds(place.run("--resume"))[-1].startswith("wrote")
    succeeds(place.run("--overwrite", output="whole"))
    for name in ("model.safetensors", "bundle.json", "metrics.jsonl", "checkpoint.safetensors"):
        files = [place.folder / folder / name for folder in ("whole", "out")]
        assert files[0].read_bytes() == files[1].read_bytes(), name


def test_resuming_a_finished_run_keeps_what_measured_it(place):
    succeeds(place.run())
    out = place.folder / "out"
    update_evaluation(out, {"verdict": "better than random"})
    kept = {path.name: path.read_bytes() for path in out.iterdir()}
    succeeds(place.run("--resume"))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == kept
    assert load_bundle(out).info.evaluation == {"verdict": "better than random"}
    # A damaged bundle is no reason to keep it.
    (out / "model.safetensors").write_bytes(kept["model.safetensors"][:-4] + b"oops")
    succeeds(place.run("--resume"))
    assert load_bundle(out).info.evaluation is None


def test_what_a_killed_run_was_writing_is_removed(place):
    succeeds(place.run())
    out = place.folder / "out"
    (out / "rounds").mkdir()
    dead = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True).stdout.strip()
    names = [
        str(Path(name).with_name(f".{Path(name).name}.{dead}@{platform.node().split('.')[0]}.tmp"))
        for name in ("checkpoint.safetensors", "bundle.json", "rounds/round-02.json")
    ]
    mine = ["notes.tmp1", "model.safetensors.old", "rounds/round-01.json", "checkpoint.tmp"]
    for name in [*names, *mine]:
        (out / name).write_text("")
    succeeds(place.run())
    assert [name for name in names if (out / name).exists()] == []
    assert all((out / name).exists() for name in mine)


def test_resuming_with_other_query_embeddings_is_refused(place):
    succeeds(place.run())
    embeddings = load_embeddings(place.folder / "q.safetensors")
    path = place.folder / "q.safetensors"
    save_embeddings(path, embeddings.vectors.flip(1), embeddings.ids, embeddings.encoder)
    one_line(place.run(), "holds a run with queries")


def test_starting_from_a_policy(place):
    succeeds(place.run(output="first"))
    succeeds(place.run("--sft-ckpt", "first", output="second"))
    first, second = (place.metrics(name) for name in ("first", "second"))
    best = max(line["held_out_reward"] for line in first)
    assert second[0]["held_out_reward"] == pytest.approx(best)


def test_a_bundle_for_another_encoder_is_refused(place):
    succeeds(place.run(output="first"))
    for name in "qc":
        embeddings = load_embeddings(place.folder / f"{name}.safetensors")
        path = place.folder / f"{name}.safetensors"
        save_embeddings(path, embeddings.vectors, embeddings.ids, "encoder two")
    one_line(
        place.run("--sft-ckpt", "first", output="second"),
        *("first: a bundle for another encoder (encoder one)", "encoder two"),
    )
    for name in "qc":
        embeddings = load_embeddings(place.folder / f"{name}.safetensors")
        path = place.folder / f"{name}.safetensors"
        save_embeddings(path, embeddings.vectors[:, :6], embeddings.ids)
    one_line(place.run("--sft-ckpt", "first", output="second"), "of 8 dimensions and these have 6")
    assert not (place.folder / "second").exists()


def changed(place, change):
    records = {
        id_: {
            **record,
            "pointer_candidates": [change(dict(each)) for each in record["pointer_candidates"]],
        }
        for id_, record in place.records.items()
    }
    place.write("changed.json", records)
    return "changed.json"


def test_what_is_left_out_is_said(place):
    def fail_one(candidate):
        if candidate["pointer"][0] == 3:
            return {
                **{key: candidate[key] for key in ("pointer", "gen_method")},
                **{"eval_failed": True, "eval_error": "too long"},
            }
        return candidate

    some = [each for record in place.records.values() for each in record["pointer_candidates"]]
    number = sum(each["pointer"][0] == 3 for each in some)
    output = succeeds(place.run(data=changed(place, fail_one)))
    assert 0 < number < len(some)
    assert output[0] == (
        f"changed.json: {number} candidates whose trial failed and 0 without a reward are left out"
    )


def test_data_that_cannot_be_learned_from(place):
    same = changed(place, lambda each: {**each, "vqa_correct": 1, "vqa_acc_score": 1.0})
    one_line(place.run(data=same), "changed.json: every group has zero variance")
    unjudged = changed(place, lambda each: {"pointer": each["pointer"], "gen_method": "random"})
    one_line(place.run(data=unjudged), "changed.json: no candidate with a reward in it")
    one_line(place.run("--shots", "3"), "have 2 demonstrations and --shots 3")
    one_line(place.run(data="beams.json"), "beam data has no rewards", "pointer-rl sft")
    one_line(place.run("--grpo-on", "sampled"), "sampled candidates, and none of these was")
    one_line(place.run(data="none.json"), "none.json")
    (place.folder / "broken.json").write_text("{")
    one_line(place.run(data="broken.json"), "broken.json")
    assert not (place.folder / "out").exists()


def test_embeddings_that_are_not_the_datas(place):
    one_line(place.run(embeddings=False), "give --query-emb and --cand-emb", "--img-emb")
    one_line(place.run("--img-emb", "c.safetensors"), "give either --img-emb, or --query-emb")
    embeddings = load_embeddings(place.folder / "q.safetensors")
    path = place.folder / "q.safetensors"
    save_embeddings(path, embeddings.vectors, [f"other {i}" for i in range(40)], "encoder one")
    one_line(place.run(), "no row for 40 of 40 queries", "those of the dataset")
    save_embeddings(path, embeddings.vectors, embeddings.ids, "encoder two")
    one_line(place.run(), "come from different encoders")
    save_embeddings(path, embeddings.vectors, embeddings.ids, "encoder one")
    pool = load_embeddings(place.folder / "c.safetensors")
    save_embeddings(place.folder / "c.safetensors", pool.vectors[:9], pool.ids[:9], "encoder one")
    one_line(place.run(), "the candidate embeddings are of another pool")
    assert not (place.folder / "out").exists()


def test_a_loss_that_is_no_number(place):
    one_line(place.run("--rce-lr", "1e30"), "rce epoch 1: ", " is nan; stopped")
    assert not (place.folder / "out" / "bundle.json").exists()
    succeeds(place.run())
    # From a good policy GRPO breaks: the last good epoch, of RCE, is what the checkpoint has.
    one_line(
        place.run("--overwrite", "--grpo-lr", "1e30"),
        *("grpo epoch 1: ", "the last good epoch is in out/checkpoint.safetensors"),
    )
    assert [line["stage"] for line in place.metrics()] == ["start", "rce", "rce"]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--rce-lr", "0"), "rce_lr is 0.0: it must be above 0"),
        (("--held-out", "1"), "held_out is 1.0"),
        (("--clip", "-1"), "clip is -1.0"),
        (("--kl-beta", "nan"), "kl_beta is nan"),
        (("--demonstration-price", "-0.1"), "demonstration_price is -0.1"),
        (("--demonstration-price", "0.1"), "stop=true"),
        (("--heads", "3"), "8 is not a multiple of 3 heads: give --heads or --hidden-dim"),
        (("--selector-opt", "d_model=3"), "d_model: it is the size of the embeddings"),
        (("--selector-opt", "num_layers=2"), "--selector-opt num_layers: given twice"),
        (("--selector-opt", "depth=2"), "selector pointer has no option 'depth'"),
        (("--reward-mode", "nothing"), "nothing"),
        (("--reward-opt", "nothing=1"), "nothing"),
        (("--sft-ckpt", "nowhere"), "nowhere"),
        (("--max-calls", "9"), "--max-calls is for --online"),
        (("--rounds", "2"), "--rounds is for --online"),
        (("--generator", "greedy"), "--generator is for --online"),
        (("--score-answers",), "--score-answers is for --online"),
        (("--online",), "--online needs --max-calls"),
        (("--online", "--max-calls", "40", "--own-pools"), "--own-pools"),
        (("--online", "--max-calls", "4"), "4 calls are too few for 4 rounds"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)
def test_options_that_will_not_do(place, options, what):
    one_line(place.run(*options), what)
    assert not (place.folder / "out").exists()


def test_a_folder_that_cannot_be_written(place):
    (place.folder / "out").write_text("a file")
    one_line(place.run(), "out/checkpoint.safetensors: cannot be written (out is not a folder)")


# --- sft -------------------------------------------------------------------------------------


def test_sft_on_beams_by_likelihood(place, cli):
    *epochs, verdict, _ = succeeds(place.run(command="sft", data="beams.json"))
    assert [line.split()[0] for line in epochs] == ["start", "sft", "sft"], "no GRPO"
    assert all("cross-entropy" in line and "rce " not in line for line in epochs)
    # Two epochs only: the likelihood rises, and is still below that of a random choice.
    assert verdict.startswith("no better than a random choice: held-out cross-entropy ")
    lines = place.metrics()
    assert lines[-1]["held_out_cross_entropy"] < lines[0]["held_out_cross_entropy"]
    bundle = load_bundle(place.folder / "out")
    options = bundle.info.training["options"]
    assert options["epochs"] == 2
    card = (place.folder / "out" / "README.md").read_text()
    for word in ("grpo", "kl", "reward", "contrast", "rce", "clip"):
        assert not any(word in name.split("_") for name in options)
        assert word not in " ".join(card.lower().replace("_", " ").split()).split()
    metrics = bundle.info.training["metrics"]
    best = min(line["held_out_cross_entropy"] for line in lines)
    assert metrics["held_out_cross_entropy"] == pytest.approx(best)
    assert not any("reward" in name for name in [*metrics, *lines[-1]])
    chosen = succeeds(cli("select", "out", "--query-emb", "q.safetensors", "--shots", "2"))
    assert len(chosen) == 40
    succeeds(place.run("--sft-ckpt", "out", output="rl"))


def test_sft_on_beams_of_any_length(place):
    beams = {
        id_: {"beams": [{"pointer": [index % 24] * (index % 2), "score": 1.0}]}
        for index, id_ in enumerate(place.records)
    }
    place.write("beams.json", {"_meta": {"max_shots": 2}, **beams})
    with installed():
        succeeds(place.run("--selector", "stopping", command="sft", data="beams.json"))
        assert load_bundle(place.folder / "out").info.shots == 2
    before, *_, after = [line["held_out_cross_entropy"] for line in place.metrics()]
    assert after < before


def test_sft_on_rl_data_is_chosen_by_reward_and_zero_variance_groups_teach(place):
    start, *_, verdict, share, _ = succeeds(place.run(command="sft"))
    assert "held-out reward" in start
    assert "held-out expected reward" in verdict
    assert share.startswith("0% of the groups have zero variance")
    same = changed(place, lambda each: {**each, "vqa_correct": 1, "vqa_acc_score": 1.0})
    succeeds(place.run(command="sft", data=same, output="same"))
    one_line(place.run("--temperature", "0", command="sft", output="no"), "must be above 0")


# --- trackers --------------------------------------------------------------------------------


def test_without_a_tracker_it_says_what_to_install(place, monkeypatch):
    succeeds(place.run())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "trackio", None)
    for name in ("tensorboard", "trackio"):
        one_line(
            place.run("--log-to", name, "--overwrite"),
            f"--log-to {name} needs the package {name}: pip install 'pointer-rl[{name}]'",
        )
    assert (place.folder / "out" / "bundle.json").exists(), "nothing was deleted"


# --- online ----------------------------------------------------------------------------------


class Online:
    """The jsonl world, of more questions: the backend copies the one answer that it is shown."""

    def __init__(self, world, backends, cli) -> None:
        self.world, self.backends, self._cli = world, backends, cli
        world.rows = [
            {
                **{"id": f"e{i}", "image": f"{i % 8}.png", "question": f"q{i}?"},
                **{"answers": ["ab"[i % 2]] * 10, "image_id": str(i)},
            }
            for i in range(32)
        ]
        world.write()
        vectors = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
        vectors[:, 0] += torch.tensor([0.7, -0.7] * 16)
        for path in (world.query_emb, world.cand_emb):
            save_embeddings(path, vectors, [row["id"] for row in world.rows])

    def run(self, *args, output="policy", calls="96", new=("--heads", "2", "--layers", "1")):
        return self._cli(
            *("train", "--online", "--max-calls", calls, "--rounds", "2", "--shots", "1"),
            *("--backend", "copy", "--dataset", "jsonl"),
            *("--dataset-opt", f"path={self.world.data}", "--output-dir", self.path(output)),
            *("--query-emb", str(self.world.query_emb), "--cand-emb", str(self.world.cand_emb)),
            *("--held-out", "0.3", *new, *args),
        )

    def path(self, name):
        return str(self.world.folder / name)

    def asked(self):
        """Trials of the backends made since this was last asked."""
        asked = sum(len(each.asked) for each in self.backends)
        self.backends.clear()
        return asked

    def written(self, output="policy"):
        folder = self.world.folder / output
        names = ("model.safetensors", "metrics.jsonl", "checkpoint.safetensors", "bundle.json")
        paths = [folder / name for name in names] + sorted((folder / "rounds").iterdir())
        return {path.name: path.read_bytes() for path in paths}


@pytest.fixture
def online(world, backends, cli):
    return Online(world, backends, cli)


def test_online_learns_within_its_calls_and_never_pays_twice(online, cli):
    output = succeeds(online.run())
    assert 0 < online.asked() <= 96
    assert "queries held out, too few to say whether it learned" in output[-2]
    assert default_store().exists()
    rounds = sorted((online.world.folder / "policy" / "rounds").iterdir())
    assert [path.name for path in rounds] == ["round-01.json", "round-02.json"]
    asked = 0
    ids = []
    for path in rounds:
        succeeds(cli("validate", str(path)))
        content = json.loads(path.read_text())
        assert content.pop("_meta")["generators"][0]["name"] == "probe"
        ids += content
        asked += sum(len(record["pointer_candidates"]) for record in content.values())
    assert asked <= 96
    assert len(set(ids)) == len(ids) == 24, "queries not asked yet come first"
    lines = [json.loads(line) for line in online.written()["metrics.jsonl"].splitlines()]
    assert [line["round"] for line in lines if line["stage"] == "start"] == [1, 2]
    info = load_bundle(online.world.folder / "policy").info
    assert info.data is None
    assert info.training_calls == asked
    assert len(info.training["calls_by_file"]) == 2
    succeeds(online.run(output="again"))
    assert online.asked() == 0, "the store answers"
    assert online.written("again") == online.written()


def interrupt(patch, until):
    """As by Ctrl-C, once, when the backend has given so many results."""
    run, given = CopyBackend.run, itertools.count(1)

    def interrupted(self, requests):
        for result in run(self, requests):
            if next(given) == until:
                raise KeyboardInterrupt
            yield result

    patch.setattr(CopyBackend, "run", interrupted)


@pytest.mark.parametrize("until", [3, 60])
def test_online_resumes_after_an_interruption(online, monkeypatch, until):
    """In the first round, before anything is learned; and in the second."""
    succeeds(online.run(output="whole"))
    default_store().unlink()
    online.asked()
    interrupt(monkeypatch, until)
    result = online.run()
    assert result.exit_code == 130
    assert "interrupted: the same command continues from" in result.output
    one_line(online.run("--pointers", "3"), "holds a run with online")
    one_line(online.run("--prompt-opt", "instructions="), "holds a run with prompt")
    succeeds(online.run())
    whole, resumed = online.written("whole"), online.written()
    assert whole.keys() == resumed.keys(), "nothing is left lying about"
    for name, content in whole.items():
        assert resumed[name] == content, name


SEARCH = ("--generator", "first-success", "--generator-opt", "first-success.budget=8")


def test_online_notices_a_round_that_was_changed(online, cli):
    succeeds(online.run())
    path = online.world.folder / "policy" / "rounds" / "round-01.json"
    path.write_text(path.read_text().replace('"vqa_correct": 0', '"vqa_correct": 1', 1))
    one_line(online.run(), "round-01.json: changed or damaged since it was written")


def test_online_by_a_search_spends_its_calls_on_more_queries(online, cli):
    """A round has 48 calls: six queries that could take eight each, then as many as are left."""
    succeeds(online.run(*SEARCH))
    assert 0 < online.asked() <= 96
    ids = []
    for number, path in enumerate(sorted((online.world.folder / "policy" / "rounds").iterdir())):
        succeeds(cli("validate", str(path)))
        content = json.loads(path.read_text())
        options = content.pop("_meta")["generators"][0]["options"]
        assert options["by"] == ("policy" if number else "similarity")
        sizes = [len(record["pointer_candidates"]) for record in content.values()]
        assert len(sizes) > 48 // 8
        assert max(sizes) <= 8
        assert 48 - 8 < sum(sizes) <= 48, "what is left would not suffice for another query"
        ids += content
    assert len(set(ids)) == len(ids), "queries not asked yet come first"
    succeeds(online.run(*SEARCH, output="again"))
    assert online.asked() == 0, "the cache answers"
    assert online.written("again") == online.written()


@pytest.mark.parametrize("until", [20, 60])
def test_online_by_a_search_resumes_to_the_same_bytes(online, monkeypatch, until):
    """In a later wave of the first round, whose size depends on what came before; in the second."""
    succeeds(online.run(*SEARCH, output="whole"))
    default_store().unlink()
    interrupt(monkeypatch, until)
    assert online.run(*SEARCH).exit_code == 130
    one_line(online.run(*SEARCH[:2]), "holds a run with online")
    succeeds(online.run(*SEARCH))
    assert online.written() == online.written("whole")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--generator", "random"), "--generator random: it proposes once"),
        (("--generator", "first-success", "--pointers", "4"), "--pointers is for probes"),
        (("--generator", "first-success", "--rounds", "5"), "too few for 5 rounds of 20 pointers"),
        (
            ("--generator-opt", "first-success.budget=4"),
            "with the NAME of one that was given (none was)",
        ),
    ],
)
def test_online_refuses_what_is_no_search(online, options, says):
    one_line(online.run(*options), says)
    assert online.asked() == 0


def test_online_by_a_policy_that_can_stop(online, cli):
    """It asks pointers of any length, and takes a price for each demonstration."""
    options = ("--selector", "stopping", "--shots", "2", "--score-answers")
    with installed():
        succeeds(online.run(*SEARCH, *options, "--demonstration-price", "0.3"))
        bundle = load_bundle(online.world.folder / "policy")
        assert bundle.policy.can_stop
        assert bundle.info.training["options"]["demonstration_price"] == 0.3
        for path in sorted((online.world.folder / "policy" / "rounds").iterdir()):
            succeeds(cli("validate", str(path)))
            content = json.loads(path.read_text())
            meta = content.pop("_meta")
            assert (meta.get("shots"), meta["max_shots"], meta["score_answers"]) == (None, 2, True)
            for record in content.values():
                candidates = record["pointer_candidates"]
                assert [len(each["pointer"]) for each in candidates[:2]] == [0, 1]
                assert all("vqa_gt_prob" in each for each in candidates)
        one_line(online.run(*SEARCH, *options), "holds a run with demonstration_price")


def test_online_after_logged_data(online, cli):
    generated = online.world.generate("--num-random", "6", "--shots", "1")
    succeeds(generated)
    data = str(online.world.output)
    result = online.run("--beam-data", data, "--rce-epochs", "2", "--grpo-epochs", "0")
    lines = [line for line in succeeds(result) if line.startswith(("start", "rce", "round"))]
    assert lines[0].startswith("start")
    assert [
        line["round"] for line in map(json.loads, online.written()["metrics.jsonl"].splitlines())
    ][:4] == [0, 0, 0, 1]
    assert load_bundle(online.world.folder / "policy").info.data.name == "rl.json"


def test_a_policy_that_has_learned_from_the_data_begins_with_the_first_round(online, monkeypatch):
    succeeds(online.world.generate("--num-random", "6", "--shots", "1"))
    few = ("--rce-epochs", "2", "--grpo-epochs", "1")
    data = ("--beam-data", str(online.world.output))
    embeddings = ("--query-emb", str(online.world.query_emb))
    embeddings += ("--cand-emb", str(online.world.cand_emb))
    succeeds(
        online._cli(
            *("train", *data, *embeddings, "--heads", "2", "--layers", "1", "--held-out", "0.3"),
            *("--output-dir", online.path("offline"), *few),
        )
    )
    on = (*data, "--sft-ckpt", online.path("offline"), *few)
    whole = online.run(*on, output="whole", new=())
    succeeds(whole)
    assert "the policy has learned from rl.json already" in whole.stderr.splitlines()
    lines = [json.loads(each) for each in online.written("whole")["metrics.jsonl"].splitlines()]
    assert [line["round"] for line in lines] == [1] * 4 + [2] * 4
    calls = load_bundle(online.world.folder / "whole").info.training["calls_by_file"]
    assert len(calls) == 3, "the data and two rounds"
    default_store().unlink()
    interrupt(monkeypatch, 60)
    assert online.run(*on, new=()).exit_code == 130
    succeeds(online.run(*on, new=()))
    assert online.written() == online.written("whole")


def test_online_takes_its_shots_from_the_data(online):
    succeeds(online.world.generate("--num-random", "6", "--shots", "3"))
    result = online._cli(
        *("train", "--online", "--max-calls", "64", "--rounds", "1", "--backend", "copy"),
        *("--dataset", "jsonl", "--dataset-opt", f"path={online.world.data}"),
        *("--query-emb", str(online.world.query_emb), "--cand-emb", str(online.world.cand_emb)),
        *("--heads", "2", "--beam-data", str(online.world.output), "--held-out", "0.3"),
        *("--output-dir", online.path("policy"), "--rce-epochs", "1", "--grpo-epochs", "0"),
    )
    # The backend copies the last demonstration alone: probes of the first tell nothing more.
    succeeds(result)
    assert load_bundle(online.world.folder / "policy").info.shots == 3


def test_online_when_every_trial_fails(online):
    for number in range(8):
        (online.world.folder / f"{number}.png").write_bytes(b"no picture")
    one_line(online.run(), "round 1: all 48 trials failed, the first with: ", "the same command")
    assert not list((online.world.folder / "policy" / "rounds").glob("*.json"))


def answers_nonsense(monkeypatch, backend, trials):
    """Of all that is asked from now on, the first so many trials are answered with nonsense."""
    run = backend.run
    asked = 0

    def spoilt(self, requests):
        nonlocal asked
        for index, result in run(self, requests):
            asked += 1
            yield index, dataclasses.replace(result, text="?") if asked <= trials else result

    monkeypatch.setattr(backend, "run", spoilt)


def test_a_zero_variance_first_round_is_told_and_the_next_one_is_asked(online, cli, monkeypatch):
    answers_nonsense(monkeypatch, CopyBackend, 48)
    first = online.run()
    succeeds(first)
    output = first.stdout.splitlines()
    asked = online.asked()
    assert 48 < asked <= 96
    told = "round 1: every group has zero variance and taught nothing"
    assert told in first.stderr.splitlines()
    lines = [json.loads(line) for line in online.written()["metrics.jsonl"].splitlines()]
    assert {line["round"] for line in lines} == {2}
    rounds = sorted((online.world.folder / "policy" / "rounds").iterdir())
    second = json.loads(rounds[1].read_text())["_meta"]
    assert second["generators"][0]["options"]["by"] == "similarity", "the policy knows nothing yet"
    (online.world.folder / "policy" / "bundle.json").unlink()
    again = online.run()
    succeeds(again)
    assert again.stdout.splitlines()[0] == output[-2]
    assert online.asked() == 0
    assert told in again.stderr.splitlines()


def test_online_when_every_round_is_tied(online, monkeypatch):
    answers_nonsense(monkeypatch, CopyBackend, 1000)
    for _ in range(2):
        one_line(
            online.run(),
            *("nothing was learned in 2 rounds: ", "(0 of 24 have such)", "policy/rounds"),
        )
    assert online.asked() <= 96, "the second time nothing is asked"
    assert not (online.world.folder / "policy" / "bundle.json").exists()


def test_online_learning_raises_the_reward(online):
    """Four answers; queries show theirs in other directions than the pool's rows do."""
    rng = np.random.default_rng(0)
    as_query, as_row = rng.standard_normal((2, 4, 8))
    classes = np.arange(96) % 4

    def shown(directions, classes, spread):
        noise = spread * rng.standard_normal((len(classes), 8))
        return torch.from_numpy(directions[classes] + noise).float()

    online.world.rows = [
        {
            **{"id": f"e{i}", "image": f"{i % 8}.png", "question": f"q{i}?"},
            **{"answers": ["abcd"[i % 4]] * 10, "image_id": str(i)},
        }
        for i in range(96)
    ]
    online.world.write()
    ids = [row["id"] for row in online.world.rows]
    save_embeddings(online.world.query_emb, shown(as_query, classes, 0.3), ids)
    save_embeddings(online.world.cand_emb, shown(as_row, classes, 1.0), ids)
    learning = ("--rce-epochs", "10", "--rce-lr", "5e-3", "--batch-size", "8")
    output = succeeds(online.run("--rounds", "4", "--pointers", "8", *learning, calls="768"))
    assert online.asked() <= 768
    bundle = load_bundle(online.world.folder / "policy")
    fresh = np.arange(400) % 4
    examples = [example(row) for row in range(400)]
    queries = QueryBatch(examples, shown(as_query, fresh, 0.3), torch.ones(400, 96).bool(), 1)
    pool = Pool(examples[:96], bundle.pool_embeddings)
    start = SelectorPolicy(
        load_state(online.world.folder / "policy" / "checkpoint.safetensors", CPU).policies["start"]
    )
    right = {
        name: (classes[policy.beam(queries, pool, 1).rows[:, 0, 0]] == fresh).mean()
        for name, policy in {"start": start, "learned": bundle.policy}.items()
    }
    assert right["start"] < 0.5
    assert right["learned"] > 0.85
    first, last = (
        float(each) for each in output[-4].split("reward ")[1].split(" (")[0].split(" → ")
    )
    assert last > first + 0.5, "the run's verdict says so"


def test_options_of_asking_are_for_online_runs(place):
    for option in ("--backend", "--prompt-opt", "--limit", "--store", "--rounds", "--executor"):
        one_line(place.run(option, "1"), f"{option} is for --online")
    assert not (place.folder / "out").exists()


def test_files_of_others_are_not_overwritten(place):
    folder = place.folder / "notes"
    folder.mkdir()
    (folder / "README.md").write_text("mine")
    one_line(place.run(output="notes"), "README.md: exists, without the checkpoint.safetensors")
    assert (folder / "README.md").read_text() == "mine"
    succeeds(place.run("--overwrite", output="notes"))


def test_a_bundle_can_be_read_by_whoever_may_read_the_other_files(place):
    succeeds(place.run(output="shared"))
    modes = {path.stat().st_mode & 0o777 for path in (place.folder / "shared").glob("*.*")}
    assert len(modes) == 1
