"""`generate` against a server that fails in every way we know: no wrong label, and no key kept.

POINTER_RL_TRIALS says how many trials it takes (`make test-faults`: a thousand).
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import PIL.Image
import pytest
import torch
from click.testing import CliRunner
from fault_server import FATAL, FAULTS, KEY_FAULTS, SCORE_FAULTS, FaultServer

from pointer_rl.cli.main import cli
from pointer_rl.datasets.embeddings import save_embeddings
from pointer_rl_openai.keys import holds_key

TRIALS = int(os.environ.get("POINTER_RL_TRIALS", "60"))
KEY = "sk-Secret-123-aBcD"
PER_QUERY = 12
WORDS = ("red", "blue cat", "no", "zwölf", "it is")
KINDS = (*FAULTS, *FATAL, *KEY_FAULTS, *SCORE_FAULTS)


@pytest.fixture
def data(tmp_path):
    """Options of a dataset with as many queries as the trials take, and of its embeddings."""
    rows = [
        {"id": f"e{i}", "image": f"{i}.png", "question": f"q{i}?", "answers": [WORDS[i % 5]] * 10}
        for i in range(-(-TRIALS // PER_QUERY))
    ]
    for i in range(len(rows)):
        PIL.Image.new("RGB", (4, 4), (i % 256, i // 256, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    vectors = torch.randn(len(rows), 6, generator=torch.Generator().manual_seed(0))
    save_embeddings(tmp_path / "v.safetensors", vectors, [row["id"] for row in rows])
    emb = str(tmp_path / "v.safetensors")
    given = ("--query-emb", emb, "--cand-emb", emb)
    return (*given, "--dataset", "jsonl", "--dataset-opt", f"path={tmp_path / 'data.jsonl'}")


def shown_answer(body) -> str:
    """The last demonstration's answer, as it stands in the prompt."""
    [parts] = [each["content"] for each in body["messages"] if each["role"] == "user"]
    return parts[-3]["text"].rpartition("Short answer:")[2]


def generate(folder: Path, server: FaultServer, data: Sequence[str], timeout: float = 60) -> str:
    done = CliRunner().invoke(
        cli,
        [
            *("generate", "--output-path", str(folder / "rl.json"), "--overwrite"),
            *("--store", str(folder / "store.sqlite"), "--score-answers", "--window", "32"),
            *(*data, "--num-beams", "0", "--num-samples-per-temp", "0", "--num-retrieval", "0"),
            *("--num-random", str(PER_QUERY), "--backend", "openai"),
            *("--backend-opt", f"base_url={server.base_url}", "--backend-opt", "retries=2"),
            *("--backend-opt", "backoff=0.001", "--backend-opt", f"timeout={timeout}"),
        ],
    )
    assert done.exit_code == 0, done.output
    return done.output


def candidates(folder: Path) -> list[tuple[str, dict]]:
    """Query and candidate, in the order of the file."""
    return [
        (query, candidate)
        for query, record in json.loads((folder / "rl.json").read_text()).items()
        if query != "_meta"
        for candidate in record["pointer_candidates"]
    ]


def same(one: dict, other: dict) -> bool:
    """Scores that come in another reply may differ in their last digits."""
    scores = one["vqa_gt_prob"], other["vqa_gt_prob"]
    return {**one, "vqa_gt_prob": None} == {**other, "vqa_gt_prob": None} and scores[
        0
    ] == pytest.approx(scores[1], rel=1e-9)


def test_a_failure_never_becomes_a_label_and_no_key_is_kept(data, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    for folder in ("right", "faulty"):
        (tmp_path / folder).mkdir()
    with FaultServer(answer=shown_answer, vllm=True) as server:
        generate(tmp_path / "right", server, data)
        requests = len(server.chats())
    right = candidates(tmp_path / "right")
    assert len(right) >= TRIALS
    assert not any("eval_failed" in candidate for _, candidate in right)

    faults: list[str | None] = [*KINDS, *islice(cycle(KINDS), max(0, requests // 2 - len(KINDS)))]
    faults += [None] * max(requests // 2, len(KINDS))
    random.Random(0).shuffle(faults)
    with (
        caplog.at_level(0),
        FaultServer(faults, answer=shown_answer, vllm=True, key=KEY, hang_seconds=2) as server,
    ):
        told = generate(tmp_path / "faulty", server, data, timeout=0.5)
        left = len(server.faults)
        found = candidates(tmp_path / "faulty")
        server.faults.clear()
        told += generate(tmp_path / "faulty", server, data)
    assert [(query, each["pointer"]) for query, each in found] == [
        (query, each["pointer"]) for query, each in right
    ]
    failed = 0
    for (_, given), (_, expected) in zip(found, right, strict=True):
        if given.get("eval_failed"):
            failed += 1
            assert given["eval_error"]
            assert "vqa_correct" not in given
        else:
            assert same(given, expected), (given, expected)
    print(
        f"{len(found)} trials, {failed} failed, {len(faults) - left} replies of {len(KINDS)} kinds"
    )
    assert 0 < failed < len(found)
    for (_, given), (_, expected) in zip(candidates(tmp_path / "faulty"), right, strict=True):
        assert same(given, expected)
    written = {path.name: path.read_bytes() for path in (tmp_path / "faulty").iterdir()}
    assert {"rl.json", "store.sqlite"} <= set(written)
    for text in (told, caplog.text, *(data.decode(errors="replace") for data in written.values())):
        assert not holds_key(text, KEY)
