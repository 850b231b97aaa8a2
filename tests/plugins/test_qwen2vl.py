"""The qwen2vl backend's answers, against transformers' models one prompt at a time."""

from __future__ import annotations

import io
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from pointer_rl.images import ImageBytes
from pointer_rl.types import Decoding, Message, Prompt, Request, Response
from pointer_rl_qwen2vl import Qwen2VLOptions, create_backend, inputs
from pointer_rl_qwen2vl.backend import Qwen2VLBackend
from pointer_rl_qwen2vl.checkpoint import load_checkpoint

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
MODEL_NAMES = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}
GREEDY = Decoding(max_new_tokens=6)
BEAM = Decoding(max_new_tokens=6, num_beams=3, length_penalty=0.0)
ANSWERS = ("red cat", "a", "")


def picture(seed: int, width: int = 60, height: int = 45) -> ImageBytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return ImageBytes(file.getvalue(), f"picture {seed}")


def ask(*parts: ImageBytes | str) -> Prompt:
    return Prompt((Message("user", parts),))


# 3, 0, 1 and 2 images, of different sizes; the first and the last share one.
PROMPTS = [
    ask(
        picture(1), "what? red\n", picture(2, 90, 30), "what? cat\n", picture(3, 200, 180), "this?"
    ),
    ask("Question: what is a dog? Short answer:"),
    Prompt(
        (
            Message("system", ("Answer.",)),
            Message("user", (picture(4, 31, 80), "is this a cat?")),
            Message("assistant", ("red",)),
            Message("user", ("and this?",)),
        )
    ),
    ask("a dog? ", picture(1), picture(5, 64, 64)),
]


