"""Packages of third parties, installed into a fresh environment and used through the CLI.

They are written by hand (tests/third_party_package), by `plugins new`, and printed by the how-to.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import PIL.Image
import pytest
import torch
from environments import ROOT, Environment

from pointer_rl.datasets.embeddings import save_embeddings
from pointer_rl.registry import KINDS
from pointer_rl.scaffold import write_package

PACKAGES = ROOT / "tests" / "third_party_package"
HOW_TO = ROOT / "docs" / "how-to" / "your-backend.md"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A folder with a package of each kind from `plugins new`, and the how-to's."""
    folder = tmp_path_factory.mktemp("written")
    for kind in KINDS:
        write_package(f"my-{kind}", kind, folder / f"pointer-rl-my-{kind}")
    write_package("tint", "backend", folder / "pointer-rl-tint")
    module, test = re.findall(r"```python\n(.*?)```", HOW_TO.read_text("utf-8"), re.DOTALL)
    (folder / "pointer-rl-tint" / "pointer_rl_tint.py").write_text(module, "utf-8")
    (folder / "pointer-rl-tint" / "tests" / "test_tint.py").write_text(test, "utf-8")
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory, written) -> Environment:
    """An environment with all of them, acme and the broken package installed."""
    made = Environment(tmp_path_factory.mktemp("environment"))
    made.install(PACKAGES / "acme", PACKAGES / "broken", *sorted(written.iterdir()))
    return made


def write_images(folder: Path, *names: str) -> Path:
    """A folder for the dataset `acme`: eight images, files of other bytes, and embeddings."""
    for number in range(8):
        colour = ("red", "blue")[number % 2]
        PIL.Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{colour}-{number}.png")
    for name in names:
        (folder / name).write_bytes(b"not an image")
    ids = sorted(path.stem for path in folder.glob("*.png"))
    vectors = torch.randn(len(ids), 6, generator=torch.Generator().manual_seed(0))
    save_embeddings(folder / "emb.safetensors", vectors, ids)
    return folder


