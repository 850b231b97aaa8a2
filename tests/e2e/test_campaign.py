"""A small share of the campaign of `make test-faults`: kills, full disks and damaged files."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

from e2e.campaign import GENERATE, PLUGIN, make_world

PROGRAM = Path(__file__).with_name("campaign.py")
SHARE = [
    *("generate", "generate .jsonl", "embed", "convert .jsonl", "convert .parquet", "rescore"),
    *("merge", "cache export", "cache prune", "plugins new", "glyphs", "journal", "Parquet"),
]


def run(folder, *command, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "POINTER_RL_CACHE": str(folder / "cache")}
    return subprocess.run(
        [sys.executable, *command],
        **{"cwd": folder, "env": environment, "capture_output": True, "text": True, **options},
    )


def test_a_share_of_the_campaign(tmp_path):
    numbers = ("--kills", "3", "--disks", "1", "--damages", "5")
    done = run(tmp_path, str(PROGRAM), str(tmp_path / "campaign"), *numbers, "--only", *SHARE)
    assert done.returncode == 0, done.stdout + done.stderr
    # 11 commands and 2 files.
    assert done.stdout.splitlines()[-1] == "| all | | 54 | 54 | 0 |"


def test_a_full_disk_costs_no_window_that_was_done(tmp_path):
    make_world(tmp_path / "world")
    (tmp_path / "world" / "plugin.py").write_text(PLUGIN)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    command = ("-m", "pointer_rl", "--plugin", "plugin.py", *GENERATE, "--no-store")
    cut = run(tmp_path / "world", *command, "--output-path", "rl.json", preexec_fn=limit)
    assert cut.returncode == 2
    *_, line = cut.stderr.splitlines()  # the first one is of the embeddings
    kept = re.search(r"rl\.partial\.jsonl: cannot be written \(File too large\); the (\d+)", line)
    assert kept, line
    assert not (tmp_path / "world" / "rl.json").exists()
    journal = (tmp_path / "world" / "rl.partial.jsonl").read_text()
    assert len(journal.splitlines()) == 1 + int(kept[1])
    assert int(kept[1]) % 8 == 0
