"""Tests of a backend: `pointer_rl.types.VQABackend`."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any
from unittest import SkipTest

from pointer_rl.errors import first_line
from pointer_rl.testing.fakes import PlainPrompt, UnreadableImage, tiny_dataset
from pointer_rl.testing.plugin import FingerprintTests
from pointer_rl.types import (
    BackendError,
    Count,
    CountingBackend,
    Decoding,
    Message,
    PricedBackend,
    Prompt,
    Request,
    Response,
    Usage,
    VQABackend,
)

Answers = list[Response | BackendError]

_SCORED = ("red", "light blue", "no idea")


class BackendTests(FingerprintTests[VQABackend]):
    """Asks some thirty small questions about images, together and one by one.

    The backend is built again for every other value of its `bool` and `Literal` options.
    """

    kind = "backend"
    tolerance: float = 0.01
    """Largest difference of a log-probability between batches, in nats.

    It is 0 for a backend that declares `batch_invariant`.
    """

    @property
    def requests(self) -> Sequence[Request]:
        """Prompts of several lengths and forms; every other one is scored too, the last only so."""
        return _requests()

    @property
    def answers(self) -> Answers:
        """The answers to all requests in one call."""
        return self.once("answers", lambda: ask(self.made, self.requests))

    def same(self, one: Response | BackendError, other: Response | BackendError) -> bool:
        """Equal texts, and log-probabilities within the tolerance; failures are all the same."""
        if isinstance(one, BackendError) or isinstance(other, BackendError):
            return type(one) is type(other)
        tolerance = 0.0 if _batch_invariant(self.made) is True else self.tolerance
        return one.text == other.text and all(
            a == b or abs(a - b) <= tolerance
            for a, b in zip(one.score_logprobs, other.score_logprobs, strict=True)
        )

    def differs(self, other: VQABackend) -> bool:
        """Whether any answer differs."""
        pairs = zip(self.answers, ask(other, self.requests), strict=True)
        return not all(self.same(mine, theirs) for mine, theirs in pairs)

    def test_has_a_fingerprint_and_run(self) -> None:
        """The members of `VQABackend` exist."""
        fingerprint = getattr(self.made, "fingerprint", None)
        assert isinstance(fingerprint, str) and fingerprint, (
            f"its fingerprint is {fingerprint!r}: make it a string of everything besides the "
            "request that decides a response (model, revision, precision, versions)"
        )
        assert callable(getattr(self.made, "run", None)), (
            "it has no method run: write run(self, requests), which yields (index, result)"
        )
        invariant = _batch_invariant(self.made)
        assert type(invariant) is bool, (
            f"its batch_invariant is {invariant!r}: make it True if responses are bit-identical "
            "however requests are batched, or leave it out"
        )

    def test_answers_each_request_once(self) -> None:
        """One sound result for each request."""
        for request, answer in zip(self.requests, self.answers, strict=True):
            if not request.score and isinstance(answer, BackendError):
                raise AssertionError(
                    f"a plain question about an image failed ({answer.message}): give the backend "
                    "what it needs, or fix it"
                )
        assert ask(self.made, ()) == [], "run([]) gave results"

    def test_answers_again_as_before(self) -> None:
        """Decoding is deterministic."""
        answers = self.answers
        for again in (self.made, self.make()):
            for first, second in zip(answers, ask(again, self.requests), strict=True):
                assert self.same(first, second), (
                    f"asked again it answers {_said(second)} instead of {_said(first)}: decode as "
                    "Decoding says, without sampling, and put the model in evaluation mode"
                )

    def test_answers_in_any_order(self) -> None:
        """The order of the requests does not matter."""
        answers = self.answers
        backwards = ask(self.made, self.requests[::-1])[::-1]
        for index, (first, second) in enumerate(zip(answers, backwards, strict=True)):
            assert self.same(first, second), (
                f"request {index} is answered {_said(first)}, and {_said(second)} if the requests "
                "come in reverse: yield each result with the index of its own request"
            )

    def test_answers_alone_as_in_a_batch(self) -> None:
        """What shares a batch does not matter."""
        for index, (request, together) in enumerate(zip(self.requests, self.answers, strict=True)):
            (alone,) = ask(self.made, [request])
            assert self.same(alone, together), (
                f"request {index} is answered {_said(together)} in a batch and {_said(alone)} "
                "alone: mask the padding, and keep requests of a batch independent"
                + (", or do not declare batch_invariant" if _batch_invariant(self.made) else "")
            )

    def test_scores_in_the_order_asked(self) -> None:
        """`score_logprobs` follows `Request.score`."""
        scored = [a for r, a in zip(self.requests, self.answers, strict=True) if r.score]
        failed = [answer for answer in scored if isinstance(answer, BackendError)]
        if len(failed) == len(scored):
            raise SkipTest("it gives no log-probabilities, and says so")
        assert not failed, (
            f"of {len(scored)} requests with answers to score, {len(failed)} failed "
            f"({failed[0].message}): score all, or fail all"
        )
        request, together = self.requests[-1], self.answers[-1]
        assert isinstance(together, Response)
        singly = ask(self.made, [replace(request, score=(answer,)) for answer in request.score])
        for answer, logprob, alone in zip(
            request.score, together.score_logprobs, singly, strict=True
        ):
            assert isinstance(alone, Response) and self.same(
                Response(alone.text, (logprob,)), alone
            ), (
                f"{answer!r} scores {logprob:.4g} among {request.score} and {_said(alone)} alone: "
                "give score_logprobs in the order of Request.score"
            )

    def test_ends_before_a_stop_string(self) -> None:
        """`Decoding.stop` is obeyed."""
        for request, answer in zip(self.requests, self.answers, strict=True):
            text = answer.text if isinstance(answer, Response) else None
            if request.decoding is not None and text is not None and len(text.strip()) > 1:
                break
        else:
            raise SkipTest("it writes no text of two letters")
        stop = text[len(text) // 2 :]
        decoding = replace(request.decoding, stop=(stop,))
        (stopped,) = ask(self.made, [replace(request, decoding=decoding)])
        if isinstance(stopped, BackendError):
            raise SkipTest(f"it refuses stop strings: {stopped.message}")
        expected = text[: text.find(stop)].strip()
        assert (stopped.text or "").strip() == expected, (
            f"with the stop string {stop!r} it answers {stopped.text!r} instead of {expected!r}: "
            "end the text before the first of Decoding.stop"
        )

    def test_failures_are_values(self) -> None:
        """A request that fails yields a BackendError and leaves the others as they are."""
        answers, image = self.answers, UnreadableImage()
        failing = Request(Prompt((Message("user", (image, "what is this?")),)), Decoding())
        requests = [self.requests[0], failing, self.requests[-1]]
        first, broken, last = ask(self.made, requests)
        assert not image.opened or isinstance(broken, BackendError), (
            f"a question whose image cannot be read is answered {_said(broken)}: yield a "
            "BackendError, because a failure must never count as an answer"
        )
        for expected, answer in ((answers[0], first), (answers[-1], last)):
            assert self.same(expected, answer), (
                f"next to a request that fails it answers {_said(answer)} instead of "
                f"{_said(expected)}: let a failure affect its own request only"
            )

    def test_counts_without_running(self) -> None:
        """`count`, if there is one, gives the tokens of requests and runs no model."""
        if not isinstance(self.made, CountingBackend):
            raise SkipTest("it has no method count")
        with _nothing_runs(self.made):
            whole = self.made.count(self.requests)
            each = [self.made.count([request]) for request in self.requests]
        for count in (whole, *each):
            _check_count(count)
        singly = sum(count.prompt_tokens or 0 for count in each)
        assert whole.prompt_tokens in (None, singly), (
            f"it counts {whole.prompt_tokens} prompt tokens in all and {singly} one by one: "
            "count each prompt whole, without padding, whatever it shares with others"
        )

    def test_knows_a_price_or_none(self) -> None:
        """`cost`, if there is one, gives a price or None."""
        if not isinstance(self.made, PricedBackend):
            raise SkipTest("it has no method cost")
        usage = Usage(prompt_tokens=1000, generated_tokens=10, images=3)
        once, twice = self.made.cost(usage), self.made.cost(usage + usage)
        for cost in (once, twice):
            assert cost is None or (type(cost) is float and math.isfinite(cost) and cost >= 0), (
                f"cost gave {cost!r}: return a float of at least 0, or None if no price is known"
            )
        assert (once is None) == (twice is None) and (twice or 0.0) >= (once or 0.0), (
            f"it costs {once} for some usage and {twice} for twice as much"
        )


@lru_cache(maxsize=1)
def _requests() -> tuple[Request, ...]:
    tiny, builder = tiny_dataset(), PlainPrompt()
    shown, asked = tiny.pool[3], tiny.queries[2]
    query = Message("user", (asked.image, asked.question))
    turns = (
        Message("system", ("Answer with one word.",)),
        Message("user", (shown.image, shown.question)),
        Message("assistant", (shown.answer,)),
        query,
    )
    prompts = [
        builder.build(tiny.queries[0], ()),
        builder.build(tiny.queries[1], tiny.pool[:2]),
        Prompt(turns),
        Prompt((query,)),
    ]
    decoding = Decoding(max_new_tokens=6)
    requests = [
        Request(prompt, decoding, _SCORED if index % 2 else ())
        for index, prompt in enumerate(prompts)
    ]
    return (*requests, Request(prompts[1], None, _SCORED))


def ask(backend: VQABackend, requests: Sequence[Request]) -> Answers:
    """The result of each request. Fails unless there is one sound result for each."""
    answers: dict[int, Response | BackendError] = {}
    for index, answer in _run(backend, requests):
        assert type(index) is int and 0 <= index < len(requests), (
            f"run gave a result for request {index!r} of {len(requests)}: give the position of "
            "the request in the sequence, counted from 0"
        )
        assert index not in answers, (
            f"run gave two results for request {index}: yield one for each request"
        )
        _check_answer(requests[index], answer)
        answers[index] = answer
    missing = [index for index in range(len(requests)) if index not in answers]
    assert not missing, (
        f"run gave no result for {len(missing)} of {len(requests)} requests (the first: "
        f"{missing[0]}): yield a Response or a BackendError for each"
    )
    return [answers[index] for index in range(len(requests))]


def _run(
    backend: VQABackend, requests: Sequence[Request]
) -> Iterator[tuple[int, Response | BackendError]]:
    try:
        yield from backend.run(requests)
    except Exception as error:
        raise AssertionError(
            f"run raised {type(error).__name__} ({first_line(error)}): yield (index, "
            "BackendError(why)) for the request that fails, so that the others are not lost"
        ) from error


def _check_answer(request: Request, answer: object) -> None:
    if isinstance(answer, BackendError):
        assert isinstance(answer.message, str) and answer.message.strip(), (
            "a BackendError has no message: say why the request failed"
        )
        return
    assert isinstance(answer, Response), (
        f"run gave a {type(answer).__name__}: yield (index, Response(…)) or "
        "(index, BackendError(…))"
    )
    assert answer.text is None or isinstance(answer.text, str), (
        f"the text of a Response is a {type(answer.text).__name__}: give a str"
    )
    assert request.decoding is None or answer.text is not None, (
        "a request with a decoding got a Response without text: generate, or yield a "
        "BackendError that says why not"
    )
    given = answer.score_logprobs
    assert isinstance(given, tuple) and all(type(each) is float for each in given), (
        "score_logprobs is not a tuple of Python floats: call tolist() or float() on what the "
        "model returns"
    )
    assert len(given) == len(request.score), (
        f"a request with {len(request.score)} answers to score got {len(given)} "
        "log-probabilities: give one for each, in their order, and yield each result with the "
        "index of its own request"
    )
    assert all(each <= 1e-3 for each in given), (
        f"score_logprobs {given} are not log-probabilities: give natural logarithms, at most 0"
    )


def _check_count(count: object) -> None:
    assert isinstance(count, Count), (
        f"count gave a {type(count).__name__}: return pointer_rl.types.Count(…)"
    )
    known = [each for each in (count.prompt_tokens, count.unique_tokens) if each is not None]
    assert all(type(each) is int and each >= 0 for each in known), (
        f"{count} is not a count: give each as an int, or None if it cannot be known"
    )
    assert len(known) < 2 or known[1] <= known[0], (
        f"{count} has more unique_tokens than prompt_tokens: what prompts have in common counts "
        "once in unique_tokens and each time in prompt_tokens"
    )


@contextmanager
def _nothing_runs(backend: VQABackend) -> Iterator[None]:
    """Fails if the backend, or any torch module with parameters, runs inside."""
    ran: list[str] = []
    original = backend.run

    def run(requests: Sequence[Request]) -> Iterator[tuple[int, Response | BackendError]]:
        ran.append("run")
        return original(requests)

    def forward(module: Any, _: Any) -> None:
        if any(True for _ in module.parameters()):  # image transforms have none
            ran.append(type(module).__name__)

    with ExitStack() as watched:
        if torch := sys.modules.get("torch"):
            hook = torch.nn.modules.module.register_module_forward_pre_hook(forward)
            watched.callback(hook.remove)
        with suppress(AttributeError):  # the backend is frozen, or has slots
            backend.run = run  # type: ignore[method-assign]
            watched.callback(setattr, backend, "run", original)
        yield
    assert not ran, f"count ran {ran[0]}: let it look at the requests, and compute nothing"


def _batch_invariant(backend: VQABackend) -> object:
    return getattr(backend, "batch_invariant", False)


def _said(answer: Response | BackendError) -> str:
    if isinstance(answer, BackendError):
        return f"with a failure ({answer.message})"
    logprobs = ", ".join(f"{each:.4g}" for each in answer.score_logprobs)
    return f"{answer.text!r}" + (f" (scores {logprobs})" if logprobs else "")
