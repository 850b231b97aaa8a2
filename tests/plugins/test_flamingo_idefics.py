"""IDEFICS-1 under the flamingo backend, against transformers' own processor."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_flamingo as tiny
import torch
from qwen_reference import ask, make_image

from pointer_rl.errors import InputError
from pointer_rl.local.batching import LocalBackend
from pointer_rl.types import BackendError, Decoding, Message, Prompt, Request, Response
from pointer_rl_flamingo.idefics import Idefics
from pointer_rl_flamingo.loading import load_model
from pointer_rl_flamingo.options import FlamingoOptions

GREEDY = Decoding(max_new_tokens=5)
BEAM = Decoding(max_new_tokens=5, num_beams=3, length_penalty=0.0)
ANSWERS = ("red cat", "a")
IMAGE_TOKENS = ["<fake_token_around_image>", "<image>"]


@pytest.fixture(scope="module", params=["idefics", "idefics-instruct"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Name, folder, model, processor."""
    folder = tmp_path_factory.mktemp(request.param)
    instructed = request.param == "idefics-instruct"
    return request.param, folder, *tiny.make_idefics(folder, instructed=instructed)


@pytest.fixture
def model(made) -> Idefics:
    return load_model(FlamingoOptions(model=str(made[1]), device="cpu"))[0]


PROMPTS = [
    Prompt(
        (
            Message("user", (make_image(1), "a cat?")),
            Message("assistant", ("red",)),
            Message("user", (make_image(2, 90, 30), "and this?")),
        )
    ),
    ask("a dog?"),
    ask(make_image(3, 40, 90), "what?"),
]


def arguments_of(made: Any, prompt: Prompt) -> dict[str, torch.Tensor]:
    """As transformers' processor makes them of one prompt."""
    name, _, _, processor = made
    if name == "idefics":
        parts: list[Any] = []
        for message in prompt.messages:
            for part in message.parts:
                if not isinstance(part, str):
                    parts.append(part.open())
                elif message.role == "user":
                    parts.append(f"{part}\n")
                else:
                    parts[-1] += f"{part}\n"
        return dict(processor(text=[parts], return_tensors="pt", add_end_of_utterance_token=False))
    # The documented form: a turn's end is text of the turn.
    parts = []
    for message in prompt.messages:
        start = ("\n" if parts else "") + message.role.capitalize() + ":"
        for part in message.parts:
            if isinstance(part, str):
                parts.append(f"{start} {part}" if start else part)
            else:
                parts += [start, part.open()] if start else [part.open()]
            start = ""
        parts[-1] += "<end_of_utterance>"
    parts[-1] += "\nAssistant:"
    return dict(processor(text=[parts], return_tensors="pt", add_end_of_utterance_token=False))


@torch.no_grad()
def logits(made: Any, prompt: Prompt, following: list[int]) -> torch.Tensor:
    """[1 + len(following), V], unpadded."""
    arguments = arguments_of(made, prompt)
    length = arguments["input_ids"].shape[1]
    more = torch.tensor([following], dtype=torch.long)
    arguments["input_ids"] = torch.cat([arguments["input_ids"], more], dim=1)
    arguments["attention_mask"] = torch.ones_like(arguments["input_ids"])
    if "image_attention_mask" in arguments:
        mask = arguments["image_attention_mask"]
        last = mask[:, -1:].expand(-1, len(following), -1)
        arguments["image_attention_mask"] = torch.cat([mask, last], dim=1)
    return made[2](**arguments).logits[0, length - 1 :]


def greedy(made: Any, model: Idefics, prompt: Prompt, length: int) -> list[int]:
    vocabulary = model.tokenizer.get_vocab()
    tokens: list[int] = []
    while len(tokens) < length and not {*model.stop_ids} & {*tokens}:
        last = logits(made, prompt, tokens)[-1]
        last[[vocabulary[each] for each in IMAGE_TOKENS]] = -torch.inf
        best = last.topk(2)
        assert best.values[0] - best.values[1] > 0.001, "a near-tie: take another seed"
        tokens.append(int(best.indices[0]))
    return tokens


def answers(
    model: Idefics, requests: list[Request], batch_tokens: int = 1024
) -> list[Response | BackendError]:
    backend = LocalBackend(model, fingerprint="-", batch_tokens=batch_tokens, advice="-")
    return [result for _, result in sorted(backend.run(requests), key=lambda each: each[0])]


def test_prompts_are_what_the_processor_makes_of_them(made, model):
    for prompt in PROMPTS:
        expected = arguments_of(made, prompt)
        ours = model.arguments([(model.encode(prompt), ())])
        assert torch.equal(ours["input_ids"], expected["input_ids"])
        if prompt.images:
            assert ours.keys() == expected.keys()
            for name, tensor in expected.items():
                assert torch.equal(ours[name], tensor), name


def test_a_batch_is_answered_as_each_prompt_alone(made, model):
    requests = [Request(prompt, GREEDY, ANSWERS) for prompt in PROMPTS]
    for result, prompt in zip(answers(model, requests), PROMPTS, strict=True):
        expected = greedy(made, model, prompt, 5)
        assert result.text == model.tokenizer.decode(expected, skip_special_tokens=True)
        for answer, logprob in zip(ANSWERS, result.score_logprobs, strict=True):
            tokens = model.encode_answer(answer)
            rows = logits(made, prompt, tokens).log_softmax(-1)
            naive = sum(float(rows[place, token]) for place, token in enumerate(tokens))
            assert logprob == pytest.approx(naive, rel=1e-4)


@pytest.mark.parametrize("decoding", [GREEDY, BEAM], ids=["greedy", "beam"])
def test_batches_change_nothing(model, decoding):
    requests = [Request(prompt, decoding, ANSWERS) for prompt in PROMPTS]
    together, alone = answers(model, requests), answers(model, requests, batch_tokens=1)
    assert [each.text for each in together] == [each.text for each in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.score_logprobs == pytest.approx(other.score_logprobs, rel=1e-4)


def test_an_image_changes_the_answer(model):
    prompts = [ask(make_image(seed), "what?") for seed in (1, 2)]
    first, second = answers(model, [Request(prompt, None, ANSWERS) for prompt in prompts])
    assert first.score_logprobs != pytest.approx(second.score_logprobs, rel=1e-3)


def test_an_answer_has_the_tokens_that_it_has_after_the_prompt(made, model):
    name, *_ = made
    *tokens, end = model.encode_answer("red")
    assert model.tokenizer.decode(tokens) == "red"
    ends = "</s>" if name == "idefics" else "<end_of_utterance>"
    assert end == model.tokenizer.convert_tokens_to_ids(ends)
    with pytest.raises(InputError, match="<image>"):
        model.encode_answer("a <image>")


def test_what_cannot_be_shown_fails_alone(model):
    requests = [
        Request(ask(make_image(1), "what is <image>?"), GREEDY),
        Request(ask("a " * 600), GREEDY),
        Request(ask("a"), GREEDY),
    ]
    results = answers(model, requests)
    assert "1 images but 2 <image>" in results[0].message
    assert "show fewer demonstrations" in results[1].message
    assert isinstance(results[2], Response)


def test_fingerprints_name_the_family(made):
    fingerprint = load_model(FlamingoOptions(model=str(made[1]), device="cpu"))[1]
    assert fingerprint.startswith("flamingo-idefics-float32-")
