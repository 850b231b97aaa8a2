"""The qwen2vl backend's images, and requests that fail: alone, and as one line."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from PIL import Image

from pointer_rl.images import ImageBytes
from pointer_rl.types import BackendError, Decoding, Message, Prompt, Request, Response
from pointer_rl_qwen2vl import Qwen2VLOptions, create_backend, inputs
from pointer_rl_qwen2vl.backend import Qwen2VLBackend
from pointer_rl_qwen2vl.checkpoint import load_checkpoint

GREEDY = Decoding(max_new_tokens=6)
ANSWERS = ("red cat", "a", "")


def picture(seed: int, width: int = 60, height: int = 45) -> ImageBytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return ImageBytes(file.getvalue(), f"picture {seed}")


def ask(*parts: ImageBytes | str) -> Prompt:
    return Prompt((Message("user", parts),))


PROMPTS = [
    ask(picture(1), "what? red\n", picture(2, 90, 30), "this?"),
    ask("Question: what is a dog? Short answer:"),
    Prompt((Message("system", ("Answer.",)), Message("user", (picture(3, 31, 80), "a cat?")))),
    ask("a dog? ", picture(1), picture(4, 64, 64)),
]


def answers(backend: Qwen2VLBackend, requests: list[Request]) -> list[Response | BackendError]:
    results = dict(backend.run(requests))
    assert sorted(results) == list(range(len(requests)))
    return [results[index] for index in range(len(requests))]


@pytest.fixture
def checkpoint(tiny_qwen):
    return load_checkpoint(Qwen2VLOptions(model=str(tiny_qwen("qwen2_5_vl")), device="cpu"))


# --- images ---


@dataclass(frozen=True)
class CountedImage:
    """An image that notes each time it is opened."""

    image: ImageBytes
    opened: list[str] = field(compare=False)

    @property
    def key(self) -> str:
        return self.image.key

    def open(self) -> Image.Image:
        self.opened.append(self.key)
        return self.image.open()


def test_an_image_is_opened_once_while_it_fits_the_cache(checkpoint, monkeypatch):
    opened: list[str] = []
    one, other = (CountedImage(picture(seed), opened) for seed in (1, 2))
    again = CountedImage(picture(1), opened)
    prompts = [ask(one, other, "this?"), ask(again, "this?"), ask(other, one, "this?")]
    requests = [Request(prompt, GREEDY) for prompt in prompts]
    answers(Qwen2VLBackend(checkpoint, batch_size=2), requests)
    assert opened == [one.key, other.key]
    opened.clear()
    monkeypatch.setattr(inputs, "_PIXEL_CACHE_BYTES", 0)
    answers(Qwen2VLBackend(checkpoint, batch_size=2), requests)
    assert len(opened) == 5


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        (ask(ImageBytes(b"no image", "broken.png"), "this?"), "broken.png"),
        (ask(picture(1), picture(9, width=402, height=2), "this?"), "aspect ratio"),
        (ask(picture(1), "what is <|image_pad|>?"), "contains that token"),
    ],
    ids=["unreadable", "too narrow", "pad in the text"],
)
def test_a_bad_prompt_fails_alone(checkpoint, prompt, why):
    backend = Qwen2VLBackend(checkpoint, batch_size=8)
    expected = answers(backend, [Request(each, GREEDY, ANSWERS) for each in PROMPTS])
    requests = [Request(each, GREEDY, ANSWERS) for each in (*PROMPTS[:2], prompt, *PROMPTS[2:])]
    results = answers(backend, requests)
    failure = results.pop(2)
    assert isinstance(failure, BackendError)
    assert why in failure.message
    assert results == expected


def test_a_bad_answer_to_score_fails_alone(checkpoint):
    backend = Qwen2VLBackend(checkpoint, batch_size=8)
    results = answers(
        backend,
        [Request(PROMPTS[0], None, ("a", "<|image_pad|>")), Request(PROMPTS[1], None, ("a",))],
    )
    assert isinstance(results[0], BackendError)
    assert isinstance(results[1], Response)


def test_what_the_chat_template_refuses_fails_alone(tiny_qwen, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_qwen("qwen3_vl"), folder)
    path = folder / "chat_template.json"
    template = json.loads(path.read_text())["chat_template"]
    refuse = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    path.write_text(json.dumps({"chat_template": refuse + template}))
    backend = create_backend(Qwen2VLOptions(model=str(folder), device="cpu"))
    results = answers(backend, [Request(prompt, GREEDY) for prompt in PROMPTS])
    assert [isinstance(result, BackendError) for result in results] == [False, False, True, False]
    assert "no system" in results[2].message


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_max_pixels_and_min_pixels_set_the_number_of_image_tokens(tiny_qwen, family):
    folder, side = str(tiny_qwen(family)), 32 if family == "qwen3_vl" else 28
    prompt = ask(picture(3, 3 * side, 3 * side), "this?")

    def prompt_tokens(**pixels: int) -> int:
        backend = create_backend(Qwen2VLOptions(model=folder, device="cpu", **pixels))
        [result] = answers(backend, [Request(prompt, None)])
        return result.usage.prompt_tokens

    assert prompt_tokens() - prompt_tokens(max_pixels=5 * side * side) == 3 * 3 - 2 * 2
    assert prompt_tokens(min_pixels=10 * side * side, max_pixels=20 * side * side) == (
        prompt_tokens() - 3 * 3 + 4 * 4
    )


# --- memory ---


def limit_memory(checkpoint, rows: int) -> None:
    """As if no more than `rows` rows fitted."""

    def refuse(module, args, kwargs):
        if len(kwargs["input_ids"]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB")

    checkpoint.model.register_forward_pre_hook(refuse, with_kwargs=True)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_batch_that_does_not_fit_is_halved(checkpoint, caplog, rows):
    requests = [Request(prompt, GREEDY, ANSWERS) for prompt in (*PROMPTS, *PROMPTS[:3])]
    expected = answers(Qwen2VLBackend(checkpoint, batch_size=7), requests)
    limit_memory(checkpoint, rows)
    backend = Qwen2VLBackend(checkpoint, batch_size=7)
    results = answers(backend, requests)
    for result, full in zip(results, expected, strict=True):
        assert result.text == full.text
        assert result.usage == full.usage
        assert result.score_logprobs == pytest.approx(full.score_logprobs, rel=1e-4)
    sizes = [3] if rows == 3 else [3, 1]
    warned = [record.getMessage() for record in caplog.records]
    assert [f"batch_size={size} " in message for size, message in zip(sizes, warned, strict=True)]
    answers(backend, requests)  # what was learnt is kept: no pass fails again
    assert len(caplog.records) == len(sizes)


def test_a_prompt_that_does_not_fit_alone_is_an_error(checkpoint):
    limit_memory(checkpoint, 0)
    for request in (Request(PROMPTS[0], GREEDY), Request(PROMPTS[0], None, ANSWERS)):
        [result] = answers(Qwen2VLBackend(checkpoint, batch_size=4), [request])
        assert isinstance(result, BackendError)
        assert "out of memory on a single prompt" in result.message
        assert "\n" not in result.message


def test_scores_that_are_no_numbers_are_an_error(checkpoint):
    with torch.no_grad():
        checkpoint.model.lm_head.weight[0] = float("inf")
    [result] = answers(
        Qwen2VLBackend(checkpoint, batch_size=4), [Request(PROMPTS[0], None, ("a",))]
    )
    assert isinstance(result, BackendError)
    assert "bfloat16" in result.message
