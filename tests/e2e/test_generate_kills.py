"""`generate`, killed at random instants and begun again, ends in the bytes of a run that was not.

POINTER_RL_KILLS says how often it is killed (`make test-faults`: a hundred times).
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest
import torch
from e2e.kill_driver import STORE

from pointer_rl.datasets.embeddings import save_embeddings

KILLS = int(os.environ.get("POINTER_RL_KILLS", "20")) // 2
QUERIES = 700
DRIVER = Path(__file__).with_name("kill_driver.py")
PROGRAM = "from pointer_rl.cli.main import main; main()"

PLUGIN = """
import time

from pointer_rl.hookspecs import hookimpl
from pointer_rl.types import BackendError, Response


class Swayed:
    '''The last digits of its scores depend on who shares the call, as a GPU's do.'''

    fingerprint = "swayed"

    def run(self, requests):
        sway = len(requests) * 1e-9
        for index, request in enumerate(requests):
            time.sleep(0.001)
            text = request.prompt.text
            if "q13?" in text.rpartition("Question")[2]:
                yield index, BackendError("never answered")
            else:
                scores = tuple(-len(answer) - index * sway for answer in request.score)
                yield index, Response(text[-40:], scores)


@hookimpl
def pointer_rl_register_backends(register):
    register("swayed", Swayed, summary="depends on its batch")
"""


@pytest.fixture
def folder(tmp_path):
    """A dataset with embeddings, and the plugin, installed."""
    (tmp_path / "swayed_plugin.py").write_text(PLUGIN)
    info = tmp_path / "swayed_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: swayed-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pointer_rl]\nswayed = swayed_plugin\n")
    for number in range(8):
        PIL.Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    rows = [
        {
            **{"id": f"e{i}", "image": f"{i % 8}.png", "image_id": i, "question": f"q{i}?"},
            "answers": ["yes", "no"] * 5,
        }
        for i in range(QUERIES)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    vectors = torch.randn(QUERIES, 6, generator=torch.Generator().manual_seed(0))
    save_embeddings(tmp_path / "emb.safetensors", vectors, [row["id"] for row in rows])
    return tmp_path


def arguments(*more):
    return [
        *("generate", "--dataset", "jsonl", "--dataset-opt", "path=data.jsonl"),
        *("--backend", "swayed", "--query-emb", "emb.safetensors", "--cand-emb", "emb.safetensors"),
        *("--num-random", "2", "--num-retrieval", "0", "--num-beams", "0"),
        *("--num-samples-per-temp", "0", "--score-answers", *more),
    ]


def run(folder, *command, **options):
    environment = {
        **os.environ,
        **{"PYTHONPATH": str(folder), "POINTER_RL_PLUGINS": "swayed", "OMP_NUM_THREADS": "1"},
    }
    return subprocess.run(
        [sys.executable, *command],
        **{"cwd": folder, "env": environment, "capture_output": True, "text": True, **options},
    )


@pytest.mark.parametrize(("output", "store"), [("rl.json", True), ("rl.jsonl", False)])
def test_killed_at_random_instants(folder, output, store):
    stores = ["--store", STORE] if store else ["--no-store"]
    args = [*arguments(*stores), "--output-path", output]
    result = run(folder, str(DRIVER), str(KILLS), "1", *args)
    assert result.returncode == 0, result.stderr
    whole = (folder / output).read_bytes()
    assert not list(folder.glob("*.partial.jsonl"))
    assert not list(folder.glob(".*.tmp"))
    failed = whole.count(b'"eval_failed": true')
    assert 0 < failed <= 4
    assert whole.count(b'"vqa_gt_prob"') == whole.count(b'"pointer":') - failed


def test_a_full_disk_is_one_line_and_costs_nothing(folder):
    args = arguments("--no-store", "--output-path", "rl.json")
    whole = run(folder, "-c", PROGRAM, *args, "--output-path", "whole.json")
    assert whole.returncode == 0, whole.stderr
    half = (folder / "whole.json").stat().st_size // 2

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (half, half))

    cut = run(folder, "-c", PROGRAM, *args, preexec_fn=limit)
    assert cut.returncode == 2
    (line,) = cut.stderr.splitlines()
    assert "rl.partial.jsonl: cannot be written (File too large); the 256 queries" in line
    assert not (folder / "rl.json").exists()
    assert run(folder, "-c", PROGRAM, *args).returncode == 0
    assert (folder / "rl.json").read_bytes() == (folder / "whole.json").read_bytes()
