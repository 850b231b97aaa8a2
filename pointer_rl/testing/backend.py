"""Tests of a backend: `pointer_rl.types.VQABackend`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn
from unittest import SkipTest
from unittest.mock import patch

from torch.nn import Module
from torch.nn.modules.module import register_module_forward_pre_hook

from pointer_rl.errors import PluginError
from pointer_rl.session.caching import run_checked
from pointer_rl.testing.fakes import PlainPrompt, UnreadableImage, tiny_dataset
from pointer_rl.testing.plugin import FingerprintTests, explain
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

_DECODING = Decoding(max_new_tokens=6)
_SCORED = ("red", "light blue", "no idea")


class BackendTests(FingerprintTests[VQABackend]):
    """Asks some thirty small questions about images, together and one by one."""

    kind = "backend"
    item = "request"
    how_to_repeat = (
        "decode as Decoding says, without sampling, and put the model in evaluation mode"
    )
    how_to_separate = (
        "mask the padding, and keep requests of a batch independent; a backend whose last digits "
        "depend on the batch must not declare batch_invariant"
    )
    tolerance: float = 0.01
    """Largest difference of a log-probability between batches, in nats.

    It is 0 for a backend that declares `batch_invariant`.
    """

    @property
    def inputs(self) -> Sequence[Request]:
        """Prompts of several lengths and forms; every other one is scored too, the last only so."""
        tiny, builder = tiny_dataset(), PlainPrompt()
        shown, asked = tiny.pool[3], tiny.queries[2]
        query = Message("user", (asked.image, asked.question))
        turns = (
            Message("system", ("Answer with one word.",)),
            Message("user", (shown.image, shown.question)),
            Message("assistant", (shown.answer,)),
            query,
        )
        long = builder.build(tiny.queries[1], tiny.pool[:2])
        return (
            Request(builder.build(tiny.queries[0], ()), _DECODING),
            Request(long, _DECODING, _SCORED),
            Request(Prompt(turns), _DECODING),
            Request(Prompt((query,)), _DECODING, _SCORED),
            Request(long, None, _SCORED),
        )

    def ask(self, made: VQABackend, inputs: Sequence[Request]) -> Sequence[Any]:
        """The result of each request. Fails unless there is one sound result for each."""
        fix = "yield (index, BackendError(why)) for a request that fails, so that no other is lost"
        try:
            with explain("run", fix, PluginError):
                answers = dict(run_checked(made, inputs))
        except PluginError as broken:  # its message says what to do
            raise AssertionError(str(broken)) from broken
        return [answers[index] for index in range(len(inputs))]

    def same(self, one: Any, other: Any) -> bool:
        """Equal texts, and log-probabilities within the tolerance; failures are all the same."""
        if isinstance(one, BackendError) or isinstance(other, BackendError):
            return type(one) is type(other)
        tolerance = 0.0 if getattr(self.made, "batch_invariant", False) else self.tolerance
        return bool(one.text == other.text) and all(
            a == b or abs(a - b) <= tolerance
            for a, b in zip(one.score_logprobs, other.score_logprobs, strict=True)
        )

    def show(self, result: Any) -> str:
        """The text or the failure, and log-probabilities."""
        if isinstance(result, BackendError):
            return f"a failure ({result.message})"
        logprobs = ", ".join(f"{each:.4g}" for each in result.score_logprobs)
        return f"{result.text!r}" + (f" (scores {logprobs})" if logprobs else "")

    def test_answers_plain_questions(self) -> None:
        """A question about an image without answers to score does not fail."""
        assert self.ask(self.made, ()) == [], "run([]) gave results"
        for request, answer in zip(self.inputs, self.results.values(), strict=True):
            assert request.score or isinstance(answer, Response), (
                f"a plain question about an image failed ({answer.message}): give the backend "
                "what it needs, or fix it"
            )

    def test_batch_invariant_is_a_bool(self) -> None:
        """It may be left out."""
        invariant = getattr(self.made, "batch_invariant", False)
        assert type(invariant) is bool, (
            f"its batch_invariant is {invariant!r}: make it True if responses are bit-identical "
            "however requests are batched, or leave it out"
        )

    def test_scores_in_the_order_asked(self) -> None:
        """`score_logprobs` follows `Request.score`."""
        *_, request = self.inputs
        results = list(self.results.values())
        scored = [a for r, a in zip(self.inputs, results, strict=True) if r.score]
        failed = [answer for answer in scored if isinstance(answer, BackendError)]
        if len(failed) == len(scored):
            raise SkipTest("it gives no log-probabilities, and says so")
        assert not failed, (
            f"of {len(scored)} requests with answers to score, {len(failed)} failed "
            f"({failed[0].message}): score all, or fail all"
        )
        singly = self.ask(self.made, [replace(request, score=(each,)) for each in request.score])
        for answer, logprob, alone in zip(
            request.score, results[-1].score_logprobs, singly, strict=True
        ):
            assert self.same(replace(alone, score_logprobs=(logprob,)), alone), (
                f"{answer!r} scores {logprob:.4g} among {request.score} and {self.show(alone)} "
                "alone: give score_logprobs in the order of Request.score"
            )

    def test_ends_before_a_stop_string(self) -> None:
        """`Decoding.stop` is obeyed."""
        for request, answer in zip(self.inputs, self.results.values(), strict=True):
            text = getattr(answer, "text", None) or ""
            if request.decoding is not None and len(text.strip()) > 1:
                break
        else:
            raise SkipTest("it writes no text of two letters")
        stop = text[len(text) // 2 :]
        decoding = replace(_DECODING, stop=(stop,))
        (stopped,) = self.ask(self.made, [replace(request, decoding=decoding)])
        if isinstance(stopped, BackendError):
            raise SkipTest(f"it refuses stop strings: {stopped.message}")
        expected = text[: text.find(stop)].strip()
        assert (stopped.text or "").strip() == expected, (
            f"with the stop string {stop!r} it answers {stopped.text!r} instead of {expected!r}: "
            "end the text before the first of Decoding.stop"
        )

    def test_failures_are_values(self) -> None:
        """A request that fails yields a BackendError and leaves the others as they are."""
        image, sound = UnreadableImage(), self.results
        failing = Request(Prompt((Message("user", (image, "what is this?")),)), Decoding())
        *others, broken = self.ask(self.made, [*self.inputs, failing])
        assert not image.opened or isinstance(broken, BackendError), (
            f"a question whose image cannot be read is answered {self.show(broken)}: yield a "
            "BackendError, because a failure must never count as an answer"
        )
        fix = "let a failure affect its own request only"
        self.compare(dict(zip(sound, others, strict=True)), "next to one that fails", fix)

    def test_counts_without_running(self) -> None:
        """`count`, if there is one, gives the tokens of requests and runs no model."""
        if not isinstance(self.made, CountingBackend):
            raise SkipTest("it has no method count")

        def fail(ran: object) -> NoReturn:
            name = type(ran).__name__ if isinstance(ran, Module) else "run"
            raise AssertionError(
                f"count ran {name}: let it look at the requests, and compute nothing"
            )

        def before_forward(module: Module, _: Any) -> None:
            if any(True for _ in module.parameters()):  # image transforms have none
                fail(module)

        with (
            patch.object(type(self.made), "run", lambda *_: fail("run")),
            register_module_forward_pre_hook(before_forward),
        ):
            whole = self.made.count(self.inputs)
            singly = [self.made.count([request]) for request in self.inputs]
        for count in (whole, *singly):
            _check_count(count)
        total = sum(count.prompt_tokens or 0 for count in singly)
        assert whole.prompt_tokens in (None, total), (
            f"it counts {whole.prompt_tokens} prompt tokens in all and {total} one by one: "
            "count each prompt whole, without padding, whatever it shares with others"
        )

    def test_takes_what_it_chose_as_options(self) -> None:
        """`chosen`, if there is one, names options; given, they are chosen no more."""
        chosen = getattr(self.made, "chosen", {})
        if not chosen:
            raise SkipTest("it chooses no options by its machine")
        assert all(type(each) in (int, float, str) for each in chosen.values()), (
            f"it chose {chosen}: make each value an int, a float or a str, to be recorded"
        )
        fix = "let `chosen` hold the names of its options, and values that these take"
        with explain(f"made with the options that it chose, {chosen}, it", fix):
            again = self.make(**chosen)
        assert not getattr(again, "chosen", {}), (
            f"given {chosen}, it chose {again.chosen}: use what is given, on any machine"  # type: ignore[attr-defined]
        )
        assert again.fingerprint == self.made.fingerprint, (
            "given what it chose, it has another fingerprint: leave these options out of it"
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
