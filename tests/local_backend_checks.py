"""Checks that every local backend has to pass.

A plugin's tests make a `LocalCase` for each of its models and run `CHECKS` on it:

    @pytest.mark.parametrize("check", CHECKS)
    @pytest.mark.parametrize("name", ["llava", …])
    def test_local_backend(name, check): check(make_case(name))

The answers are compared with a `Reference`, which runs one prompt at a time, unpadded, in float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from qwen_reference import ask, make_image

from pointer_rl.datasets.images import ImageBytes
from pointer_rl.types import BackendError, Decoding, Message, Prompt, Request, Response, VQABackend

__all__ = ["CHECKS", "LocalCase", "Reference"]

GREEDY = Decoding(max_new_tokens=5)
BEAM = Decoding(max_new_tokens=5, num_beams=3, length_penalty=0.0)
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
            Message("user", (make_image(4, 31, 80), "is this a cat?")),
            Message("assistant", ("red",)),
            Message("user", ("and this?",)),
        )
    ),
    ask("a dog? ", make_image(1), make_image(5, 64, 64)),
]


class Reference(ABC):
    """A model by its documented usage, one prompt at a time, unpadded, in float64."""

    @abstractmethod
    def prompt_tokens(self, prompt: Prompt) -> int:
        """Number of tokens of the prompt, images included."""

    @abstractmethod
    def logits(self, prompt: Prompt, following: Sequence[int]) -> torch.Tensor:
        """[1 + len(following), V]: logits after the prompt and after each token that follows it."""

    @abstractmethod
    def beam(self, prompt: Prompt, decoding: Decoding) -> tuple[list[int], float]:
        """The best beam's tokens, and its lead over the next beam."""

    @abstractmethod
    def answer_tokens(self, answer: str) -> list[int]:
        """The tokens of an answer, including the one that ends it."""

    @abstractmethod
    def text(self, tokens: Sequence[int]) -> str:
        """Tokens as text, without special tokens."""

    def greedy(self, prompt: Prompt, length: int) -> list[int]:
        tokens: list[int] = []
        for _ in range(length):
            best = self.logits(prompt, tokens)[-1].topk(2)
            assert best.values[0] - best.values[1] > 0.001, "a near-tie: take another seed"
            tokens.append(int(best.indices[0]))
        return tokens

    def score(self, prompt: Prompt, answer: str) -> float:
        tokens = self.answer_tokens(answer)
        logprobs = self.logits(prompt, tokens).log_softmax(-1)
        return sum(logprobs[place, token].item() for place, token in enumerate(tokens))


@dataclass(frozen=True)
class LocalCase:
    """A backend to check, and the reference that it must equal."""

    create: Callable[..., tuple[VQABackend, Any]]
    """Options (batch_tokens) → a new backend, and its language model: a torch module that is called
    with inputs_embeds or input_ids."""
    reference: Reference
    special_token: str
    """A token that no answer may contain."""

    def backend(self, **options: Any) -> VQABackend:
        return self.create(**options)[0]


def answers(backend: VQABackend, requests: Sequence[Request]) -> list[Any]:
    """Results in the order of the requests."""
    results = dict(backend.run(requests))
    assert sorted(results) == list(range(len(requests)))
    return [results[index] for index in range(len(requests))]


def texts(backend: VQABackend, decoding: Decoding, prompts: Sequence[Prompt]) -> list[str]:
    return [each.text for each in answers(backend, [Request(p, decoding) for p in prompts])]


def check_greedy(case: LocalCase) -> None:
    """Prompts are decoded in a batch as they are alone."""
    results = answers(case.backend(), [Request(prompt, GREEDY) for prompt in PROMPTS])
    for result, prompt in zip(results, PROMPTS, strict=True):
        assert result.text == case.reference.text(case.reference.greedy(prompt, 5))
        assert result.usage.prompt_tokens == case.reference.prompt_tokens(prompt)
        assert result.usage.generated_tokens == 5
        assert result.usage.images == len(prompt.images)


def check_beam(case: LocalCase) -> None:
    """So are beams, also in a call with another decoding."""
    requests = [Request(prompt, decoding) for prompt in PROMPTS for decoding in (BEAM, GREEDY)]
    results = answers(case.backend(), requests)[::2]
    for result, prompt in zip(results, PROMPTS, strict=True):
        tokens, lead = case.reference.beam(prompt, BEAM)
        assert lead > 0.001, "a near-tie: take another seed"
        assert result.text == case.reference.text(tokens)


def check_scores(case: LocalCase) -> None:
    """log p(answer) is the sum over its tokens and its end, with and without generation."""
    backend = case.backend()
    requests = [Request(prompt, GREEDY, ANSWERS) for prompt in PROMPTS]
    requests += [Request(prompt, None, ANSWERS[::-1]) for prompt in PROMPTS]
    results = answers(backend, requests)
    for result, request in zip(results, requests, strict=True):
        expected = [case.reference.score(request.prompt, answer) for answer in request.score]
        assert result.score_logprobs == pytest.approx(expected, rel=1e-4)
        assert (result.text is None) == (request.decoding is None)


