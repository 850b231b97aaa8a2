"""The flamingo backend on a CUDA device. Skipped where there is none."""

from __future__ import annotations

import math

import pytest
import tiny_flamingo as tiny
import torch
from local_backend_checks import ANSWERS, BEAM, GREEDY, PROMPTS, answers

from pointer_rl.local.batching import LocalBackend
from pointer_rl.types import Request
from pointer_rl_flamingo import create_backend
from pointer_rl_flamingo.loading import load_model
from pointer_rl_flamingo.options import FlamingoOptions

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

REQUESTS = [Request(prompt, each, ANSWERS) for each in (GREEDY, BEAM) for prompt in PROMPTS]


@pytest.fixture(scope="module", params=tiny.KINDS)
def options(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    parts = tiny.make_parts(tmp_path_factory.mktemp(request.param), request.param, seed=10)
    return {
        "model": str(parts.checkpoint),
        "language_model": str(parts.language),
        "vision_model": str(parts.vision),
    }


def test_a_gpu_answers_as_a_cpu_does(options):
    on_cpu = create_backend(FlamingoOptions(**options, dtype="float32", device="cpu"))
    on_gpu = create_backend(FlamingoOptions(**options, dtype="float32", device="cuda"))
    assert on_gpu.fingerprint == on_cpu.fingerprint
    for gpu, cpu in zip(answers(on_gpu, REQUESTS), answers(on_cpu, REQUESTS), strict=True):
        assert (gpu.text, gpu.usage) == (cpu.text, cpu.usage)
        assert gpu.score_logprobs == pytest.approx(cpu.score_logprobs, rel=1e-3)


def test_auto_is_bfloat16_on_cuda(options):
    model, fingerprint = load_model(FlamingoOptions(**options))
    assert model.model.device.type == "cuda"
    assert model.model.dtype == torch.bfloat16
    backend = LocalBackend(model, fingerprint=fingerprint, batch_tokens=1024, advice="-")
    for result in answers(backend, REQUESTS):
        assert all(map(math.isfinite, result.score_logprobs))


def test_memory_that_runs_out_for_real_halves_the_batch(options):
    model, _ = load_model(FlamingoOptions(**options, dtype="float32", device="cuda"))
    backend = LocalBackend(model, fingerprint="-", batch_tokens=1024, advice="-")
    expected = answers(backend, REQUESTS)

    def allocate_too_much(module, args, kwargs):
        if len(kwargs["input_ids"]) > 3:
            torch.empty(2**50, dtype=torch.uint8, device="cuda")

    model.model.lang_encoder.register_forward_pre_hook(allocate_too_much, with_kwargs=True)
    results = answers(backend, REQUESTS)
    assert [result.text for result in results] == [result.text for result in expected]
