"""The vllm plugin's own logic over a hand-written engine; tests/with_vllm has vLLM itself."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from qwen_reference import ask, make_image
from transformers import AutoTokenizer

from pointer_rl.datasets.images import ImageBytes
from pointer_rl.errors import InputError, MissingExtraError
from pointer_rl.local.templates import Chat
from pointer_rl.registry import registry
from pointer_rl.types import BackendError, Decoding, Message, Prompt, Request, Response
from pointer_rl_glyphs.dataset import MODEL_DIR
from pointer_rl_vllm.backend import VLLMBackend
from pointer_rl_vllm.options import VLLMOptions
from pointer_rl_vllm.prompts import PromptEncoder

TOKENIZER = AutoTokenizer.from_pretrained(MODEL_DIR)
END = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
PAD = TOKENIZER.convert_tokens_to_ids("<|image_pad|>")
GREEDY = Decoding(max_new_tokens=4)
BLOCK, IMAGE_TOKENS, CONTEXT = 4, 5, 200


def logprob(tokens: Sequence[int], position: int) -> float:
    """Of the token at a position, after those before it."""
    return -(zlib.crc32(repr(list(tokens[: position + 1])).encode()) % 5000) / 1000


class RuleEngine:
    """An `Engine` whose model is a rule, with a prefix cache of blocks as vLLM's.

    Rows of cached tokens hold a token that is none, or if `plausible` the right token with a wrong
    log-probability, as uninitialised memory may.
    """

    def __init__(self, text: str = " red", *, plausible: bool = False) -> None:
        self.plausible = plausible
        self.generated = [*TOKENIZER(text)["input_ids"], END]
        self.finish_reason: str | None = None
        self.shift = 0
        """Added to the ids of the rows."""
        self.waiting: list[Any] = []
        self.scored: list[bool] = []
        """Of each scored prompt, whether it was read from the cache."""
        self.cached: set[tuple[int, ...]] = set()
        self.fails: Exception | None = None

    def expand(self, token_ids: Sequence[int], images: Sequence[Any]) -> list[int]:
        assert list(token_ids).count(PAD) == len(images)
        keys = iter(images)
        return [
            token
            for each in token_ids
            for token in (
                [zlib.crc32(next(keys)[0].encode())] * IMAGE_TOKENS if each == PAD else [each]
            )
        ]

    def enqueue(self, token_ids, images, decoding, *, use_cache=True):
        tokens = self.expand(token_ids, images)
        if len(tokens) >= CONTEXT:
            raise InputError(f"vLLM refuses the prompt: {len(tokens)} tokens")
        self.waiting.append((tokens, decoding, use_cache))

    def wait(self):
        if self.fails is not None:
            raise self.fails
        waiting, self.waiting = self.waiting, []
        return [self.answer(*each) for each in waiting]

    def abort(self):
        self.waiting = []

    def count(self, token_ids, images):
        return len(self.expand(token_ids, images))

    def answer(self, tokens: list[int], decoding: Decoding | None, use_cache: bool) -> Any:
        blocks = [tuple(tokens[:end]) for end in range(BLOCK, len(tokens), BLOCK)]
        hits = [len(block) for block in blocks if block in self.cached]
        cached = max(hits, default=0) if use_cache else 0
        self.cached.update(blocks)
        output = SimpleNamespace(prompt_token_ids=tokens, num_cached_tokens=cached)
        if decoding is None:
            self.scored.append(use_cache)
            output.prompt_logprobs = [None] + [
                self.row(tokens, place) if place > cached else self.garbage(tokens[place])
                for place in range(1, len(tokens))
            ]
            return output
        room = min(decoding.max_new_tokens, CONTEXT - len(tokens))
        reason = "stop" if room >= len(self.generated) else "length"
        completion = SimpleNamespace(
            token_ids=self.generated[:room], finish_reason=self.finish_reason or reason
        )
        output.outputs = [completion]
        return output

    def row(self, tokens: list[int], place: int) -> dict[int, Any]:
        return {tokens[place] + self.shift: SimpleNamespace(logprob=logprob(tokens, place))}

    def garbage(self, token: int) -> dict[int, Any]:
        return {token if self.plausible else -77: SimpleNamespace(logprob=-0.5)}


def make(engine: RuleEngine) -> VLLMBackend:
    return VLLMBackend(engine, encoder_of(TOKENIZER.get_chat_template()), "rule")


def encoder_of(template: str) -> PromptEncoder:
    return PromptEncoder(TOKENIZER, Chat(TOKENIZER, template, Path("model")))


def answers(backend: VLLMBackend, *requests: Request) -> list[Any]:
    results = dict(backend.run(requests))
    assert sorted(results) == list(range(len(requests)))
    return [results[index] for index in range(len(requests))]


def naive_score(engine: RuleEngine, prompt: Prompt, answer: str) -> float:
    """Written out: the chat up to the answer, then each of its tokens and the end."""
    text = TOKENIZER.apply_chat_template(
        [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                    for part in prompt.messages[0].parts
                ],
            }
        ],
        tokenize=False,
        add_generation_prompt=True,
    )
    images = [(image.key, None) for image in prompt.images]
    tokens = engine.expand(TOKENIZER(text)["input_ids"], images)
    total = 0.0
    for token in (*TOKENIZER(answer)["input_ids"], END):
        tokens.append(token)
        total += logprob(tokens, len(tokens) - 1)
    return total


ONE = ask(make_image(1), "a cat\n", make_image(2), "this?")
TWO = ask("a dog?")


def test_an_answer_and_scores_come_together():
    engine = RuleEngine("red")
    results = answers(
        make(engine), Request(ONE, GREEDY, ("blue", "")), Request(TWO, None, ("blue",))
    )
    for result, prompt, scored in zip(results, (ONE, TWO), (("blue", ""), ("blue",)), strict=True):
        expected = [naive_score(engine, prompt, each) for each in scored]
        assert result.score_logprobs == pytest.approx(expected)
    assert [each.text for each in results] == ["red", None]
    assert results[0].usage.images == 2
    assert results[0].usage.generated_tokens == len(engine.generated)
    tokens = engine.expand([*make(engine)._encoder.encode(ONE)], [("", 0), ("", 0)])
    assert results[0].usage.prompt_tokens == len(tokens)


@pytest.mark.parametrize("plausible", [False, True])
def test_a_score_whose_tokens_were_cached_is_asked_again_without_the_cache(plausible):
    """Of several lengths: blocks end before, at and after the answer's start."""
    engine = RuleEngine(plausible=plausible)
    scored = tuple("light blue"[:length] for length in range(11))
    backend = make(engine)
    prompts = [ONE, *(ask("a dog?" + "a" * length) for length in range(5))]
    for prompt in prompts:
        expected = [naive_score(engine, prompt, each) for each in scored]
        for _ in range(2):
            [result] = answers(backend, Request(prompt, GREEDY, scored))
            assert result.score_logprobs == pytest.approx(expected)
    assert engine.scored.count(False) > 4
    assert engine.scored.count(True) == 2 * len(prompts) * len(scored)


