"""The hf backend's answers, on tiny models of several families."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from hf_reference import HFReference
from local_backend_checks import (
    ANSWERS,
    BEAM,
    CHECKS,
    GREEDY,
    PROMPTS,
    LocalCase,
    answers,
    check_images,
    check_single,
)
from qwen_reference import ask, make_image
from tiny_models import NEEDED

from pointer_rl.types import BackendError, Request
from pointer_rl_hf import create_backend
from pointer_rl_hf.checkpoint import load_checkpoint
from pointer_rl_hf.model import HFModel, make_backend
from pointer_rl_hf.options import HFBackendOptions

SPECIAL = {
    "llava": "<image>",
    "idefics2": "<end_of_utterance>",
    "idefics3": "<end_of_utterance>",
    "gemma3": "<end_of_turn>",
    "internvl": "<IMG_CONTEXT>",
}


# PaliGemma's processor makes an array of tensors in a way that numpy deprecates.
PALIGEMMA = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def load(folder: Path, **options: str):
    return load_checkpoint(HFBackendOptions(model=str(folder), device="cpu", **options))


@pytest.mark.parametrize("family", SPECIAL)
@pytest.mark.parametrize("check", CHECKS)
def test_a_local_backend(tiny_model, family, check):
    folder = tiny_model(family)

    def create(batch_tokens: int | None = None):
        checkpoint = load(folder)
        return make_backend(checkpoint, batch_tokens), checkpoint.model.get_decoder()

    check(LocalCase(create, HFReference(folder, family), SPECIAL[family]))


# Models of other kinds, whose prompts are not written out by hand here.
OTHERS = ["llava_onevision", "gemma4", "smolvlm", "mistral3"]


@pytest.mark.parametrize("family", OTHERS)
@pytest.mark.parametrize("check", [check_single, check_images])
def test_a_batch_is_its_prompts_one_at_a_time(tiny_model, family, check, caplog):
    if family in NEEDED:
        pytest.importorskip(NEEDED[family])
    folder = tiny_model(family)

    def create(batch_tokens: int | None = None):
        checkpoint = load(folder)
        return make_backend(checkpoint, batch_tokens), checkpoint.model.get_decoder()

    check(LocalCase(create, None, ""))
    assert "one at a time" not in caplog.text


class Forced(transformers.LogitsProcessor):
    """Makes `generate` write given tokens, and adds up their log-probabilities."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.logprobs: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        token = self.tokens[len(self.logprobs)]
        self.logprobs.append(scores.log_softmax(-1)[0, token].item())
        return torch.full_like(scores, -1e9).index_fill(1, torch.tensor([token]), 0.0)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("mllama", {}),
        pytest.param("paligemma", {"chat_template": "plain"}, marks=PALIGEMMA),
        ("gemma3", {}),
        *((family, {}) for family in OTHERS),
    ],
)
def test_a_score_is_what_decoding_token_by_token_gives(tiny_model, family, options):
    """Also where what follows a prompt is told by its token type, or sees images apart from it."""
    if family in NEEDED:
        pytest.importorskip(NEEDED[family])
    checkpoint = load(tiny_model(family), **options)
    model = HFModel(checkpoint)
    prompts = [prompt for prompt in PROMPTS if prompt.images]
    backend = make_backend(checkpoint, None)
    results = answers(backend, [Request(prompt, None, ("red cat",)) for prompt in prompts])
    for prompt, result in zip(prompts, results, strict=True):
        forced = Forced(model.encode_answer("red cat"))
        checkpoint.model.generate(
            **model.encode(prompt).tensors,
            max_new_tokens=len(forced.tokens),
            logits_processor=transformers.LogitsProcessorList([forced]),
        )
        assert result.score_logprobs[0] == pytest.approx(sum(forced.logprobs), rel=1e-4)


