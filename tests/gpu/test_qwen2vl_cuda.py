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
from pointer_rl_qwen2vl import attention, create_backend, tower
from pointer_rl_qwen2vl.backend import Qwen2VLBackend
from pointer_rl_qwen2vl.checkpoint import load_checkpoint
from pointer_rl_qwen2vl.options import Qwen2VLOptions
from pointer_rl_qwen2vl.patches import PatchCache
from pointer_rl_qwen2vl.steps import FixedSteps

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
    # By default cuDNN's convolutions round float32 to TF32, which has 11 bits of precision instead
    # of 24. engine=plain, which runs the beams, has one: transformers' patch embedding.
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_graph_changes_not_a_bit(folder, dtype):
    """Against the same steps without graphs."""
    prompts = [
        Prompt((Message("user", ("what is a dog? " * number, "a red cat?")),))
        for number in range(1, 30)
    ]
    requests = [Request(prompt, Decoding(max_new_tokens=12), ANSWERS) for prompt in prompts]
    checkpoint = load_checkpoint(Qwen2VLOptions(model=str(folder), dtype=dtype))
    backend = Qwen2VLBackend(checkpoint, cuda_graphs=True)
    steps = backend._shared._model._steps
    assert isinstance(steps, FixedSteps)
    found = [answers(backend, requests) for _ in range(3)]
    assert any(step._replay is not None for step in steps._steps.values())
    without = answers(Qwen2VLBackend(checkpoint, cuda_graphs=False), requests)
    assert found == [without] * 3


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_the_tower_is_near_that_of_transformers_in_float64(folder, dtype, error):
    """A bfloat16 has 8 bits of precision: each of some ten roundings in a row adds up to 2^-9."""
    exact = load_checkpoint(Qwen2VLOptions(model=str(folder), device="cpu")).model.double()
    model = load_checkpoint(Qwen2VLOptions(model=str(folder), dtype=dtype)).model
    vision = model.config.vision_config
    grids = [(1, 4, 6), (1, 10, 8), (1, 4, 6), (1, 2, 30)]
    patches = sum(height * width for _, height, width in grids)
    pixels = torch.randn(patches, 3 * vision.temporal_patch_size * vision.patch_size**2)
    pixels = pixels.to(model.dtype)
    with torch.inference_mode():
        expected = exact.get_image_features(pixels.double(), torch.tensor(grids), return_dict=True)
    for (mine, _), theirs in zip(
        tower.VisionTower(model).encode(pixels.cuda(), grids), expected.pooler_output, strict=True
    ):
        assert (mine.double().cpu() - theirs).norm() < error * theirs.norm()


@pytest.mark.parametrize("shape", [(3, 50, 70), (5, 1, 130), (2, 37, 37)])
def test_attention_in_place_is_near_its_definition(folder, shape):
    model = load_checkpoint(Qwen2VLOptions(model=str(folder), dtype="bfloat16")).model
    config = model.config.get_text_config()
    in_place = attention.InPlaceAttention(model)
    assert in_place.usable
    rows, length, columns = shape
    heads, shared = config.num_attention_heads, config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, size, device="cuda", dtype=torch.bfloat16).transpose(1, 2)

    query, key = draw(rows, length, heads), draw(rows, columns, shared)
    value = draw(rows, columns, shared)
    mask = torch.zeros(rows, 1, length, columns, device="cuda", dtype=torch.bfloat16)
    mask[:, :, :, columns - length :] = torch.full(
        (length, length), torch.finfo(torch.bfloat16).min, device="cuda"
    ).triu(1)
    with in_place():
        assert config._attn_implementation != "sdpa"
        found, _ = attention._attention(None, query, key, value, mask, size**-0.5)
    expected = attention.reference(query, key, value, mask, size**-0.5)
    assert (found.double() - expected).norm() < 0.02 * expected.norm()


def test_a_padded_mlp_gives_the_same(folder):
    mlp = load_checkpoint(Qwen2VLOptions(model=str(folder), dtype="float32")).model
    mlp = mlp.model.visual.blocks[0].mlp
    if not hasattr(mlp, "gate_proj"):
        assert tower._aligned(mlp) is mlp
        return
    narrow = tower._padded(mlp, -3)  # One that is no multiple of 8 numbers.
    padded = tower._aligned(narrow)
    assert padded.gate_proj.out_features % 64 == 0
    hidden = torch.randn(10, mlp.gate_proj.in_features, device="cuda")
    torch.testing.assert_close(padded(hidden), narrow(hidden))


def test_bytes_become_the_same_floats_on_a_gpu(folder, requests):
    on_cpu, on_gpu = (
        PatchCache(load_checkpoint(Qwen2VLOptions(model=str(folder), device=each, dtype="float32")))
        for each in ("cpu", "cuda")
    )
    images = [(image.key, image) for request in requests for image in request.prompt.images]
    opened = list(on_gpu.find(images * 20))
    for mine, theirs in zip(opened, on_cpu.find(images * 20), strict=True):
        assert (mine.values == theirs.values).all()
    assert torch.equal(on_gpu.pixels(opened).cpu(), on_cpu.pixels(opened))


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