def check_single(case: LocalCase) -> None:
    """Results do not depend on batch size and order."""
    requests = [Request(prompt, GREEDY, ANSWERS) for prompt in PROMPTS]
    together = answers(case.backend(), requests)
    alone = answers(case.backend(batch_tokens=1), requests)
    backwards = answers(case.backend(), requests[::-1])[::-1]
    for other in (alone, backwards):
        for result, expected in zip(other, together, strict=True):
            assert result.text == expected.text
            assert result.usage == expected.usage
            assert result.score_logprobs == pytest.approx(expected.score_logprobs, rel=1e-4)


def check_images(case: LocalCase) -> None:
    """Content and place of an image affect the result."""
    one, other = make_image(1), make_image(2)
    shown = [
        ask(one, "a cat\n", other, "this?"),
        ask(other, "a cat\n", one, "this?"),
        ask("a cat\n", one, other, "this?"),
        ask(one, "a cat\n", one, "this?"),
    ]
    results = answers(case.backend(), [Request(each, None, ("a dog",)) for each in shown])
    scores = [result.score_logprobs[0] for result in results]
    assert min(abs(a - b) for i, a in enumerate(scores) for b in scores[:i]) > 1e-3


def check_stop(case: LocalCase) -> None:
    """Generation is cut at the first stop string, and later tokens of the row are not counted."""
    backend = case.backend()
    wholes = texts(backend, GREEDY, PROMPTS)
    stop = wholes[0][1:3]
    stopping = replace(GREEDY, stop=("never", stop))
    results = answers(backend, [Request(prompt, stopping) for prompt in PROMPTS])
    assert [each.text for each in results] == [whole.partition(stop)[0] for whole in wholes]
    assert results[0].usage.generated_tokens < 5
    assert answers(backend, [Request(PROMPTS[0], stopping)]) == results[:1]
    [beam] = texts(backend, BEAM, PROMPTS[:1])
    [stopped] = texts(backend, replace(BEAM, stop=(beam[:1],)), PROMPTS[:1])
    assert beam[:1] not in stopped


def check_failures(case: LocalCase) -> None:
    """A prompt that cannot be encoded, or an answer that cannot be scored, fails alone."""
    backend = case.backend()
    expected = answers(backend, [Request(each, GREEDY, ANSWERS) for each in PROMPTS])
    broken = ask(ImageBytes(b"no image", "broken.png"), "this?")
    requests = [Request(each, GREEDY, ANSWERS) for each in (*PROMPTS[:2], broken, *PROMPTS[2:])]
    requests.append(Request(PROMPTS[0], GREEDY, ("a", f"a {case.special_token}")))
    results = answers(backend, requests)
    for failure, why in ((results.pop(), case.special_token), (results.pop(2), "broken.png")):
        assert isinstance(failure, BackendError)
        assert why in failure.message
    for result, other in zip(results, expected, strict=True):
        assert isinstance(result, Response)
        assert result.text == other.text
        assert result.score_logprobs == pytest.approx(other.score_logprobs, rel=1e-4)


def limit_memory(module: Any, tokens: int, longest: int = 100_000) -> None:
    """Simulate memory for so many tokens per forward pass, and for rows of some length."""

    def refuse(module: Any, args: Any, kwargs: Any) -> None:
        inputs = kwargs.get("inputs_embeds")
        shape = (kwargs["input_ids"] if inputs is None else inputs).shape
        if shape[0] * shape[1] > tokens or shape[1] > longest:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB")

    module.register_forward_pre_hook(refuse, with_kwargs=True)


def check_memory(case: LocalCase) -> None:
    """If memory runs out, smaller batches are used. A prompt that is too long fails alone."""
    requests = [Request(prompt, GREEDY, ANSWERS) for prompt in (*PROMPTS, *PROMPTS[:3])]
    expected = answers(case.backend(), requests)
    longest = max(each.usage.prompt_tokens for each in expected) + 12
    backend, module = case.create()
    limit_memory(module, tokens=longest, longest=longest)
    too_long = Request(ask("a dog " * longest), GREEDY)
    results = answers(backend, [*requests[:2], too_long, *requests[2:]])
    failure = results.pop(2)
    assert isinstance(failure, BackendError)
    assert "out of memory on a single prompt" in failure.message
    assert "\n" not in failure.message
    for result, other in zip(results, expected, strict=True):
        assert result.text == other.text
        assert result.score_logprobs == pytest.approx(other.score_logprobs, rel=1e-4)


CHECKS = [
    check_greedy,
    check_beam,
    check_scores,
    check_single,
    check_images,
    check_stop,
    check_failures,
    check_memory,
]
