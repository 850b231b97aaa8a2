"""What the shared engine does for GPUs, as far as a CPU can tell. tests/gpu has the rest."""

from __future__ import annotations

import itertools
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate

import pytest
import torch
from PIL import Image
from qwen_reference import ask, make_image

from pointer_rl.types import Decoding, Request
from pointer_rl_qwen2vl import attention, chunk, memory, patches, steps, tower
from pointer_rl_qwen2vl.backend import Qwen2VLBackend
from pointer_rl_qwen2vl.checkpoint import load_checkpoint
from pointer_rl_qwen2vl.keyvalues import HeadShape, Memory
from pointer_rl_qwen2vl.options import Qwen2VLOptions
from pointer_rl_qwen2vl.patches import PatchCache
from pointer_rl_qwen2vl.shapes import ROUNDED
from pointer_rl_qwen2vl.steps import FixedSteps

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
GIB = 2**30


# --- the vision tower ---


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "grids",
    [[(1, 2, 2)], [(1, 6, 6)] * 3, [(1, 4, 6), (1, 10, 8), (1, 4, 6), (1, 2, 30)]],
    ids=["one", "of one size", "of several sizes"],
)
def test_the_tower_gives_the_features_of_transformers(tiny_qwen, family, grids):
    """In float64, but for what transformers itself computes in float32: rotations and norms."""
    options = Qwen2VLOptions(model=str(tiny_qwen(family)), device="cpu")
    model = load_checkpoint(options).model.double()
    vision = model.config.vision_config
    size = 3 * vision.temporal_patch_size * vision.patch_size**2
    patches = [height * width for _, height, width in grids]
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(sum(patches), size, generator=generator, dtype=torch.float64)
    with torch.inference_mode():
        expected = model.get_image_features(pixels, torch.tensor(grids), return_dict=True)
    encoded = tower.VisionTower(model).encode(pixels, grids)
    for (mine, _), theirs in zip(encoded, expected.pooler_output, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-4)
    layers = getattr(expected, "deepstack_features", None) or ()
    assert len(layers) == (family == "qwen3_vl")
    for number, layer in enumerate(layers):
        theirs = layer if isinstance(layer, torch.Tensor) else torch.cat(list(layer))
        mine = torch.cat([added[number] for _, added in encoded])
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-4)


def test_an_image_has_the_same_features_whatever_images_are_beside_it(tiny_qwen):
    model = load_checkpoint(
        Qwen2VLOptions(model=str(tiny_qwen("qwen2_5_vl")), device="cpu")
    ).model.double()
    grids = [(1, 4, 6), (1, 10, 8), (1, 6, 6)]
    ends = list(accumulate(height * width for _, height, width in grids))
    pixels = torch.randn(ends[-1], 3 * 2 * 14 * 14, dtype=torch.float64)
    together = tower.VisionTower(model).encode(pixels, grids)
    for grid, start, end, (mine, _) in zip(grids, [0, *ends], ends, together, strict=False):
        [(alone, _)] = tower.VisionTower(model).encode(pixels[start:end], [grid])
        torch.testing.assert_close(mine, alone)


def test_a_padded_mlp_gives_the_same(tiny_qwen):
    model = load_checkpoint(Qwen2VLOptions(model=str(tiny_qwen("qwen2_5_vl")), device="cpu")).model
    mlp = model.model.visual.blocks[0].mlp.double()
    padded = tower._padded(mlp, 16)
    assert padded.gate_proj.weight.shape[0] == mlp.gate_proj.weight.shape[0] + 16
    hidden = torch.randn(10, mlp.gate_proj.in_features, dtype=torch.float64)
    torch.testing.assert_close(padded(hidden), mlp(hidden))


# --- the language model's attention ---


