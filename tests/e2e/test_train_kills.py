"""Training, killed at random instants and resumed, ends in the bytes of a run that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from training_worlds import class_groups

from pointer_rl.data.embeddings import save_embeddings

PROGRAM = [sys.executable, "-c", "from pointer_rl.cli.main import main; main()", "train"]
EPOCHS = ("--rce-epochs", "60", "--grpo-epochs", "60", "--layers", "1", "--held-out", "0.3")
KILLS = 10


def files(folder):
    names = ("model.safetensors", "checkpoint.safetensors", "metrics.jsonl", "bundle.json")
    return {name: (folder / name).read_bytes() for name in names}


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
                    **{"vqa_acc_score": float(groups.rewards[each] > 0)},
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
