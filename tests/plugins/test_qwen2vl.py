"""The qwen2vl backend's answers, against transformers' models one prompt at a time."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
import transformers
from qwen_reference import Reference, ask, make_image

from pointer_rl.types import Decoding, Message, Prompt, Request, Response
from pointer_rl_qwen2vl import create_backend
from pointer_rl_qwen2vl.backend import Qwen2VLBackend
from pointer_rl_qwen2vl.checkpoint import load_checkpoint
from pointer_rl_qwen2vl.inputs import PromptEncoder
from pointer_rl_qwen2vl.options import Qwen2VLOptions
from pointer_rl_qwen2vl.patches import PatchCache
from pointer_rl_qwen2vl.plain import PlainModel

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
GREEDY = Decoding(max_new_tokens=6)
BEAM = Decoding(max_new_tokens=6, num_beams=3, length_penalty=0.0)
ANSWERS = ("red cat", "a", "")


# 3, 0, 1 and 2 images, of different sizes; the first and the last share one.
PROMPTS = [
    ask(
        make_image(1),
        "what? red\n",
        make_image(2, 90, 30),
        "what? cat\n",
        make_image(3, 200, 180),
        "this?",
    ),
    ask("Question: what is a dog? Short answer:"),
    Prompt(
        (
            Message("system", ("Answer.",)),
            Message("user", (make_image(4, 31, 80), "is this a cat?")),
            Message("assistant", ("red",)),
            Message("user", ("and this?",)),
        )
    ),
    ask("a dog? ", make_image(1), make_image(5, 64, 64)),
]


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


@pytest.fixture(params=("shared", "plain"))
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def backend(tiny_qwen, family: str, engine: str) -> Qwen2VLBackend:
    options = Qwen2VLOptions(model=str(tiny_qwen(family)), device="cpu", engine=engine)
    return create_backend(options)


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
    """Filled with the rows of each pass through the language model."""
    steps: list[int] = []
    checkpoint.model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: steps.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    return steps


@pytest.mark.parametrize("decoding", [GREEDY, BEAM], ids=["greedy", "beam"])
def test_generation_ends_at_a_stop_string(checkpoint, engine, decoding):
    backend = Qwen2VLBackend(checkpoint, engine=engine)
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


def test_a_row_that_stopped_is_counted_without_the_padding_after_it(checkpoint, engine):
    backend = Qwen2VLBackend(checkpoint, engine=engine)
    wholes = texts(backend, GREEDY, PROMPTS)
    stopping = Decoding(max_new_tokens=6, stop=(wholes[0][:2],))
    assert not any(wholes[0][:2] in whole for whole in wholes[1:])
    alone = answers(backend, [Request(PROMPTS[0], stopping)])
    together = answers(backend, [Request(prompt, stopping) for prompt in PROMPTS])
    assert together[0] == alone[0]
    assert [each.text for each in together[1:]] == wholes[1:]
    assert [each.usage.generated_tokens for each in together[1:]] == [6, 6, 6]


def test_a_stop_string_does_not_match_across_the_end_of_the_prompt(checkpoint, engine):
    backend = Qwen2VLBackend(checkpoint, engine=engine)
    [whole] = texts(backend, GREEDY, PROMPTS[:1])
    stop = "\n" + whole[0]  # the prompt ends in "assistant\n"
    assert texts(backend, Decoding(max_new_tokens=6, stop=(stop,)), PROMPTS[:1]) == [whole]


def test_generation_ends_at_the_checkpoints_own_end_tokens(tiny_qwen, tmp_path, engine):
    folder = tmp_path / "model"
    shutil.copytree(tiny_qwen("qwen2_5_vl"), folder)
    reference = Reference(folder, "qwen2_5_vl")
    tokens = reference.greedy(PROMPTS[0], 6)
    assert tokens[3] not in tokens[:3]
    config = json.loads((folder / "generation_config.json").read_text())
    config["eos_token_id"].append(tokens[3])
    (folder / "generation_config.json").write_text(json.dumps(config))
    backend = create_backend(Qwen2VLOptions(model=str(folder), device="cpu", engine=engine))
    [result] = answers(backend, [Request(PROMPTS[0], GREEDY)])
    assert result.text == reference.text(tokens[:3])
    assert result.usage.generated_tokens == 4


# --- the official processor ---


def test_inputs_are_the_official_processors(checkpoint, tiny_qwen):
    """Needs torchvision, without which AutoProcessor does not load."""
    pytest.importorskip("torchvision")
    folder = tiny_qwen("qwen2_5_vl")
    processor = transformers.AutoProcessor.from_pretrained(folder, backend="pil")
    model = PlainModel(checkpoint, PromptEncoder(checkpoint), PatchCache(checkpoint))
    for prompt in PROMPTS:
        ours = model.arguments([(model.encode(prompt), ())])
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