def test_rows_of_other_tokens_are_no_score():
    engine = RuleEngine()
    engine.shift = 1
    [result] = answers(make(engine), Request(ONE, GREEDY, ("blue",)))
    assert result == BackendError("vLLM returned no log-probabilities of the answer")
    assert engine.scored == [True, False]


def test_an_answer_that_was_cut_for_lack_of_room_is_a_failure():
    long = ask("cat " * 42)
    [fits] = answers(make(RuleEngine("red")), Request(long, Decoding(max_new_tokens=1)))
    engine = RuleEngine("red cat dog " * 20)
    [cut] = answers(make(engine), Request(long, Decoding(max_new_tokens=100)))
    assert isinstance(fits, Response)
    assert isinstance(cut, BackendError)
    assert "cut after" in cut.message
    assert "max_model_len" in cut.message


def test_the_longest_answer_that_was_asked_for_is_no_failure():
    engine = RuleEngine("red cat")
    [result] = answers(make(engine), Request(ONE, Decoding(max_new_tokens=2)))
    assert result.text == TOKENIZER.decode(engine.generated[:2])
    assert result.usage.generated_tokens == 2


def test_a_generation_that_was_aborted_is_a_failure():
    engine = RuleEngine()
    engine.finish_reason = "abort"
    [result] = answers(make(engine), Request(ONE, GREEDY))
    assert result == BackendError("vLLM did not answer (finish_reason abort)")