@pytest.fixture(scope="module")
def acme(tmp_path_factory) -> Path:
    """Images, one of them unreadable."""
    return write_images(tmp_path_factory.mktemp("acme"), "green-9.png")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Images that can be read."""
    return write_images(tmp_path_factory.mktemp("images"))


def test_the_how_tos_backend_has_30_lines():
    module = re.search(r"```python\n(.*?)```", HOW_TO.read_text("utf-8"), re.DOTALL)[1]
    assert len([line for line in module.splitlines() if line.strip()]) <= 30


def test_written_packages_pass_their_tests(environment, written):
    packages = sorted(written.iterdir())
    assert len(packages) == len(KINDS) + 1
    output = environment.pytest("-W", "error", *packages)
    # Each inherits the tests of its kind, and adds one.
    assert int(re.search(r"(\d+) passed", output)[1]) >= 5 * len(packages)


def test_the_how_tos_commands_run(environment):
    *_, commands = re.findall(r"```bash\n(.*?)```", HOW_TO.read_text("utf-8"), re.DOTALL)
    program, *checked = commands.splitlines()
    assert program == "pytest pointer-rl-tint"  # as above
    for command in checked:
        program, *args = shlex.split(command)
        assert program == "pointer-rl"
        output = environment.run(*args)
        assert "broken" not in output
    data = json.loads((environment.folder / "rl.json").read_text("utf-8"))
    assert data.pop("_meta")["backend"]["options"]["names"] == ["rot", "grün", "blau"]
    answers = [each for record in data.values() for each in record["pointer_candidates"]]
    assert {each["vqa_pred_answer"] for each in answers} <= {"rot", "grün", "blau"}


def test_a_stranger_makes_rl_data_with_their_own_everything(environment, acme, tmp_path):
    output = tmp_path / "rl.json"
    embeddings = acme / "emb.safetensors"
    environment.run(
        *("generate", "--dataset", "acme", "--dataset-opt", f"path={acme}", "--backend", "acme"),
        *("--prompt", "acme", "--metric", "acme", "--generator", "acme"),
        *("--query-emb", embeddings, "--cand-emb", embeddings, "--output-path", output),
        *("--num-beams", "0", "--num-samples-per-temp", "0"),
    )
    assert "valid" in environment.run("validate", output)
    data = json.loads(output.read_text())
    meta = data.pop("_meta")
    assert meta["backend"]["fingerprint"] == "acme copy 1 default=unknown"
    assert meta["metric"] == {"name": "acme", "options": {}, "version": "7"}
    assert data.keys() == {path.stem for path in acme.glob("*.png")}
    candidates = [each for record in data.values() for each in record["pointer_candidates"]]
    assert {each["gen_method"] for each in candidates} == {"acme", "random", "retrieval"}
    for query_id, record in data.items():
        for each in record["pointer_candidates"]:
            images = [query_id, *(sorted(data)[row] for row in each["pointer"])]
            if "green-9" in images:
                assert each["eval_failed"]
                continue
            shown_last = images[-1].split("-")[0]
            assert each["vqa_pred_answer"] == shown_last
            assert each["vqa_correct"] == (shown_last == query_id.split("-")[0])


@pytest.fixture
def generate(environment, images, tmp_path):
    """Runs `generate` on acme's images without its generators; returns the file's bytes."""
    embeddings = images / "emb.safetensors"

    def run(name, *more):
        environment.run(
            *("generate", "--dataset", "acme", "--dataset-opt", f"path={images}"),
            *("--backend", "acme", "--prompt", "acme", "--metric", "acme", "--no-store"),
            *(
                "--query-emb",
                embeddings,
                "--cand-emb",
                embeddings,
                "--output-path",
                tmp_path / name,
            ),
            *("--num-beams", "0", "--num-samples-per-temp", "0", *more),
        )
        return (tmp_path / name).read_bytes()

    return run


def test_an_executor_changes_no_record(generate):
    usual, reordered = (
        generate(name, "--window", "2", "--executor", executor)
        for name, executor in (("a.json", "in-process"), ("b.json", "acme-pairs"))
    )
    assert b"acme-pairs" not in reordered
    usual, reordered = json.loads(usual), json.loads(reordered)
    for data in (usual, reordered):
        del data["_meta"]
    assert list(usual.items()) == list(reordered.items())


def test_a_search_stops_at_a_right_answer_or_its_budget(generate):
    search = ("--generator", "acme-swaps", "--generator-opt", "acme-swaps.budget=3")
    data = json.loads(generate("rl.json", *search, "--num-random", "0", "--num-retrieval", "0"))
    del data["_meta"]
    for record in data.values():
        candidates = record["pointer_candidates"]
        assert {each["gen_method"] for each in candidates} == {"acme-swaps"}
        # Two are asked for, and a third one only if both were wrong.
        right = any(each.get("vqa_correct") for each in candidates[:2])
        assert len(candidates) == (2 if right else 3)


def test_an_arm_is_measured_with_the_others(environment, images, tmp_path):
    embeddings, output = images / "emb.safetensors", tmp_path / "evaluation.json"
    printed = environment.run(
        *("evaluate", "--dataset", "acme", "--dataset-opt", f"path={images}", "--arm", "acme-last"),
        *("--backend", "acme", "--prompt", "acme", "--metric", "acme", "--shots", "2"),
        *("--query-emb", embeddings, "--cand-emb", embeddings, "--output-path", output),
    )
    assert "acme-last" in printed
    assert "acme-last" in output.read_text()


def test_a_selector_is_trained_and_proposes(generate, environment, images, tmp_path):
    generate("rl.json", "--num-random", "8")
    embeddings, policy = images / "emb.safetensors", tmp_path / "policy"
    environment.run(
        *("train", "--beam-data", tmp_path / "rl.json", "--selector", "acme"),
        *("--query-emb", embeddings, "--cand-emb", embeddings, "--output-dir", policy),
        *("--rce-epochs", "2", "--grpo-epochs", "1"),
    )
    data = json.loads(generate("beams.json", "--sft-ckpt", policy, "--num-beams", "5"))
    del data["_meta"]
    beams = [
        each["pointer"]
        for record in data.values()
        for each in record["pointer_candidates"]
        if each["gen_method"] == "beam"
    ]
    assert {len(pointer) for pointer in beams} <= {0, 1, 2}
    assert len({len(pointer) for pointer in beams}) > 1, "it stops now and then"


def test_a_stranger_is_listed_described_and_greets(environment):
    listed = environment.run("plugins")
    assert re.search(r"backend +acme +acme-vqa 2\.3 +repeats what was shown last", listed)
    missing = "missing: backend acme-cloud needs the package acme_sdk: pip install 'acme[sdk]'"
    assert missing in listed
    assert "default: str, default unknown" in environment.run("plugins", "show", "backend:acme")
    assert environment.run("acme", "you") == "hello you\n"
    assert "Greet NAME" in environment.run("--help")


def test_the_kit_passes_what_is_sound_and_finds_what_is_not(environment, acme):
    passed = environment.run("plugins", "check", "backend:acme", "--opt", "default=none")
    assert passed.startswith("backend acme, from acme-vqa 2.3\n  ok       is made\n")
    assert "\n  ok       loading imports nothing heavy\n" in passed
    assert "broken" not in passed
    for name in ("acme-mute", "generator:acme", "acme-swaps", "acme-pairs", "acme-last"):
        environment.run("plugins", "check", name)
    environment.run("plugins", "check", "selector:acme")
    found = environment.run("plugins", "check", "dataset:acme", "--opt", f"path={acme}", code=1)
    assert "broken   images open: the image of example green-9 of the queries" in found
    zero = environment.run("plugins", "check", "zero", code=1)
    assert "gave a float: return Judgement(correct, accuracy)" in zero
    assert zero.endswith("1 broken\n")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["acme"], "acme is registered for several kinds: write backend:acme or prompt:acme or"),
        (["acme-cloud"], "needs the package acme_sdk: pip install 'acme[sdk]'"),
        (["dataset:acme"], "dataset acme needs the option path (give key=value)"),
        (["backend:acme", "--opt", "defualt=x"], "did you mean 'default'?"),
        (["metric:acme", "--opt", "a=1"], "metric acme takes no options (given: a)"),
        (["backend:acm"], "nothing is registered as 'backend:acm'; did you mean 'acme'?"),
    ],
)
def test_what_cannot_be_checked_is_one_line(environment, args, said):
    output = environment.run("plugins", "check", *args, code=2)
    assert said in output
    assert len(output.splitlines()) == 1


def test_what_is_broken_breaks_nothing_but_itself(environment):
    listed = environment.run("plugins")
    failed = dict(re.findall(r"failed: plugin (\w+) of broken-vqa 0\.1: (.*)", listed))
    assert failed.keys() == {"absent", "exits", "misspelt", "grabby", "commands"}
    assert "no_such_module" in failed["absent"]
    assert failed["exits"] == "SystemExit: no licence found"
    assert "pointer_rl_register_backend" in failed["misspelt"]
    assert "metric vqa is registered twice: by pointer-rl" in failed["grabby"]
    assert failed["commands"] == "PluginError: the command generate already exists"
    assert "not to be seen" not in listed
    assert "Traceback" in environment.run("plugins", "show", "absent")
    assert "Generate RL data" in environment.run("generate", "--help")
    unknown = environment.run("plugins", "check", "grabby", code=2)
    assert "the plugin grabby of broken-vqa 0.1 failed to load (PluginError: metric vqa" in unknown
    assert len(unknown.splitlines()) == 1