def test_attention_in_place_is_that_of_repeated_heads():
    """In float64. A backend checks cuDNN's kernel when it starts; tests/gpu do too."""
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    query, key, value = draw(2, 6, 3, 8), draw(2, 2, 5, 8), draw(2, 2, 5, 8)
    mask = torch.zeros(2, 1, 3, 5, dtype=torch.float64)
    mask[:, :, 0, 2:] = torch.finfo(torch.float64).min
    found, _ = attention._attention(None, query, key, value, mask, 0.5)
    assert found.shape == (2, 3, 6, 8)
    for row, head, place in itertools.product(range(2), range(6), range(3)):
        scores = 0.5 * key[row, head // 3] @ query[row, head, place] + mask[row, 0, place]
        by_hand = scores.softmax(0) @ value[row, head // 3]
        torch.testing.assert_close(found[row, place, head], by_hand)
    torch.testing.assert_close(found, attention.reference(query, key, value, mask, 0.5))


def test_a_cpu_keeps_transformers_attention(tiny_qwen):
    model = load_checkpoint(Qwen2VLOptions(model=str(tiny_qwen("qwen2_5_vl")), device="cpu")).model
    with attention.InPlaceAttention(model)():
        assert model.config.get_text_config()._attn_implementation == "sdpa"


# --- images ---


def test_images_that_are_no_longer_wanted_are_not_opened(tiny_qwen, monkeypatch):
    options = Qwen2VLOptions(model=str(tiny_qwen("qwen2_5_vl")), device="cpu")
    cache = PatchCache(load_checkpoint(options))
    cache._threads = ThreadPoolExecutor(1)
    monkeypatch.setattr(patches, "_AHEAD", 3)
    opened = []
    going_on = threading.Event()

    @dataclass(frozen=True)
    class Slow:
        key: str

        def open(self) -> Image.Image:
            opened.append(self.key)
            if self.key != "0":
                going_on.wait(10)
            return Image.new("RGB", (56, 56))

    found = cache.find((str(number), Slow(str(number))) for number in range(9))
    assert next(found).tokens == 4
    found.close()
    going_on.set()
    cache._threads.shutdown(wait=True)
    assert opened in (["0"], ["0", "1"])  # The one that was being opened.


def test_large_images_are_opened_fewer_at_a_time(tiny_qwen, monkeypatch):
    options = Qwen2VLOptions(model=str(tiny_qwen("qwen2_5_vl")), device="cpu")
    cache = PatchCache(load_checkpoint(options))
    cache._threads = ThreadPoolExecutor(1)
    monkeypatch.setattr(patches, "_AHEAD", 6)
    monkeypatch.setattr(patches, "_AHEAD_PATCHES", 40)  # Two images of 4 x 4 patches.
    begun = []

    def images():
        for number in range(12):
            begun.append(number)
            yield str(number), make_image(number, 56, 56)

    ahead = [len(begun) - taken for taken, _ in enumerate(cache.find(images()), 1)]
    assert ahead[0] == 6
    assert ahead[6:10] == [2, 2, 2, 2]


# --- decoding steps ---


@pytest.mark.parametrize("family", FAMILIES)
def test_passes_of_few_shapes_give_the_same(tiny_qwen, family, monkeypatch):
    """A captured graph reruns a function on the tensors that it had: so does calling it again."""
    checkpoint = load_checkpoint(Qwen2VLOptions(model=str(tiny_qwen(family)), device="cpu"))
    captured = []

    def capture(run):
        captured.append(run)
        return run

    prompts = [
        ask(make_image(seed), "what is a dog? " * seed, make_image(seed + 9, 90, 30), "this?")
        for seed in range(1, 8)
    ]
    prompts += [ask(make_image(1), "what is a dog? ", make_image(seed), "a?") for seed in (2, 3)]
    asked = Decoding(max_new_tokens=9)
    requests = [Request(prompt, asked, ("red cat", "red dog")) for prompt in prompts]
    expected = sorted(Qwen2VLBackend(checkpoint).run(requests))
    monkeypatch.setattr(chunk, "EXACT", ROUNDED)
    backend = Qwen2VLBackend(checkpoint)
    chunks = backend._shared._model
    monkeypatch.setattr(steps, "_MOST_SHAPES", 2)
    chunks._steps = FixedSteps(chunks._model, ROUNDED, lambda: capture)
    for _ in range(2):
        for (_, mine), (_, other) in zip(sorted(backend.run(requests)), expected, strict=True):
            assert (mine.text, mine.usage) == (other.text, other.usage)
            assert mine.score_logprobs == pytest.approx(other.score_logprobs, rel=1e-4)
    assert captured


def test_memory_grows_twofold_up_to_its_limit(monkeypatch):
    shape = HeadShape(1, 1, 4, torch.float32, torch.device("cpu"))
    elsewhere = HeadShape(1, 1, 4, torch.float32, torch.device("meta"))
    for each, sizes in ((shape, [10, 11, 30]), (elsewhere, [10, 20, 30])):
        taken = Memory(each, most=25)
        for asked, size in zip((10, 11, 30), sizes, strict=True):
            assert taken.take(asked)[0].shape == (asked, 1, 4)
            assert len(taken._tensors[0]) == size


# --- how much memory ---


@pytest.fixture
def gpu(monkeypatch):
    """A GPU whose free memory is set by calling this."""

    def set_free(free: float, total: float = 80 * GIB) -> torch.device:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free), int(total)))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
        return torch.device("cuda")

    return set_free


def test_the_cache_takes_a_power_of_two_that_fits(gpu):
    assert memory.choose_cache_gib(gpu(71 * GIB)) == 16  # 2.25 x 16 + 10 of 71; 2.25 x 32 > 61
    assert memory.choose_cache_gib(gpu(82.1 * GIB)) == 32
    assert memory.choose_cache_gib(gpu(81.9 * GIB)) == 16
    assert memory.choose_cache_gib(gpu(8 * GIB, 24 * GIB)) == 1  # the reserve is 4
    assert memory.choose_cache_gib(gpu(3 * GIB, 8 * GIB)) == 0.25
    assert memory.choose_cache_gib(torch.device("cpu")) == 0.25


def test_a_cache_that_does_not_fit_is_said_to_change_digits(gpu, caplog):
    with caplog.at_level(logging.WARNING):
        memory.check_cache_gib(16, gpu(71 * GIB))
        assert not caplog.records
        memory.check_cache_gib(32, gpu(71 * GIB))
    [record] = caplog.records
    assert "cache_gib=32" in record.getMessage()
    assert "digits" in record.getMessage()
    memory.check_cache_gib(1000, torch.device("cpu"))
    assert len(caplog.records) == 1


def test_a_backend_says_what_it_chose_and_takes_what_is_given(tiny_qwen):
    checkpoint = load_checkpoint(Qwen2VLOptions(model=str(tiny_qwen("qwen2_5_vl")), device="cpu"))
    assert Qwen2VLBackend(checkpoint).chosen == {}  # A CPU's is a constant.
    small = Qwen2VLBackend(checkpoint, cache_gib=1e-6)
    assert small._shared._limits.cache == 1024  # one pass
    with pytest.raises(ValueError, match="cache_gib"):
        Qwen2VLOptions(model="x", cache_gib=0)
