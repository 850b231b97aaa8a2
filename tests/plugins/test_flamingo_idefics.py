"""The IDEFICS family under the flamingo backend, against transformers' own processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from qwen_reference import ask, picture
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from pointer_rl.errors import InputError
from pointer_rl.local.batching import LocalBackend
from pointer_rl.types import BackendError, Decoding, Message, Prompt, Request, Response
from pointer_rl_flamingo import FlamingoOptions
from pointer_rl_flamingo.idefics import Idefics
from pointer_rl_flamingo.loading import load_model

GREEDY = Decoding(max_new_tokens=5)
BEAM = Decoding(max_new_tokens=5, num_beams=3, length_penalty=0.0)
ANSWERS = ("red cat", "a")
IMAGE_TOKENS = ["<fake_token_around_image>", "<image>"]
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
}
TEMPLATE = (
    "{% for message in messages %}{{ message.role.capitalize() }}"
    "{% if message.content[0].type == 'image' %}:{% else %}: {% endif %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def tokenizer_of(*special: str) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["User: what is this? Assistant: red cat, a dog."], trainer)
    tokenizer.add_special_tokens(
        [AddedToken(each, special=True, normalized=False) for each in ("<s>", "</s>", *special)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def idefics(instructed: bool) -> tuple[Any, Any]:
    said = ["<end_of_utterance>"] if instructed else []
    tokenizer = tokenizer_of(*said, *IMAGE_TOKENS)
    processor = transformers.IdeficsProcessor(IdeficsImageProcessorPil(image_size=28), tokenizer)
    vision = {**VISION, "embed_dim": VISION["hidden_size"]}
    del vision["hidden_size"]
    config = transformers.IdeficsConfig(
        **TEXT,
        vocab_size=len(tokenizer) - 2,
        additional_vocab_size=2,
        vision_config=vision,
        perceiver_config={"use_resampler": False},
        alpha_initializer="zeros",
        use_resampler=not instructed,
    )
    if not instructed:
        config.perceiver_config = type(config.perceiver_config)(
            use_resampler=True,
            resampler_n_latents=3,
            resampler_depth=1,
            resampler_n_heads=2,
            resampler_head_dim=8,
        )
    model = transformers.IdeficsForVisionText2Text(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "alpha" in name:
                parameter.fill_(0.7)
    return model, processor


def idefics2() -> tuple[Any, Any]:
    tokenizer = tokenizer_of(*IMAGE_TOKENS)
    processor = transformers.Idefics2Processor(
        Idefics2ImageProcessorPil(
            size={"longest_edge": 28, "shortest_edge": 14}, do_image_splitting=False
        ),
        tokenizer,
        image_seq_len=3,
        chat_template=TEMPLATE,
    )
    config = transformers.Idefics2Config(
        text_config=transformers.MistralConfig(
            **TEXT, num_key_value_heads=2, vocab_size=len(processor.tokenizer)
        ),
        vision_config=VISION,
        perceiver_config={
            "resampler_n_latents": 3,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 8,
            "num_key_value_heads": 1,
            "hidden_size": TEXT["hidden_size"],
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return transformers.Idefics2ForConditionalGeneration(config), processor


def idefics3() -> tuple[Any, Any]:
    rows = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    tokenizer = tokenizer_of("<end_of_utterance>", *IMAGE_TOKENS, "<global-img>", *rows)
    processor = transformers.Idefics3Processor(
        Idefics3ImageProcessorPil(size={"longest_edge": 56}, max_image_size={"longest_edge": 28}),
        tokenizer,
        image_seq_len=4,
        chat_template=f"<s>{TEMPLATE}",
    )
    config = transformers.Idefics3Config(
        text_config=transformers.LlamaConfig(
            **TEXT, num_key_value_heads=2, vocab_size=len(processor.tokenizer)
        ),
        vision_config=VISION,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    return transformers.Idefics3ForConditionalGeneration(config), processor


KINDS = {
    "idefics": lambda: idefics(instructed=False),
    "idefics-instruct": lambda: idefics(instructed=True),
    "idefics2": idefics2,
    "idefics3": idefics3,
}


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Name, folder, model, processor."""
    torch.manual_seed(3)
    model, processor = KINDS[request.param]()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed" not in name:
                parameter.normal_(0.0, 1.5 / parameter[0].numel() ** 0.5)
            elif "embed" in name:
                parameter.normal_(0.0, 0.5)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return request.param, folder, model.eval(), processor


@pytest.fixture
def model(made) -> Idefics:
    return load_model(FlamingoOptions(model=str(made[1]), device="cpu"))[0]


PROMPTS = [
    Prompt(
        (
            Message("user", (picture(1), "a cat?")),
            Message("assistant", ("red",)),
            Message("user", (picture(2, 90, 30), "and this?")),
        )
    ),
    ask("a dog?"),
    ask(picture(3, 40, 90), "what?"),
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
    if name == "idefics-instruct":
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
    return dict(
        processor.apply_chat_template(
            conversation,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    )


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
        ours = model._arguments([(model.encode(prompt), ())])
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
    prompts = [ask(picture(seed), "what?") for seed in (1, 2)]
    first, second = answers(model, [Request(prompt, None, ANSWERS) for prompt in prompts])
    assert first.score_logprobs != pytest.approx(second.score_logprobs, rel=1e-3)


def test_an_answer_has_the_tokens_that_it_has_after_the_prompt(made, model):
    name, *_ = made
    *tokens, end = model.encode_answer("red")
    spaced = name in ("idefics2", "idefics3")  # the template writes "Assistant: red"
    assert model.tokenizer.decode(tokens) == (" red" if spaced else "red")
    ends = "</s>" if name == "idefics" else "<end_of_utterance>"
    assert end == model.tokenizer.convert_tokens_to_ids(ends)
    with pytest.raises(InputError, match="<image>"):
        model.encode_answer("a <image>")


def test_what_cannot_be_shown_fails_alone(model):
    requests = [
        Request(ask(picture(1), "what is <image>?"), GREEDY),
        Request(ask("a " * 600), GREEDY),
        Request(ask("a"), GREEDY),
    ]
    results = answers(model, requests)
    assert "1 images but 2 <image>" in results[0].message
    assert "show fewer demonstrations" in results[1].message
    assert isinstance(results[2], Response)


def test_fingerprints_name_the_family(made, tmp_path: Path):
    name, folder, *_ = made
    fingerprint = load_model(FlamingoOptions(model=str(folder), device="cpu"))[1]
    assert fingerprint.startswith(f"flamingo-{name.removesuffix('-instruct')}-float32-")
