"""The openai backend against a vLLM server, next to the local engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

pytest.importorskip("vllm")

from bench_engine import session, trials
from click.testing import CliRunner
from local_backend_checks import answers
from vllm_server import serve

from pointer_rl.cli.main import cli
from pointer_rl.registry import registry
from pointer_rl.types import BackendError, Decoding
from pointer_rl_glyphs.dataset import MODEL_DIR


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve(str(MODEL_DIR), tmp_path_factory.mktemp("server") / "log") as url:
        yield url


def test_it_answers_as_the_local_engine_does(base_url):
    """The trials of `generate` for 32 queries, scored; two names of the server count as two."""
    local = registry().create("backend", "qwen2vl", {"model": str(MODEL_DIR), "device": "cpu"})
    urls = f"{base_url},{base_url.replace('127.0.0.1', 'localhost')}"
    backend = registry().create("backend", "openai", {"base_url": urls})
    for window in trials(session(32)):
        for mine, theirs in zip(answers(backend, window), answers(local, window), strict=True):
            assert mine.text == theirs.text
            assert mine.score_logprobs == pytest.approx(theirs.score_logprobs, rel=0, abs=1e-4)
    assert min(endpoint.requests for endpoint in backend._endpoints) > 100


def test_what_the_server_refuses_is_a_value(base_url):
    backend = registry().create("backend", "openai", {"base_url": base_url})
    request = replace(trials(session(1))[0][0], decoding=Decoding(max_new_tokens=5000))
    [result] = answers(backend, [request])
    assert isinstance(result, BackendError)
    assert "HTTP 400" in result.message


def test_doctor_compares_it_with_the_local_engine(base_url):
    command = ["doctor", "--parity", "--limit", "8", "--against", "openai"]
    done = CliRunner().invoke(cli, [*command, "--against-opt", f"base_url={base_url}"])
    assert done.exit_code == 0, done.output
    assert "of the backends qwen2vl and openai" in done.output
    assert "No answer differs, of 16." in done.output
