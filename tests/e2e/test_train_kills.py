"""Training, killed at random instants and resumed, ends in the bytes of a run that was not.

Online, the killed run moreover pays for no trial twice that the store had been given.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import PIL.Image
import pytest
import torch
from training_worlds import class_groups

from pointer_rl.datasets.embeddings import save_embeddings
from pointer_rl.session.cache import ResponseCache

PROGRAM = [sys.executable, "-c", "from pointer_rl.cli.main import main; main()", "train"]
EPOCHS = ("--rce-epochs", "60", "--grpo-epochs", "60", "--layers", "1", "--held-out", "0.3")
KILLS = 10
ONLINE_KILLS = 3
PLUGIN = """
import time
from fakes import CopyBackend
from pointer_rl.hookspecs import hookimpl


class Counted(CopyBackend):
    def run(self, requests):
        for result in super().run(requests):
            with open("asked", "a") as file:
                file.write(".")
            time.sleep(0.005)
            yield result


@hookimpl
def pointer_rl_register_backends(register):
    register("counted", Counted, summary="copies, and counts in the file `asked`")
"""


def files(folder):
    names = ("model.safetensors", "checkpoint.safetensors", "metrics.jsonl", "bundle.json")
    rounds = sorted(each.relative_to(folder) for each in folder.glob("rounds/*"))
    return {str(name): (folder / name).read_bytes() for name in [*names, *rounds]}


@pytest.fixture
def command(tmp_path):
    groups = class_groups(0, 200, dim=8)
    save_embeddings(tmp_path / "q.safetensors", groups.queries, groups.ids)
    ids = [f"p{row}" for row in range(len(groups.pool))]
    save_embeddings(tmp_path / "c.safetensors", groups.pool, ids)
    records = {}
    for index, id_ in enumerate(groups.ids):
        own = range(groups.offsets[index], groups.offsets[index + 1])
        records[id_] = {
            "pointer_candidates": [
                {
                    **{"pointer": groups.pointers[each].tolist(), "gen_method": "retrieval"},
                    **{"vqa_correct": int(groups.rewards[each] > 0)},
                    **{"vqa_acc_score": float(groups.rewards[each] > 0), "vqa_pred_answer": "a"},
                }
                for each in own
            ]
        }
    (tmp_path / "rl.json").write_text(json.dumps(records))

    def made(output, *more):
        return [
            *(*PROGRAM, "--beam-data", "rl.json", "--query-emb", "q.safetensors"),
            *("--cand-emb", "c.safetensors", "--output-dir", output, *EPOCHS, *more),
        ]

    return made


def test_ten_kills(command, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(*args):
        done = subprocess.run(args, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    run(*command("whole"))
    rng = random.Random(0)
    kills = 0
    for _ in range(200):
        checkpoint = tmp_path / "killed" / "checkpoint.safetensors"
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process = subprocess.Popen(
            command("killed", "--resume"),
            **{"cwd": tmp_path, "env": environment, "stdout": subprocess.DEVNULL},
        )
        # From the first new checkpoint on: so that each attempt gets somewhere.
        while process.poll() is None and (
            not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before
        ):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        if kills == KILLS:
            break
    assert kills == KILLS, "the run ended before it was killed often enough: give it more epochs"
    run(*command("killed", "--resume"))
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


@pytest.fixture
def asking(tmp_path):
    """An online run's command, with a backend from a distribution of its own."""
    about = tmp_path / "counted-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: counted\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[pointer_rl]\ncounted = counted_plugin\n")
    (tmp_path / "counted_plugin.py").write_text(PLUGIN)
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "image.png")
    rows = [
        {
            **{"id": f"e{i}", "image": "image.png", "question": f"q{i}?", "image_id": str(i)},
            "answers": ["ab"[i % 2]] * 10,
        }
        for i in range(40)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    vectors = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    vectors[:, 0] += torch.tensor([0.7, -0.7] * 20)
    save_embeddings(tmp_path / "e.safetensors", vectors, [row["id"] for row in rows])

    def made(output, *more):
        return [
            *(*PROGRAM, "--online", "--max-calls", "360", "--rounds", "3", "--pointers", "8"),
            *("--backend", "counted", "--dataset", "jsonl", "--dataset-opt", "path=data.jsonl"),
            *("--query-emb", "e.safetensors", "--cand-emb", "e.safetensors", "--shots", "1"),
            *("--heads", "2", "--layers", "1", "--held-out", "0.3", "--store", f"{output}.sqlite"),
            *("--output-dir", output, "--rce-epochs", "20", *more),
        ]

    return made


def test_kills_while_asking(asking, tmp_path):
    paths = [str(tmp_path), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        **{"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        "POINTER_RL_PLUGINS": "counted",
    }
    count = tmp_path / "asked"

    def asked():
        return count.stat().st_size if count.exists() else 0

    def run(*args):
        done = subprocess.run(args, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def epochs():
        checkpoint = tmp_path / "killed" / "checkpoint.safetensors"
        return checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0

    def stored():
        return sum(each.responses for each in ResponseCache(tmp_path / "killed.sqlite").summaries())

    run(*asking("whole"))
    needed = asked()
    assert 240 < needed <= 360
    rng = random.Random(0)
    lost = had = 0
    for kill in range(ONLINE_KILLS):
        before = asked()
        learnt = epochs()
        until = before + rng.randrange(1, needed // ONLINE_KILLS)
        process = subprocess.Popen(
            asking("killed", "--resume"),
            **{"cwd": tmp_path, "env": environment, "stdout": subprocess.DEVNULL},
        )

        # In turn: when so many trials are answered, and when an epoch more is learnt.
        while process.poll() is None and (epochs() == learnt if kill % 2 else asked() < until):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        assert process.poll() is None, f"the run ended before kill {kill + 1}"
        process.send_signal(signal.SIGKILL)
        process.wait()
        lost += asked() - before - (stored() - had)
        had = stored()
    run(*asking("killed", "--resume"))
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert not [path for path in (tmp_path / "killed").rglob("*") if "tmp" in path.name]
    assert stored() == needed
    assert asked() == 2 * needed + lost, "what is in the store is not asked again"
