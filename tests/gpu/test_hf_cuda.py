"""The hf backend on a CUDA device. Skipped where there is none."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from local_backend_checks import ANSWERS, BEAM, GREEDY, PROMPTS, answers
from tiny_models import make_tiny_model

from pointer_rl.types import Request
from pointer_rl_hf import create_backend
from pointer_rl_hf.checkpoint import load_checkpoint
from pointer_rl_hf.model import make_backend
from pointer_rl_hf.options import HFBackendOptions

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

REQUESTS = [Request(prompt, each, ANSWERS) for each in (GREEDY, BEAM) for prompt in PROMPTS]


@pytest.fixture(scope="module", params=["llava", "idefics3", "gemma3", "internvl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model", request.param)


def test_a_gpu_answers_as_a_cpu_does(folder):
    options = {"model": str(folder), "dtype": "float32"}
    on_cpu = create_backend(HFBackendOptions(**options, device="cpu"))
    on_gpu = create_backend(HFBackendOptions(**options, device="cuda"))
    assert on_gpu.fingerprint == on_cpu.fingerprint
    for gpu, cpu in zip(answers(on_gpu, REQUESTS), answers(on_cpu, REQUESTS), strict=True):
        assert (gpu.text, gpu.usage) == (cpu.text, cpu.usage)
        assert gpu.score_logprobs == pytest.approx(cpu.score_logprobs, rel=1e-3)


def test_auto_is_bfloat16_on_cuda(folder):
    checkpoint = load_checkpoint(HFBackendOptions(model=str(folder)))
    assert checkpoint.model.device.type == "cuda"
    assert checkpoint.model.dtype == torch.bfloat16
    for result in answers(make_backend(checkpoint, None), REQUESTS):
        assert all(map(math.isfinite, result.score_logprobs))


def test_memory_that_runs_out_for_real_halves_the_batch(folder):
    checkpoint = load_checkpoint(HFBackendOptions(model=str(folder), dtype="float32"))
    backend = make_backend(checkpoint, None)
    expected = answers(backend, REQUESTS)

    def allocate_too_much(module, args, kwargs):
        if len(kwargs["input_ids"]) > 3:
            torch.empty(2**50, dtype=torch.uint8, device="cuda")

    checkpoint.model.register_forward_pre_hook(allocate_too_much, with_kwargs=True)
    results = answers(backend, REQUESTS)
    assert [result.text for result in results] == [result.text for result in expected]
