"""The qwen2vl backend's images, and requests that fail: alone, and as one line."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from PIL import Image
from qwen_reference import ask, make_image

from pointer_rl.datasets.images import ImageBytes, ImageFile
from pointer_rl.types import BackendError, Decoding, Message, Prompt, Request, Response
from pointer_rl_qwen2vl import create_backend, patches
from pointer_rl_qwen2vl.backend import Qwen2VLBackend
from pointer_rl_qwen2vl.checkpoint import load_checkpoint
from pointer_rl_qwen2vl.options import Qwen2VLOptions
from pointer_rl_qwen2vl.tower import VisionTower

GREEDY = Decoding(max_new_tokens=6)
ANSWERS = ("red cat", "a", "")


PROMPTS = [
    ask(make_image(1), "what? red\n", make_image(2, 90, 30), "this?"),
    ask("Question: what is a dog? Short answer:"),
    Prompt((Message("system", ("Answer.",)), Message("user", (make_image(3, 31, 80), "a cat?")))),
    ask("a dog? ", make_image(1), make_image(4, 64, 64)),
]


def answers(backend: Qwen2VLBackend, requests: list[Request]) -> list[Response | BackendError]:
    results = dict(backend.run(requests))
    assert sorted(results) == list(range(len(requests)))
    return [results[index] for index in range(len(requests))]


@pytest.fixture(params=("shared", "plain"))
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


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


def test_an_image_is_opened_once_while_it_fits_the_cache(checkpoint, engine, monkeypatch):
    opened: list[str] = []
    one, other = (CountedImage(make_image(seed), opened) for seed in (1, 2))
    again = CountedImage(make_image(1), opened)
    prompts = [ask(one, other, "this?"), ask(again, "this?"), ask(other, one, "this?")]
    requests = [Request(prompt, GREEDY) for prompt in prompts]
    backend = Qwen2VLBackend(checkpoint, engine=engine)
    for _ in range(2):
        answers(backend, requests)
        assert sorted(opened) == sorted([one.key, other.key])
    opened.clear()
    monkeypatch.setattr(patches, "_CAPACITY_BYTES", 0)
    answers(Qwen2VLBackend(checkpoint, engine=engine), requests)
    # Within a window the shared engine keeps features: what was cut into patches may go.
    assert len(opened) == (2 if engine == "shared" else 5)


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        (ask(ImageBytes(b"no image", "broken.png"), "this?"), "broken.png"),
        (ask(make_image(1), ImageFile(Path("/nowhere/gone.png")), "this?"), "gone.png"),
        (ask(make_image(1), make_image(9, width=402, height=2), "this?"), "aspect ratio"),
        (ask(make_image(1), "what is <|image_pad|>?"), "contains that token"),
    ],
    ids=["unreadable", "no file, thus no key", "too narrow", "pad in the text"],
)
def test_a_bad_prompt_fails_alone(checkpoint, engine, prompt, why):
    backend = Qwen2VLBackend(checkpoint, engine=engine)
    expected = answers(backend, [Request(each, GREEDY, ANSWERS) for each in PROMPTS])
    requests = [Request(each, GREEDY, ANSWERS) for each in (*PROMPTS[:2], prompt, *PROMPTS[2:])]
    results = answers(backend, requests)
    failure = results.pop(2)
    assert isinstance(failure, BackendError)
    assert why in failure.message
    assert results == expected


def test_a_bad_answer_to_score_fails_alone(checkpoint):
    backend = Qwen2VLBackend(checkpoint)
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
    prompt = ask(make_image(3, 3 * side, 3 * side), "this?")

    def prompt_tokens(**pixels: int) -> int:
        backend = create_backend(Qwen2VLOptions(model=folder, device="cpu", **pixels))
        [result] = answers(backend, [Request(prompt, None)])
        return result.usage.prompt_tokens

    assert prompt_tokens() - prompt_tokens(max_pixels=5 * side * side) == 3 * 3 - 2 * 2
    assert prompt_tokens(min_pixels=10 * side * side, max_pixels=20 * side * side) == (
        prompt_tokens() - 3 * 3 + 4 * 4
    )


# --- memory ---


def limit_memory(checkpoint, tokens: int, rows: int = 1000) -> None:
    """As if no more than so many tokens, or rows, fitted."""

    def refuse(module, args, kwargs):
        if kwargs["inputs_embeds"][..., 0].numel() > tokens or len(kwargs["inputs_embeds"]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB")

    checkpoint.model.model.language_model.register_forward_pre_hook(refuse, with_kwargs=True)


@pytest.mark.parametrize("tokens", [64, 90, 150])
def test_a_batch_that_does_not_fit_is_halved(checkpoint, engine, caplog, tokens):
    requests = [Request(prompt, GREEDY, ANSWERS) for prompt in (*PROMPTS, *PROMPTS[:3])]
    expected = answers(Qwen2VLBackend(checkpoint, engine=engine), requests)
    limit_memory(checkpoint, tokens)
    backend = Qwen2VLBackend(checkpoint, engine=engine)
    results = answers(backend, requests)
    for result, full in zip(results, expected, strict=True):
        assert result.text == full.text
        assert result.usage == full.usage
        assert result.score_logprobs == pytest.approx(full.score_logprobs, rel=1e-4)
    assert all("out of memory" in record.getMessage() for record in caplog.records)
    assert 0 < len(caplog.records) < 8
    caplog.clear()
    answers(backend, requests)  # what was learnt is kept: no pass fails again
    assert not caplog.records


def test_a_prompt_that_does_not_fit_alone_is_an_error(checkpoint, engine):
    limit_memory(checkpoint, 0)
    for request in (Request(PROMPTS[0], GREEDY), Request(PROMPTS[0], None, ANSWERS)):
        [result] = answers(Qwen2VLBackend(checkpoint, engine=engine), [request])
        assert isinstance(result, BackendError)
        assert "out of memory on a single prompt" in result.message
        assert "\n" not in result.message


@pytest.mark.parametrize("rows", [1, 2])
def test_rows_that_do_not_fit_while_decoding_are_decoded_fewer_at_a_time(
    checkpoint, engine, caplog, rows
):
    requests = [Request(prompt, GREEDY, ANSWERS) for prompt in PROMPTS]
    expected = answers(Qwen2VLBackend(checkpoint, engine=engine), requests)
    limit_memory(checkpoint, 1000, rows)
    results = answers(Qwen2VLBackend(checkpoint, engine=engine), requests)
    for result, full in zip(results, expected, strict=True):
        assert result.text == full.text
        assert result.score_logprobs == pytest.approx(full.score_logprobs, rel=1e-4)
    assert caplog.records


def test_many_answers_that_do_not_fit_are_scored_fewer_at_a_time(checkpoint):
    scored = tuple(f"a dog {number}" for number in range(30))
    request = Request(PROMPTS[0], GREEDY, scored)
    [expected] = answers(Qwen2VLBackend(checkpoint), [request])
    limit_memory(checkpoint, 70)
    [result] = answers(Qwen2VLBackend(checkpoint), [request])
    assert result.text == expected.text
    assert result.score_logprobs == pytest.approx(expected.score_logprobs, rel=1e-4)


def test_a_prompt_that_does_not_fit_leaves_the_others_as_they_were(checkpoint):
    """Where one prompt is too long, the batches of others stay as large as they were."""
    requests = [Request(prompt, GREEDY, ANSWERS) for prompt in (*PROMPTS, *PROMPTS[:3])]
    passes: list[int] = []

    def refuse_long(module, args, kwargs):
        passes.append(1)
        if kwargs["inputs_embeds"].shape[1] > 200:
            raise torch.OutOfMemoryError("CUDA out of memory")

    checkpoint.model.model.language_model.register_forward_pre_hook(refuse_long, with_kwargs=True)
    backend = Qwen2VLBackend(checkpoint)
    expected = answers(backend, requests)
    usual = len(passes)
    # Two, so that they fail together first.
    long = [Request(ask(word * 90), GREEDY) for word in ("a dog? ", "dog? a ")]
    results = answers(backend, [*requests, *long])
    for _ in long:
        assert "out of memory on a single prompt" in results.pop().message
    assert [each.text for each in results] == [each.text for each in expected]
    passes.clear()
    assert answers(backend, requests) == expected
    assert len(passes) == usual


@pytest.mark.parametrize("images", [0, 1, 2])
def test_images_that_do_not_fit_are_encoded_fewer_at_a_time(checkpoint, images, monkeypatch):
    requests = [Request(prompt, GREEDY) for prompt in PROMPTS]
    expected = answers(Qwen2VLBackend(checkpoint), requests)

    encode = VisionTower.encode

    def refuse(self, pixels, grids):
        if len(grids) > images:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB")
        return encode(self, pixels, grids)

    monkeypatch.setattr(VisionTower, "encode", refuse)
    results = answers(Qwen2VLBackend(checkpoint), requests)
    if images:
        assert [each.text for each in results] == [each.text for each in expected]
        return
    assert [isinstance(each, BackendError) for each in results] == [True, False, True, True]
    assert "out of memory on an image" in results[0].message
    assert "\n" not in results[0].message


def test_scores_that_are_no_numbers_are_an_error(checkpoint, engine):
    with torch.no_grad():
        checkpoint.model.lm_head.weight[0] = float("inf")
    backend = Qwen2VLBackend(checkpoint, engine=engine)
    [result] = answers(backend, [Request(PROMPTS[0], None, ("a",))])
    assert isinstance(result, BackendError)
    assert "bfloat16" in result.message