def test_a_model_that_pads_in_its_own_way_takes_one_prompt_at_a_time(tiny_model, caplog):
    checkpoint = load(tiny_model("mllama"))
    rows: list[int] = []
    checkpoint.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    with caplog.at_level(logging.WARNING):
        backend = make_backend(checkpoint, None)
    assert "MllamaProcessor pads batches in a way of its own" in caplog.text
    rows.clear()
    results = answers(backend, [Request(each, GREEDY, ANSWERS) for each in PROMPTS])
    assert set(rows) == {1}
    assert not any(isinstance(result, BackendError) for result in results)


def test_beams_that_would_see_other_images_are_refused(tiny_model, monkeypatch):
    """As transformers 5.23 does it to GLM-4V: a silent mistake, but for this check."""
    checkpoint = load(tiny_model("llava"))
    right = checkpoint.model._expand_multimodal_outputs

    def mixed_up(*args: object, **arguments: object):
        images = right(*args, **arguments)
        images["image"].pooler_output = images["image"].pooler_output[::-1]
        return images

    monkeypatch.setattr(checkpoint.model, "_expand_multimodal_outputs", mixed_up)
    requests = [Request(PROMPTS[0], BEAM), Request(PROMPTS[0], GREEDY)]
    beam, greedy = answers(make_backend(checkpoint, None), requests)
    assert isinstance(beam, BackendError)
    assert "mixes up the images of this model's beams; ask without beams" in beam.message
    assert greedy.text


def test_no_family_with_ordinary_padding_goes_one_at_a_time(tiny_model, caplog):
    for family in SPECIAL:
        create_backend(HFBackendOptions(model=str(tiny_model(family)), device="cpu"))
    assert not caplog.records


@PALIGEMMA
def test_a_model_that_takes_no_prompt_without_an_image_fails_it_alone(tiny_model):
    backend = make_backend(load(tiny_model("paligemma"), chat_template="plain"), None)
    results = answers(backend, [Request(prompt, BEAM) for prompt in PROMPTS])
    assert [isinstance(each, BackendError) for each in results] == [False, True, False, False]
    assert "the processor refuses the prompt" in results[1].message


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        (ask(make_image(1), "what is <image>?"), "refuses the prompt"),
        (ask(make_image(1), "a dog " * 2000), "tokens, the model takes 2048; use fewer"),
    ],
    ids=["image token in the text", "too long"],
)
def test_a_prompt_that_the_model_does_not_take_fails_alone(tiny_model, prompt, why):
    backend = make_backend(load(tiny_model("llava")), None)
    results = answers(backend, [Request(each, GREEDY) for each in (PROMPTS[0], prompt)])
    assert why in results[1].message
    assert results[:1] == answers(backend, [Request(PROMPTS[0], GREEDY)])


@pytest.mark.parametrize("error", [StopIteration(), RuntimeError("sizes differ"), OSError("gone")])
def test_whatever_a_processor_raises_fails_its_prompt_alone(tiny_model, monkeypatch, error):
    checkpoint = load(tiny_model("llava"))
    process = type(checkpoint.processor).__call__

    def broken(self, **given):
        if "odd" in given["text"][0]:
            raise error
        return process(self, **given)

    monkeypatch.setattr(type(checkpoint.processor), "__call__", broken)
    backend = make_backend(checkpoint, None)
    requests = [Request(each, GREEDY) for each in (PROMPTS[0], ask(make_image(1), "odd"))]
    good, bad = answers(backend, requests)
    assert good.text
    assert bad.message == f"the processor refuses the prompt: {str(error) or 'StopIteration'}"


def test_generation_ends_at_the_checkpoints_own_end_tokens(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("llava"), tmp_path / "model")
    reference = HFReference(folder, "llava")
    tokens = reference.greedy(PROMPTS[0], 5)
    assert tokens[3] not in tokens[:3]
    path = folder / "generation_config.json"
    config = json.loads(path.read_text())
    config["eos_token_id"].append(tokens[3])
    path.write_text(json.dumps(config))
    [result] = answers(make_backend(load(folder), None), [Request(PROMPTS[0], GREEDY)])
    assert result.text == reference.text(tokens[:3])
    assert result.usage.generated_tokens == 4
