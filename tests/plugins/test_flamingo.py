"""The flamingo backend on OpenFlamingo, against the model on one unpadded prompt at a time."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
import tiny_flamingo as tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from local_backend_checks import (
    ANSWERS,
    BEAM,
    CHECKS,
    GREEDY,
    PROMPTS,
    LocalCase,
    Reference,
    answers,
)
from PIL import Image
from qwen_reference import ask, make_image

from pointer_rl.datasets.images import ImageBytes
from pointer_rl.local.batching import LocalBackend
from pointer_rl.registry import registry
from pointer_rl.types import Decoding, Example, Message, Prompt, Request, Response
from pointer_rl_flamingo.loading import load_model
from pointer_rl_flamingo.native import OpenFlamingo
from pointer_rl_flamingo.options import FlamingoOptions
from pointer_rl_flamingo.pixels import pixels
from pointer_rl_flamingo.prompts import render


@pytest.fixture(scope="module", params=tiny.KINDS)
def parts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tiny.Parts:
    return tiny.make_parts(tmp_path_factory.mktemp(request.param), request.param, seed=10)


@pytest.fixture(scope="module")
def options(parts: tiny.Parts) -> dict[str, str]:
    return {
        "model": str(parts.checkpoint),
        "language_model": str(parts.language),
        "vision_model": str(parts.vision),
        "device": "cpu",
    }


@pytest.fixture(scope="module")
def loaded(options) -> OpenFlamingo:
    return load_model(FlamingoOptions(**options))[0]


@pytest.fixture
def model(loaded) -> OpenFlamingo:
    """Of the test's own: it may be hooked."""
    return copy.deepcopy(loaded)


def backend_of(model: OpenFlamingo, batch_tokens: int = 1024) -> LocalBackend:
    return LocalBackend(model, fingerprint="-", batch_tokens=batch_tokens, advice="-")


class FlamingoReference(Reference):
    def __init__(self, model: OpenFlamingo, parts: tiny.Parts) -> None:
        self.model = copy.deepcopy(model.model).double()
        self.tokenizer = parts.tokenizer
        self.end = parts.tokenizer.convert_tokens_to_ids("<|endofchunk|>")

    def ids(self, prompt: Prompt) -> list[int]:
        return self.tokenizer(render(prompt))["input_ids"]

    def prompt_tokens(self, prompt: Prompt) -> int:
        return len(self.ids(prompt))

    def media(self, prompt: Prompt) -> torch.Tensor | None:
        if not prompt.images:
            return None
        batch = torch.stack([pixels(each.open(), tiny.SIDE) for each in prompt.images])
        return self.model.project(self.model.encode(batch.double())[None])

    @torch.no_grad()
    def logits(self, prompt: Prompt, following: Sequence[int]) -> torch.Tensor:
        ids = self.ids(prompt)
        whole = torch.tensor([[*ids, *following]])
        return self.model(whole, media=self.media(prompt)).logits[0, len(ids) - 1 :]

    @torch.no_grad()
    def beam(self, prompt: Prompt, decoding: Decoding) -> tuple[list[int], float]:
        ids = torch.tensor([self.ids(prompt)])
        output = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            media=self.media(prompt),
            max_new_tokens=decoding.max_new_tokens,
            num_beams=decoding.num_beams,
            length_penalty=decoding.length_penalty,
            num_return_sequences=2,
            use_cache=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
        first, second = output.sequences_scores.tolist()
        return output.sequences[0, ids.shape[1] :].tolist(), first - second

    def answer_tokens(self, answer: str) -> list[int]:
        return [*self.tokenizer(answer)["input_ids"], self.end]

    def text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)


# --- the answers ---


@pytest.mark.parametrize("check", CHECKS)
def test_a_local_backend(loaded, parts, check):
    def create(batch_tokens: int = 1024) -> tuple[LocalBackend, torch.nn.Module]:
        model = copy.deepcopy(loaded)
        return backend_of(model, batch_tokens), model.model.lang_encoder

    check(LocalCase(create, FlamingoReference(loaded, parts), "<image>"))


def favour(model: OpenFlamingo, *tokens: str) -> None:
    """Make tokens the likeliest, the first of them most."""
    ids = [model.tokenizer.convert_tokens_to_ids(each) for each in tokens]

    def add(module, arguments, logits):
        for rank, token_id in enumerate(ids):
            logits[..., token_id] += 1000.0 - 100.0 * rank
        return logits

    model.model.lang_encoder.lm_head.register_forward_hook(add)


@pytest.mark.parametrize("decoding", [GREEDY, BEAM], ids=["greedy", "beam"])
def test_no_image_is_ever_generated(model, decoding):
    favour(model, "<image>", "a")
    [result] = answers(backend_of(model), [Request(PROMPTS[0], decoding)])
    assert result.text == "aaaaa"


def test_the_end_of_a_chunk_ends_an_answer_and_the_end_of_text_does_not(model):
    favour(model, "<|endofchunk|>")
    [result] = answers(backend_of(model), [Request(PROMPTS[0], GREEDY)])
    assert (result.text, result.usage.generated_tokens) == ("", 1)
    favour(model, "<|endoftext|>")  # now twice as likely
    favour(model, "<|endoftext|>")
    [result] = answers(backend_of(model), [Request(PROMPTS[0], GREEDY)])
    assert (result.text, result.usage.generated_tokens) == ("", 5)


# --- images ---


def test_an_image_is_opened_and_encoded_once(model, monkeypatch):
    opened: list[str] = []
    open_image = ImageBytes.open
    monkeypatch.setattr(
        ImageBytes, "open", lambda image: opened.append(image.name) or open_image(image)
    )
    encoded: list[int] = []
    model.model.vision_encoder.register_forward_pre_hook(
        lambda module, args, named: encoded.append(len(named["pixel_values"])), with_kwargs=True
    )
    requests = [
        Request(ask(make_image(1), f"Question:{n}? Short answer:"), GREEDY) for n in range(5)
    ]
    answers(backend_of(model), requests)
    assert len(opened) == len(encoded) == 1


