"""Batching of local backends, with a fake model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pointer_rl.errors import InputError
from pointer_rl.local.batching import LocalBackend
from pointer_rl.local.decoding import Generation
from pointer_rl.types import BackendError, Decoding, Message, Prompt, Request, Response

GREEDY = Decoding()
OTHER = Decoding(num_beams=3)


@dataclass(frozen=True)
class Words:
    """A prompt as its words."""

    words: tuple[str, ...]

    @property
    def tokens(self) -> int:
        return len(self.words)


@dataclass
class WordModel:
    """Answers with the number of words and scores by lengths, within a limited memory."""

    memory: int = 10**9
    longest: int = 10**9
    """Longest row that fits."""
    passes: list[list[int]] = field(default_factory=list)
    """Lengths of the rows of each forward pass."""
    encoded: int = 0

    def encode(self, prompt: Prompt) -> Words:
        self.encoded += 1
        if "unreadable" in prompt.text:
            raise InputError("no image")
        return Words(tuple(prompt.text.split()))

    def encode_answer(self, answer: str) -> list[int]:
        if "unspeakable" in answer:
            raise InputError("no answer")
        return [*map(len, answer.split()), 0]

    def generate(self, prompts: Sequence[Words], decoding: Decoding) -> list[Generation]:
        self._run([prompt.tokens for prompt in prompts])
        if any("refused" in prompt.words for prompt in prompts):
            raise InputError("refused by the model")
        return [Generation(f"{p.tokens} {decoding.num_beams}", 2) for p in prompts]

    def score(self, rows: Sequence[tuple[Words, Sequence[int]]]) -> list[float]:
        self._run([prompt.tokens + len(answer) for prompt, answer in rows])
        return [
            float("nan") if "overflow" in prompt.words else -prompt.tokens - sum(answer) / 10
            for prompt, answer in rows
        ]

    def _run(self, lengths: list[int]) -> None:
        self.passes.append(lengths)
        if len(lengths) * max(lengths) > self.memory or max(lengths) > self.longest:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB")


def request(text: str, *score: str, decoding: Decoding | None = GREEDY) -> Request:
    return Request(Prompt((Message("user", (text,)),)), decoding, score)


def backend(model: WordModel, batch_tokens: int = 100) -> LocalBackend[Words]:
    return LocalBackend(
        model, fingerprint="words", batch_tokens=batch_tokens, advice="use fewer words"
    )


def expected(each: Request) -> tuple[str | None, list[float]]:
    tokens = len(each.prompt.text.split())
    text = None if each.decoding is None else f"{tokens} {each.decoding.num_beams}"
    return text, [-tokens - sum(map(len, answer.split())) / 10 for answer in each.score]


def words(number: int) -> str:
    return " ".join(["word"] * number)


REQUESTS = st.lists(
    st.builds(
        lambda number, score, decoding: request(words(number), *score, decoding=decoding),
        st.integers(1, 40),
        st.lists(st.sampled_from(["a", "red cat", ""]), max_size=3),
        st.sampled_from([GREEDY, OTHER, None]),
    ),
    max_size=30,
)


@given(REQUESTS, st.integers(1, 200), st.integers(44, 400))
def test_each_request_is_answered_once_within_budget_and_memory(requests, batch_tokens, memory):
    model = WordModel(memory)
    results = list(backend(model, batch_tokens).run(requests))
    assert sorted(index for index, _ in results) == list(range(len(requests)))
    for index, result in results:
        assert isinstance(result, Response)
        text, scores = expected(requests[index])
        assert result.text == text
        assert list(result.score_logprobs) == pytest.approx(scores)
        assert result.usage.prompt_tokens == len(requests[index].prompt.text.split())
        assert result.usage.generated_tokens == (0 if text is None else 2)
    for lengths in model.passes:
        assert len(lengths) == 1 or len(lengths) * max(lengths) <= batch_tokens


@given(REQUESTS, st.integers(1, 200))
def test_the_same_requests_make_the_same_batches(requests, batch_tokens):
    one, other = WordModel(), WordModel()
    list(backend(one, batch_tokens).run(requests))
    list(backend(other, batch_tokens).run(requests))
    assert one.passes == other.passes


def test_prompts_of_like_lengths_go_together():
    lengths = [3, 30, 4, 29, 5, 31]
    random.Random(0).shuffle(lengths)
    model = WordModel()
    list(backend(model).run([request(words(each)) for each in lengths]))
    assert model.passes == [[31, 30, 29], [5, 4, 3]]


def test_prompts_are_read_a_few_batches_ahead_and_answered_as_they_finish():
    model = WordModel()
    results = backend(model).run([request(words(10)) for _ in range(1000)])
    next(results)
    assert model.encoded == 40  # four batches of 100 tokens
    assert len(model.passes) == 1


def test_what_cannot_be_read_refused_or_overflows_fails_alone():
    requests = [
        request("one", "a"),
        request("two unreadable", "a"),
        request("three three three", "a"),
        request("four refused", "a"),
        request("five", "a", "unspeakable"),
        request("six overflow", "a"),
        request("seven", "a"),
    ]
    results = dict(backend(WordModel()).run(requests))
    failed = {i: r.message for i, r in results.items() if isinstance(r, BackendError)}
    assert failed.pop(5).startswith("the model's output overflows")
    assert failed == {1: "no image", 3: "refused by the model", 4: "no answer"}
    for index in (0, 2, 6):
        text, scores = expected(requests[index])
        assert results[index].text == text
        assert list(results[index].score_logprobs) == pytest.approx(scores)


def test_where_memory_runs_out_the_budget_is_halved_and_kept(caplog):
    model = WordModel(memory=60)
    loop = backend(model)
    requests = [request(words(10)) for _ in range(20)]
    assert all(isinstance(result, Response) for _, result in loop.run(requests))
    assert model.passes[0] == [10] * 10
    assert max(map(len, model.passes[1:])) == 5
    assert "set batch_tokens=50 to avoid the failed passes" in caplog.text
    model.passes.clear()
    list(loop.run(requests))
    assert model.passes == [[10] * 5] * 4


def test_many_answers_are_scored_fewer_at_a_time():
    model = WordModel(memory=30)
    each = request(words(10), *["a b"] * 9)
    [(_, result)] = backend(model, 1000).run([each])
    assert isinstance(result, Response)
    assert list(result.score_logprobs) == pytest.approx(expected(each)[1])


def test_a_prompt_that_does_not_fit_alone_leaves_the_budget_as_it_was():
    model = WordModel(longest=100)
    loop = backend(model, 1000)
    requests = [request(words(10)) for _ in range(20)]
    for decoding, score in ((GREEDY, ()), (None, ("a", "b"))):
        too_long = request(words(101), *score, decoding=decoding)
        results = dict(loop.run([*requests, too_long]))
        failure = results.pop(20)
        assert isinstance(failure, BackendError)
        assert failure.message.startswith("out of memory on a single prompt (101 tokens); use few")
        assert "\n" not in failure.message
        assert all(isinstance(result, Response) for result in results.values())
        model.passes.clear()
        list(loop.run(requests))
        assert model.passes == [[10] * 20]
