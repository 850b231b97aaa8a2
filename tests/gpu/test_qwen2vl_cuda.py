"""The qwen2vl backend on a CUDA device. Skipped where there is none."""

from __future__ import annotations

import io
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pointer_rl.datasets.images import ImageBytes
from pointer_rl.types import BackendError, Decoding, Message, Prompt, Request, Response
from pointer_rl_qwen2vl import create_backend
from pointer_rl_qwen2vl.backend import Qwen2VLBackend
from pointer_rl_qwen2vl.checkpoint import load_checkpoint
from pointer_rl_qwen2vl.options import Qwen2VLOptions

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

TINY = runpy.run_path(str(Path(__file__).parents[1] / "plugins" / "conftest.py"))
ANSWERS = ("red cat", "a dog")


@pytest.fixture(scope="module", params=TINY["FAMILIES"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY["make_tiny_qwen"](tmp_path_factory.mktemp("tiny") / "model", request.param)


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    rng = np.random.default_rng(0)

    def make_image(width: int, height: int) -> ImageBytes:
        file = io.BytesIO()
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, "PNG")
        return ImageBytes(file.getvalue(), "noise")

    prompts = [
        Prompt((Message("user", (*(make_image(50 + 9 * n, 60) for n in range(images)), "a dog?")),))
        for images in (3, 0, 1)
    ]
    decodings = (Decoding(max_new_tokens=6), Decoding(max_new_tokens=6, num_beams=3))
    return [Request(prompt, each, ANSWERS) for each in decodings for prompt in prompts]


def answers(backend: Qwen2VLBackend, requests: list[Request]) -> list[Response | BackendError]:
    return [result for _, result in sorted(backend.run(requests))]


def test_a_gpu_answers_as_a_cpu_does(folder, requests, monkeypatch):
    # By default cuDNN's convolutions, such as the patch embedding, round float32 to TF32.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    options = {"model": str(folder), "dtype": "float32"}
    on_cpu = create_backend(Qwen2VLOptions(**options, device="cpu"))
    on_gpu = create_backend(Qwen2VLOptions(**options, device="cuda"))
    assert on_gpu.fingerprint == on_cpu.fingerprint
    for gpu, cpu in zip(answers(on_gpu, requests), answers(on_cpu, requests), strict=True):
        assert (gpu.text, gpu.usage) == (cpu.text, cpu.usage)
        assert gpu.score_logprobs == pytest.approx(cpu.score_logprobs, rel=1e-3)


def test_auto_is_bfloat16_on_cuda(folder, requests):
    checkpoint = load_checkpoint(Qwen2VLOptions(model=str(folder)))
    assert checkpoint.model.device.type == "cuda"
    assert checkpoint.model.dtype == torch.bfloat16
    for result in answers(Qwen2VLBackend(checkpoint), requests):
        assert all(map(math.isfinite, result.score_logprobs))


def test_memory_that_runs_out_for_real_halves_the_batch(folder, requests):
    checkpoint = load_checkpoint(Qwen2VLOptions(model=str(folder), dtype="float32"))
    expected = answers(Qwen2VLBackend(checkpoint), requests)

    def allocate_too_much(module, args, kwargs):
        if len(kwargs["inputs_embeds"]) > 3:
            torch.empty(2**50, dtype=torch.uint8, device="cuda")

    checkpoint.model.model.language_model.register_forward_pre_hook(
        allocate_too_much, with_kwargs=True
    )
    results = answers(Qwen2VLBackend(checkpoint), requests)
    assert [result.text for result in results] == [result.text for result in expected]