def test_what_cannot_be_asked_fails_alone():
    broken = ask(ImageBytes(b"no image", "broken.png"), "this?")
    requests = [
        Request(ONE, GREEDY, ("blue",)),
        Request(broken, GREEDY),
        Request(ask("cat " * 300), GREEDY, ("blue",)),
        Request(ONE, Decoding(num_beams=2)),
        Request(ask("what is <|image_pad|>?", make_image(1)), GREEDY),
        Request(ONE, GREEDY, ("blue", "a <|im_end|>")),
        Request(TWO, GREEDY),
    ]
    first, *failures, last = answers(make(RuleEngine("red")), *requests)
    assert (first.text, last.text) == ("red", "red")
    whys = ("broken.png", "refuses the prompt", "num_beams=1", "<|image_pad|>", "<|im_end|>")
    for failure, why in zip(failures, whys, strict=True):
        assert isinstance(failure, BackendError)
        assert why in failure.message


def test_an_interrupted_call_leaves_nothing_behind():
    engine = RuleEngine("red")
    backend = make(engine)
    engine.fails = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        answers(backend, Request(ONE, GREEDY))
    engine.fails = None
    assert [each.text for each in answers(backend, Request(TWO, GREEDY))] == ["red"]


def test_a_text_ends_before_a_stop_string():
    engine = RuleEngine("red cat")
    whole = TOKENIZER.decode(engine.generated[:-1])
    decoding = Decoding(max_new_tokens=20, stop=("zzz", whole[2:4]))
    [result] = answers(make(engine), Request(ONE, decoding))
    assert result.text == whole[:2]


def test_counting_is_of_whole_prompts_with_their_answers():
    engine = RuleEngine()
    requests = [Request(ONE, GREEDY, ("blue", "a")), Request(TWO, None, ("a",))]
    counted = make(engine).count([*requests, Request(ask("<|im_end|>"), GREEDY)])
    expected = sum(
        engine.count(make(engine)._encoder.encode(each.prompt), [("", 0)] * len(each.prompt.images))
        + sum(len(TOKENIZER(answer)["input_ids"]) + 1 for answer in each.score)
        for each in requests
    )
    assert counted.prompt_tokens == expected
    assert engine.scored == []


# --- chat templates ---

IMAGES_FIRST = (
    "{% for message in messages %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|image_pad|>{% endif %}{% endfor %}"
    "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


def test_a_template_that_moves_images_moves_none():
    encoder = encoder_of(IMAGES_FIRST)
    mixed = Prompt((Message("user", ("one ", make_image(1), "what? ", make_image(2), "this?")),))
    assert TOKENIZER.decode(encoder.encode(mixed)) == "one <|image_pad|>what? <|image_pad|>this?"
    turns = Prompt(
        (
            Message("user", (make_image(1), "what?")),
            Message("assistant", ("cat",)),
            Message("user", (make_image(2), "this?")),
        )
    )
    assert TOKENIZER.decode(encoder.encode(turns)) == "<|image_pad|>what?cat<|image_pad|>this?"
    assert encoder.end_id == TOKENIZER.eos_token_id


def test_a_template_without_images_is_refused():
    with pytest.raises(InputError, match="no place for images"):
        encoder_of("{% for m in messages %}{{ m.content[-1].text }}{% endfor %}")


# --- options ---


@pytest.mark.parametrize(
    "options",
    [
        {"gpu_memory_utilization": 0.0},
        {"tensor_parallel_size": 0},
        {"max_model_len": 0},
        {"min_pixels": 9, "max_pixels": 8},
    ],
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match="must"):
        VLLMOptions(model="m", **options)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vllm is installed")
def test_a_missing_package_is_one_line():
    with pytest.raises(MissingExtraError, match=r"vllm: pip install 'pointer-rl\[vllm\]'"):
        registry().create("backend", "vllm", {"model": str(MODEL_DIR)})
