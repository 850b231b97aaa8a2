"""The openai backend through the command line, on glyphs."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from fault_server import FAULTS, MODEL, FaultServer

from pointer_rl.cli.main import cli


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-123")
    return tmp_path


def shown_answer(body) -> str:
    """The last demonstration's answer, as it stands in the prompt."""
    [parts] = [each["content"] for each in body["messages"] if each["role"] == "user"]
    return parts[-3]["text"].rpartition("Short answer:")[2]


def generate(folder, server: FaultServer, *more: str):
    args = [
        *("generate", "--output-path", str(folder / "rl.json"), "--overwrite"),
        *("--store", str(folder / "store.sqlite")),
        *("--dataset-opt", "pool_size=32", "--dataset-opt", "train_size=4"),
        *("--backend", "openai", "--backend-opt", f"base_url={server.base_url}"),
        *("--backend-opt", f"model={MODEL}", "--backend-opt", "backoff=0.001"),
        *("--backend-opt", "timeout=0.5", *more),
    ]
    result = CliRunner().invoke(cli, args)
    assert "secret" not in result.output
    for path in folder.iterdir():
        assert b"secret" not in path.read_bytes()
    return result


def candidates(folder) -> list[dict]:
    records = json.loads((folder / "rl.json").read_text())
    return [
        candidate
        for key, record in records.items()
        if not key.startswith("_")
        for candidate in record["pointer_candidates"]
    ]


def test_no_log_has_the_key(folder):
    log = folder / "log.txt"
    with FaultServer(FAULTS, answer=shown_answer, key="sk-secret-123") as server:
        done = generate(folder, server, "-v", "--log-file", str(log))  # looks for the key
    assert done.exit_code == 0, done.output
    assert "pointer_rl_openai.asking: asking again in" in done.stderr
    assert "asking again in" in log.read_text()


def test_generating_through_all_faults_costs_no_candidate(folder):
    with FaultServer(FAULTS, answer=shown_answer, key="sk-secret-123") as server:
        done = generate(
            folder, server, "--backend-opt", "prompt_price=2", "--backend-opt", "generated_price=8"
        )
        asked = server.chats()[-1]
    assert done.exit_code == 0, done.output
    assert not any("eval_failed" in each for each in candidates(folder))
    assert CliRunner().invoke(cli, ["validate", str(folder / "rl.json")]).exit_code == 0
    assert [part["type"] for part in asked["messages"][-1]["content"]] == ["image_url", "text"] * 3
    [cost] = [line for line in done.output.splitlines() if line.startswith("cost ")]
    price, _, counts = cost.removeprefix("cost ").partition(": ")
    prompt, generated = (int(word.replace(",", "")) for word in counts.split() if word[0].isdigit())
    assert float(price) == pytest.approx((2 * prompt + 8 * generated) / 1e6, abs=5e-5)
    assert prompt > 100 * len(candidates(folder))


def test_what_failed_is_asked_again_and_nothing_else(folder):
    with FaultServer([None] * 10, answer=shown_answer, key="sk-secret-123") as server:
        server.always = "500"
        first = generate(folder, server, "--backend-opt", "retries=1")
        failed = [each for each in candidates(folder) if each.get("eval_failed")]
        assert first.exit_code == 0, first.output
        assert f"{len(failed)} trials failed; first: HTTP 500" in first.output
        assert len(candidates(folder)) - len(failed) == 10
        assert CliRunner().invoke(cli, ["validate", str(folder / "rl.json")]).exit_code == 0
        server.always = None
        server.requests.clear()
        again = generate(folder, server)
        assert again.exit_code == 0, again.output
        assert len(server.chats()) == len(failed) > 10
    assert "10 of" in again.output
    assert not any("eval_failed" in each for each in candidates(folder))


def test_scores_through_the_command_line(folder):
    with FaultServer(answer=shown_answer, key="sk-secret-123", vllm=True) as server:
        assert generate(folder, server, "--score-answers").exit_code == 0
        assert all(0 <= each["vqa_gt_prob"] <= 1 for each in candidates(folder))
    with FaultServer(answer=shown_answer, key="sk-secret-123") as server:
        refused = generate(folder, server, "--score-answers")
        assert server.chats() == []
    assert refused.exit_code == 1
    assert "cannot score answers" in refused.output


def test_a_server_that_is_not_there_is_one_line(folder):
    with FaultServer() as server:
        pass
    done = generate(folder, server)
    assert done.exit_code == 2
    assert "is the server running?" in done.output
    assert "Traceback" not in done.output
