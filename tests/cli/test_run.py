"""`pointer-rl run`: what it writes, what it refuses, and that held-out queries stay unseen."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import PIL.Image
import pytest
import torch

from pointer_rl.datasets.embeddings import save_embeddings
from pointer_rl.route import run as route_run
from pointer_rl.selectors.bundle import load_bundle

QUERIES = 40
OUTPUTS = {
    *("accuracy.png", "beams.json", "evaluation.json", "offline", "online", "rl.json", "run.json"),
    "sft",
}


@pytest.fixture
def route(tmp_path, backends, monkeypatch):
    """Runs `run`, with few epochs, on a jsonl dataset of `QUERIES` examples, 2 an image."""
    monkeypatch.setattr("pointer_rl.route.run.ROUNDS", 1)
    for name in ("SFT", "OFFLINE", "ONLINE"):
        config = getattr(route_run, f"{name}_TRAINING")
        few = replace(config, rce_epochs=1, grpo_epochs=min(1, config.grpo_epochs))
        monkeypatch.setattr(f"pointer_rl.route.run.{name}_TRAINING", few)
    rows = [
        {
            "id": f"e{i}",
            "image": f"{i // 2}.png",
            "question": f"q{i}?",
            "answers": ["ab"[i % 2]] * 10,
        }
        for i in range(QUERIES)
    ]
    for i in range(QUERIES // 2):
        PIL.Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    vectors = torch.randn(QUERIES, 8, generator=torch.Generator().manual_seed(0))
    save_embeddings(tmp_path / "emb.safetensors", vectors, [row["id"] for row in rows])

    def run(cli, *more: str):
        return cli(
            *("run", "--backend", "copy", "--dataset", "jsonl"),
            *("--dataset-opt", f"path={tmp_path / 'data.jsonl'}"),
            *("--query-emb", str(tmp_path / "emb.safetensors")),
            *("--cand-emb", str(tmp_path / "emb.safetensors")),
            *("--output-dir", str(tmp_path / "route"), "--shots", "1", "--max-calls", "300", *more),
        )

    run.folder = tmp_path / "route"
    return run


def records(path):
    content = json.loads(path.read_text())
    return content.pop("_meta"), content


def test_a_tracker_that_is_not_installed_is_missed_before_anything_is_asked(
    route, cli, monkeypatch
):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    result = route(cli, "--log-to", "tensorboard")
    assert result.exit_code == 2
    assert "--log-to tensorboard needs the package tensorboard" in result.output
    assert not route.folder.joinpath("run.json").exists()


def test_one_command_ends_with_a_verdict_on_queries_that_nothing_learned_from(route, cli):
    planned = route(cli, "--plan")
    assert planned.exit_code == 0, planned.output
    assert not route.folder.exists()
    assert "at most" in planned.stdout.splitlines()[-1]
    result = route(cli)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("\n".join(planned.stdout.splitlines()[:-1]))
    folder = route.folder
    assert {path.name for path in folder.iterdir()} == OUTPUTS
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert result.stdout.splitlines()[-1] == evaluation["verdict"]
    assert evaluation["verdict"].startswith("online, 1 shot")

    held_out = set(evaluation["query_ids"])
    assert len(held_out) == 8  # a fifth of 20 images, 2 queries each
    (_, with_beams), (data, asked) = (records(folder / name) for name in ("beams.json", "rl.json"))
    rest = {f"e{i}" for i in range(QUERIES)} - held_out
    assert data["dataset"]["part"] == {"side": "training", "share": 0.2, "seed": 0}
    assert data["dataset"]["pool_size"] == len(rest) == 32
    learned = {*with_beams, *asked}
    learned |= {
        query
        for name in ("sft", "offline", "online")
        for query in (folder / name / "query_ids.txt").read_text().split()
    }
    assert learned <= rest
    for name in ("sft", "online"):
        assert set(load_bundle(folder / name).pool_ids) == rest
    assert evaluation["leakage"] == {
        "shared_images": 0,
        "shown": 0,
        "trained_on": {"SFT": 0, "offline": 0, "online": 0},
    }
    rounds = [records(path)[1] for path in sorted((folder / "online/rounds").iterdir())]
    judged = [
        c for each in (asked, *rounds) for r in each.values() for c in r["pointer_candidates"]
    ]
    assert sum(each["trials"] for each in with_beams.values()) + len(judged) <= 300

    in_order = [f"e{i}" for i in range(QUERIES) if f"e{i}" in rest]
    assert [*asked] == in_order[: len(asked)]

    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again = route(cli)
    assert again.exit_code == 0, again.output
    assert again.stdout.count("finished before") == 7
    assert again.stdout.splitlines()[-1] == evaluation["verdict"]
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    shown = cli("show", str(folder / "rl.json"), "--limit", "1")
    assert shown.exit_code == 0, shown.output
    assert shown.stderr == ""  # the pool is the part's, and has the recorded ids

    other = route(cli, "--seed", "1")
    assert other.exit_code == 2
    assert "of a run with other options (seed: 0, now 1)" in other.stderr
    assert len(other.stderr.splitlines()) == 1


def test_a_backend_that_cannot_score_is_said_to_go_without_sft(route, cli, backends, monkeypatch):
    from fakes import CopyBackend

    from pointer_rl.types import BackendError

    ask = CopyBackend.run

    def refuse(self, requests):
        for index, result in ask(self, requests):
            yield index, BackendError("no scores") if requests[index].score else result

    monkeypatch.setattr(CopyBackend, "run", refuse)
    planned = route(cli, "--plan")
    assert planned.exit_code == 0, planned.output
    assert "without beams and SFT: the backend does not score answers (no scores)" in planned.stdout
    assert not any(line.startswith(("beams", "sft")) for line in planned.stdout.splitlines())


def test_a_model_that_nothing_helps_gets_a_verdict_too(route, cli, backends, monkeypatch):
    from fakes import CopyBackend

    ask = CopyBackend.run

    def answer_wrongly(self, requests):
        for index, result in ask(self, requests):
            yield index, replace(result, text="neither")

    monkeypatch.setattr(CopyBackend, "run", answer_wrongly)
    result = route(cli, "--no-sft")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("no policy from this:") == 2
    assert "nothing was learned, so the verdict is about similar demonstrations" in result.stdout
    verdict = json.loads((route.folder / "evaluation.json").read_text())["verdict"]
    assert result.stdout.splitlines()[-1] == verdict
    assert verdict.startswith("similarity, 1 shot: not distinguishable from random")
    again = route(cli, "--no-sft")
    assert (again.exit_code, again.stdout.splitlines()[-1]) == (0, verdict)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--max-calls", "50"), "--max-calls 50: too few to learn from; allow 252"),
        (("--test-opt", "path=x"), "--test-opt: the embeddings of --query-emb are of the training"),
        (("--shots", "50"), "50 shots need a pool of at least as many examples"),
        (("--held-out", "1"), "Invalid value for '--held-out'"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_trial(route, cli, backends, more, says):
    result = route(cli, *more)
    assert result.exit_code == 2
    assert says in result.stderr
    assert not any(backend.asked for backend in backends)
    assert not route.folder.exists()


def test_files_without_a_run_are_replaced_by_overwrite_alone(route, cli):
    route.folder.mkdir()
    (route.folder / "rl.json").write_text("mine")
    result = route(cli, "--no-sft")
    assert (result.exit_code, (route.folder / "rl.json").read_text()) == (2, "mine")
    assert "rl.json: exists, without the run.json of a run" in result.stderr


def test_test_queries_of_their_own_share_the_pool(world, cli):
    """A second file of queries, which would otherwise be its own pool."""
    other = world.folder / "other.jsonl"
    other.write_text(world.data.read_text().replace('"e', '"t'))
    args = (
        *("run", "--backend", "copy", "--dataset", "jsonl", "--dataset-opt", f"path={world.data}"),
        *("--output-dir", str(world.folder / "route"), "--test-opt", f"path={other}"),
    )
    result = cli(*args)
    assert result.exit_code == 2
    assert "--test-opt: with these options the pool is another one" in result.stderr
    result = cli(*args, "--dataset-opt", f"pool={world.data}")
    assert result.exit_code == 2  # the files have the same images
    assert "--test-opt: the images of 8 evaluated queries" in result.stderr