def test_images_are_cropped_as_in_training():
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, (640, 427, 3), dtype=np.uint8)
    image = Image.fromarray(array)
    # torchvision: the long side is rounded down (335), the margins (55.5) to the even number.
    resized = np.asarray(image.resize((224, 335), Image.Resampling.BICUBIC), dtype=np.float64)
    expected = resized[56:280].transpose(2, 0, 1) / 255
    for channel, (mean, std) in enumerate(
        ((0.48145466, 0.26862954), (0.4578275, 0.26130258), (0.40821073, 0.27577711))
    ):
        expected[channel] = (expected[channel] - mean) / std
    assert np.abs(pixels(image, 224).numpy() - expected).max() < 1e-5


@given(st.integers(1, 300), st.integers(1, 300))
def test_any_size_becomes_a_square(width, height):
    assert pixels(Image.new("L", (width, height)), 28).shape == (3, 28, 28)


# --- what fails, alone ---


def test_what_cannot_be_shown_fails_alone(model):
    requests = [
        Request(PROMPTS[0], GREEDY),
        Request(ask(make_image(1), "what is <image>?"), GREEDY),
        Request(ask("what? " * 300), GREEDY),
    ]
    results = answers(backend_of(model), requests)
    assert isinstance(results[0], Response)
    assert "1 images but 2 <image>" in results[1].message
    assert f"reads {tiny.CONTEXT} at most" in results[2].message


@pytest.mark.parametrize("decoding", [None, Decoding(max_new_tokens=8)], ids=["score", "generate"])
def test_a_prompt_that_leaves_just_enough_room_is_answered(model, decoding):
    room = 8 if decoding else 2  # one token and the end
    fits = ask("a" * (tiny.CONTEXT - room - 1) + ":")
    assert len(model.encode(fits).token_ids) == tiny.CONTEXT - room
    longer = ask("a" * (tiny.CONTEXT - room) + ":")
    scored = () if decoding else ("a",)
    results = answers(backend_of(model), [Request(p, decoding, scored) for p in (fits, longer)])
    assert isinstance(results[0], Response)
    assert "show fewer demonstrations" in results[1].message


# --- prompts ---


def example(name: str, answer: str) -> Example:
    return Example(name, 0, make_image(len(name)), f"what is {name}?", (answer,) * 3)


def test_the_short_answer_prompt_is_that_of_openflamingo():
    builder = registry().create("prompt", "short-answer", {"instructions": ""})
    demonstrations = [example("a", "red"), example("bb", "a cat")]
    prompt = builder.build(example("ccc", "?"), demonstrations)
    assert render(prompt) == (
        "<image>Question:what is a? Short answer:red<|endofchunk|>\n"
        "<image>Question:what is bb? Short answer:a cat<|endofchunk|>\n"
        "<image>Question:what is ccc? Short answer:"
    )


def test_a_conversation_is_written_chunk_by_chunk():
    builder = registry().create("prompt", "chat", {"instructions": "Be brief."})
    prompt = builder.build(example("bb", "?"), [example("a", "red")])
    assert render(prompt) == (
        "Be brief.\n<image>what is a?\nred<|endofchunk|>\n<image>what is bb?\n"
    )


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([("user", ("Q:",))], "Q:"),
        ([("user", (0, "a", 1, "b"))], "<image>a<|endofchunk|>\n<image>b\n"),
        ([("user", (0, 1, "both?"))], "<image><image>both?\n"),
        ([("user", ("first", 0, "b:"))], "first<image>b:"),
        ([("user", (0,))], "<image>"),
        ([("user", ("q:",)), ("assistant", ("a",)), ("user", (0, "q:"))],
         "q:a<|endofchunk|>\n<image>q:"),
        ([("user", (0, "q:")), ("assistant", ("it is",))], "<image>q:it is"),
        ([("system", ("s",)), ("user", (0, "q:")), ("user", (1, "q:"))],
         "s\n<image>q:<|endofchunk|>\n<image>q:"),
    ],
)  # fmt: skip
def test_any_prompt_has_a_text(messages, text):
    prompt = Prompt(
        tuple(
            Message(role, tuple(make_image(p) if isinstance(p, int) else p for p in parts))
            for role, parts in messages
        )
    )
    assert render(prompt) == text


PARTS = st.lists(st.one_of(st.sampled_from(["a", "b:", " c"]), st.just(0)), max_size=4)
ROLES = st.sampled_from(["system", "user", "assistant"])


@given(st.lists(st.tuples(ROLES, PARTS), max_size=5))
def test_texts_and_images_keep_their_order(messages):
    image = make_image(0)
    prompt = Prompt(
        tuple(Message(role, tuple(part or image for part in parts)) for role, parts in messages)
    )
    written = re.sub(r"<\|endofchunk\|>|\n", "", render(prompt))
    parts = [part or "<image>" for _, parts in messages for part in parts]
    assert written == "".join(parts)
    assert "<|endofchunk|>\n<|endofchunk|>" not in render(prompt)


# --- the plugin ---


def test_the_registry_makes_the_backend(options):
    backend = registry().create("backend", "flamingo", {**options, "batch_tokens": "64"})
    assert backend.fingerprint.startswith("flamingo-open_flamingo-float32-")
    [result] = answers(backend, [Request(PROMPTS[0], GREEDY, ANSWERS)])
    assert len(result.score_logprobs) == 3


def test_the_plugin_is_light_to_import():
    code = "import sys, pointer_rl_flamingo; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