class Reference:
    """One prompt at a time, unpadded, by the models' documented usage."""

    def __init__(self, folder: Path, family: str) -> None:
        model_class = getattr(transformers, f"{MODEL_NAMES[family]}ForConditionalGeneration")
        self.model = model_class.from_pretrained(folder, dtype=torch.float64).eval()
        self.tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        self.image_processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self.default_system = "" if family == "qwen3_vl" else "You are a helpful assistant."

    def inputs(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        turns = [(message.role, message.parts) for message in prompt.messages]
        if self.default_system and turns[0][0] != "system":
            turns.insert(0, ("system", (self.default_system,)))
        text = ""
        for role, parts in turns:
            text += f"<|im_start|>{role}\n"
            for part in parts:
                pad = "<|vision_start|><|image_pad|><|vision_end|>"
                text += part if isinstance(part, str) else pad
            text += "<|im_end|>\n"
        text += "<|im_start|>assistant\n"
        images = [image.open() for image in prompt.images]
        arrays = self.image_processor(images=images, return_tensors="pt") if images else {}
        for grid in arrays.get("image_grid_thw", []):
            text = text.replace("<|image_pad|>", "<|placeholder|>" * int(grid.prod() // 4), 1)
        ids = self.tokenizer(text.replace("<|placeholder|>", "<|image_pad|>"), return_tensors="pt")
        input_ids = ids["input_ids"]
        return {"input_ids": input_ids, **self.types(input_ids), **arrays}

    def types(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"mm_token_type_ids": (input_ids == self.model.config.image_token_id).long()}

    @torch.no_grad()
    def logits(self, arguments: dict[str, torch.Tensor], following: list[int]) -> torch.Tensor:
        """[1 + len(following), V]: after the prompt, and after each token that follows it."""
        following_ids = torch.tensor([following], dtype=torch.long)
        input_ids = torch.cat([arguments["input_ids"], following_ids], dim=1)
        whole = {**arguments, "input_ids": input_ids, **self.types(input_ids)}
        return self.model(**whole).logits[0, arguments["input_ids"].shape[1] - 1 :]

    def greedy(self, prompt: Prompt, length: int) -> list[int]:
        arguments, tokens = self.inputs(prompt), []
        for _ in range(length):
            best = self.logits(arguments, tokens)[-1].topk(2)
            assert best.values[0] - best.values[1] > 0.01, "a near-tie: take another seed"
            tokens.append(int(best.indices[0]))
        return tokens

    @torch.no_grad()
    def beam(self, prompt: Prompt, decoding: Decoding) -> list[int]:
        arguments = self.inputs(prompt)
        output = self.model.generate(
            **arguments,
            max_new_tokens=decoding.max_new_tokens,
            num_beams=decoding.num_beams,
            length_penalty=decoding.length_penalty,
            num_return_sequences=2,
            do_sample=False,
            repetition_penalty=1.0,
            output_scores=True,
            return_dict_in_generate=True,
        )
        first, second = output.sequences_scores.tolist()
        assert first - second > 0.001, "a near-tie: take another seed"
        return output.sequences[0, arguments["input_ids"].shape[1] :].tolist()

    def score(self, prompt: Prompt, answer: str) -> float:
        end = self.tokenizer.convert_tokens_to_ids("<|im_end|>")
        tokens = [*self.tokenizer(answer, add_special_tokens=False)["input_ids"], end]
        logprobs = self.logits(self.inputs(prompt), tokens).log_softmax(-1)
        return sum(logprobs[place, token].item() for place, token in enumerate(tokens))

    def text(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)


def answers(backend: Qwen2VLBackend, requests: list[Request]) -> list[Response]:
    results = dict(backend.run(requests))
    assert sorted(results) == list(range(len(requests)))
    return [results[index] for index in range(len(requests))]


def texts(backend: Qwen2VLBackend, decoding: Decoding, prompts: list[Prompt]) -> list[str]:
    return [each.text for each in answers(backend, [Request(p, decoding) for p in prompts])]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def reference(tiny_qwen, family: str) -> Reference:
    return Reference(tiny_qwen(family), family)


@pytest.fixture
def backend(tiny_qwen, family: str) -> Qwen2VLBackend:
    return create_backend(Qwen2VLOptions(model=str(tiny_qwen(family)), device="cpu"))


@pytest.fixture
def checkpoint(tiny_qwen):
    return load_checkpoint(Qwen2VLOptions(model=str(tiny_qwen("qwen2_5_vl")), device="cpu"))


# --- the answers ---


def test_a_batch_is_decoded_as_each_prompt_alone(reference, backend):
    requests = [Request(prompt, decoding) for decoding in (GREEDY, BEAM) for prompt in PROMPTS]
    expected = [reference.greedy(prompt, 6) for prompt in PROMPTS]
    expected += [reference.beam(prompt, BEAM) for prompt in PROMPTS]
    assert len({tuple(tokens) for tokens in expected}) > len(PROMPTS)  # beam differs from greedy
    results = answers(backend, requests)
    assert [result.text for result in results] == [reference.text(each) for each in expected]
    for result, request in zip(results, requests, strict=True):
        prompt_tokens = reference.inputs(request.prompt)["input_ids"].shape[1]
        assert result.usage.prompt_tokens == prompt_tokens
        assert result.usage.generated_tokens == 6
        assert result.usage.images == len(request.prompt.images)


def test_prompts_without_any_image_are_padded_rightly(reference, backend):
    prompts = [PROMPTS[1], ask("a?")]
    expected = [reference.text(reference.greedy(prompt, 6)) for prompt in prompts]
    results = answers(backend, [Request(prompt, GREEDY, ("red cat",)) for prompt in prompts])
    assert [result.text for result in results] == expected
    for result, prompt in zip(results, prompts, strict=True):
        naive = reference.score(prompt, "red cat")
        assert result.score_logprobs == pytest.approx((naive,), rel=1e-4)


def test_scores_are_those_of_one_forward_pass_per_answer(reference, backend):
    results = answers(backend, [Request(prompt, None, ANSWERS) for prompt in PROMPTS])
    for result, prompt in zip(results, PROMPTS, strict=True):
        assert result.text is None
        naive = [reference.score(prompt, answer) for answer in ANSWERS]
        assert result.score_logprobs == pytest.approx(naive, rel=1e-4)


def test_the_same_requests_give_the_same_bits(backend):
    requests = [Request(prompt, GREEDY, ANSWERS) for prompt in PROMPTS]
    assert answers(backend, requests) == answers(backend, requests)


def test_transformers_has_nothing_to_warn_of(backend):
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        answers(backend, [Request(PROMPTS[0], each, ANSWERS) for each in (GREEDY, BEAM)])
    finally:
        logger.removeHandler(handler)
    assert [record.getMessage() for record in records] == []


# --- where generation ends ---


def counted_steps(checkpoint) -> list[int]:
    """Filled with the rows of each forward pass."""
    steps: list[int] = []
    checkpoint.model.register_forward_pre_hook(
        lambda module, args, kwargs: steps.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return steps


@pytest.mark.parametrize("decoding", [GREEDY, BEAM], ids=["greedy", "beam"])
def test_generation_ends_at_a_stop_string(checkpoint, decoding):
    backend = Qwen2VLBackend(checkpoint, batch_size=8)
    [whole] = texts(backend, decoding, PROMPTS[:1])
    steps = counted_steps(checkpoint)
    stop = whole[1:3]
    stopping = Decoding(**{**vars(decoding), "stop": ("never", stop)})
    [result] = answers(backend, [Request(PROMPTS[0], stopping)])
    assert result.text.startswith(whole[0])
    assert stop not in result.text
    assert result.usage.generated_tokens < 6
    if decoding.num_beams == 1:
        assert result.text == whole[: whole.index(stop)]
        assert len(steps) == result.usage.generated_tokens


def test_a_row_that_stopped_is_counted_without_the_padding_after_it(checkpoint):
    backend = Qwen2VLBackend(checkpoint, batch_size=8)
    wholes = texts(backend, GREEDY, PROMPTS)
    stopping = Decoding(max_new_tokens=6, stop=(wholes[0][:2],))
    assert not any(wholes[0][:2] in whole for whole in wholes[1:])
    alone = answers(backend, [Request(PROMPTS[0], stopping)])
    together = answers(backend, [Request(prompt, stopping) for prompt in PROMPTS])
    assert together[0] == alone[0]
    assert [each.text for each in together[1:]] == wholes[1:]
    assert [each.usage.generated_tokens for each in together[1:]] == [6, 6, 6]


def test_a_stop_string_does_not_match_across_the_end_of_the_prompt(checkpoint):
    backend = Qwen2VLBackend(checkpoint, batch_size=8)
    [whole] = texts(backend, GREEDY, PROMPTS[:1])
    stop = "\n" + whole[0]  # the prompt ends in "assistant\n"
    assert texts(backend, Decoding(max_new_tokens=6, stop=(stop,)), PROMPTS[:1]) == [whole]


def test_generation_ends_at_the_checkpoints_own_end_tokens(tiny_qwen, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_qwen("qwen2_5_vl"), folder)
    reference = Reference(folder, "qwen2_5_vl")
    tokens = reference.greedy(PROMPTS[0], 6)
    assert tokens[3] not in tokens[:3]
    config = json.loads((folder / "generation_config.json").read_text())
    config["eos_token_id"].append(tokens[3])
    (folder / "generation_config.json").write_text(json.dumps(config))
    backend = create_backend(Qwen2VLOptions(model=str(folder), device="cpu"))
    [result] = answers(backend, [Request(PROMPTS[0], GREEDY)])
    assert result.text == reference.text(tokens[:3])
    assert result.usage.generated_tokens == 4


# --- the official processor ---


def test_inputs_are_the_official_processors(checkpoint, tiny_qwen):
    """Needs torchvision, without which AutoProcessor does not load."""
    pytest.importorskip("torchvision")
    folder = tiny_qwen("qwen2_5_vl")
    processor = transformers.AutoProcessor.from_pretrained(folder, backend="pil")
    encoder = inputs.PromptEncoder(checkpoint)
    for prompt in PROMPTS:
        [encoded] = encoder.encode([prompt])
        ours = inputs.left_pad([(encoded, ())], checkpoint)
        conversation = [
            {
                "role": message.role,
                "content": [
                    {"type": "text", "text": part}
                    if isinstance(part, str)
                    else {"type": "image", "image": part.open()}
                    for part in message.parts
                ],
            }
            for message in prompt.messages
        ]
        theirs = processor.apply_chat_template(
            conversation,
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        for name, tensor in ours.items():
            assert torch.equal(tensor, theirs[name].to(tensor.dtype)), name
