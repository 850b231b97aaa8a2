"""What a backend promises: `pointer_rl.types.VQABackend`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from pointer_rl.errors import first_line
from pointer_rl.testing.backend_costs import check_cost, check_count
from pointer_rl.testing.examine import Check, examine
from pointer_rl.testing.fakes import PlainPrompt
from pointer_rl.testing.findings import (
    Broken,
    NotApplicable,
    Result,
    Subject,
    raise_findings,
    require,
)
from pointer_rl.testing.plugin import check_fingerprint
from pointer_rl.testing.tiny import tiny_dataset
from pointer_rl.testing.unreadable import UnreadableImage
from pointer_rl.types import BackendError, Decoding, Message, Prompt, Request, Response, VQABackend

__all__ = ["check_backend", "examine_backend"]

Answers = list[Response | BackendError]

_SCORED = ("red", "light blue", "no idea")


def check_backend(
    factory: Callable[..., VQABackend],
    options: Any = None,
    *,
    variants: Sequence[Any] = (),
    tolerance: float = 0.01,
) -> None:
    """Raise ContractError unless the backend that `factory(options)` makes keeps its contract.

    Asks a few questions about small pictures, together and one by one, and makes the backend once
    more for each value of an option that has finitely many. `variants`: options with which it
    answers otherwise, so that its fingerprint must differ. `tolerance`: by how much
    log-probabilities may differ between batches, in nats.
    """
    __tracebackhide__ = True
    subject = BackendSubject("backend", factory, options, variants, tolerance=tolerance)
    raise_findings(subject, examine(subject, _FOUNDATIONS, _FURTHER))


def examine_backend(factory: Callable[..., VQABackend], options: Any) -> Iterator[Result]:
    """Likewise, a result for each check."""
    return examine(BackendSubject("backend", factory, options), _FOUNDATIONS, _FURTHER)


@dataclass
class BackendSubject(Subject[VQABackend]):
    """A backend, what it is asked, and what it said when it was first asked."""

    tolerance: float = 0.01

    @cached_property
    def requests(self) -> tuple[Request, ...]:
        """Of several lengths and forms; those at odd places are scored too, the last only that."""
        tiny, builder = tiny_dataset(), PlainPrompt()
        decoding = Decoding(max_new_tokens=6)
        prompts = [
            builder.build(tiny.queries[0], ()),
            builder.build(tiny.queries[1], tiny.pool[:2]),
        ]
        shown = tiny.pool[3]
        query = Message("user", (tiny.queries[2].image, tiny.queries[2].question))
        system = Message("system", ("Answer with one word.",))
        prompts.append(
            Prompt(
                (
                    system,
                    Message("user", (shown.image, shown.question)),
                    Message("assistant", (shown.answer,)),
                    query,
                )
            )
        )
        prompts.append(Prompt((query,)))
        requests = [
            Request(prompt, decoding, _SCORED if place % 2 else ())
            for place, prompt in enumerate(prompts)
        ]
        return (*requests, Request(prompts[1], None, _SCORED))

    @cached_property
    def answers(self) -> Answers:
        """To all requests together."""
        return ask(self.made, self.requests)

    @property
    def batch_invariant(self) -> bool:
        """Whether it says that no answer depends on what shares its call."""
        return getattr(self.made, "batch_invariant", False) is True

    @cached_property
    def scores(self) -> bool:
        """Whether it gives log-probabilities; one that does not says so for every request."""
        said = [a for r, a in zip(self.requests, self.answers, strict=True) if r.score]
        failed = [each for each in said if isinstance(each, BackendError)]
        if failed and len(failed) < len(said):
            raise Broken(
                f"of {len(said)} requests with answers to score, {len(failed)} failed "
                f"({failed[0].message}): score all, or fail all"
            )
        return not failed

    def same(self, one: Response | BackendError, other: Response | BackendError) -> bool:
        """Equal texts, and log-probabilities within the tolerance; failures whatever they say.

        One that says `batch_invariant` is taken at its word: to the last digit.
        """
        if isinstance(one, BackendError) or isinstance(other, BackendError):
            return type(one) is type(other)
        tolerance = 0.0 if self.batch_invariant else self.tolerance
        return one.text == other.text and all(
            a == b or abs(a - b) <= tolerance
            for a, b in zip(one.score_logprobs, other.score_logprobs, strict=True)
        )


def ask(backend: VQABackend, requests: Sequence[Request]) -> Answers:
    """What it says to each request. Raises Broken where that is not one sound result for each."""
    answers: dict[int, Response | BackendError] = {}
    try:
        for index, answer in backend.run(requests):
            require(
                type(index) is int and 0 <= index < len(requests),
                f"run gave a result for request {index!r} of {len(requests)}: give the place of "
                "the request in the sequence, counted from 0",
            )
            require(
                index not in answers,
                f"run gave two results for request {index}: yield one for each request",
            )
            _check_answer(requests[index], answer)
            answers[index] = answer
    except Broken:
        raise
    except Exception as error:
        raise Broken(
            f"run raised {type(error).__name__} ({first_line(error)}): yield (index, "
            "BackendError(why)) for the request that fails, so that the others are not lost"
        ) from error
    missing = [index for index in range(len(requests)) if index not in answers]
    if missing:
        raise Broken(
            f"run gave no result for {len(missing)} of {len(requests)} requests (the first: "
            f"{missing[0]}): yield a Response or a BackendError for each"
        )
    return [answers[index] for index in range(len(requests))]


def _check_answer(request: Request, answer: object) -> None:
    if isinstance(answer, BackendError):
        require(
            isinstance(answer.message, str) and bool(answer.message.strip()),
            "a BackendError has no message: say why the request failed",
        )
        return
    require(
        isinstance(answer, Response),
        f"run gave a {type(answer).__name__}: yield (index, Response(…)) or "
        "(index, BackendError(…))",
    )
    assert isinstance(answer, Response)
    require(
        answer.text is None or isinstance(answer.text, str),
        f"the text of a Response is a {type(answer.text).__name__}: give a str",
    )
    require(
        request.decoding is None or answer.text is not None,
        "a request with a decoding got a Response without text: generate, or yield a "
        "BackendError that says why not",
    )
    given = answer.score_logprobs
    require(
        isinstance(given, tuple) and all(type(each) is float for each in given),
        "score_logprobs is not a tuple of Python floats: call tolist() or float() on what a "
        "model gives",
    )
    require(
        len(given) == len(request.score),
        f"a request with {len(request.score)} answers to score got {len(given)} "
        "log-probabilities: give one for each, in their order, and yield each result with the "
        "index of its own request",
    )
    require(
        all(each <= 1e-3 for each in given) and not any(map(math.isnan, given)),
        f"score_logprobs {given} are no log-probabilities: give natural logarithms, at most 0",
    )


# --- the checks -------------------------------------------------------------------------------


def _has_members(subject: BackendSubject) -> None:
    fingerprint = getattr(subject.made, "fingerprint", None)
    require(
        isinstance(fingerprint, str) and bool(fingerprint),
        f"its fingerprint is {fingerprint!r}: make it a string of all that decides a response "
        "beside the request (model, revision, precision, versions)",
    )
    require(
        callable(getattr(subject.made, "run", None)),
        "it has no method run: write run(self, requests), which yields (index, result)",
    )
    invariant = getattr(subject.made, "batch_invariant", False)
    require(
        type(invariant) is bool,
        f"its batch_invariant is {invariant!r}: make it True where no response depends, to the "
        "last digit, on what shares its call, or leave it out",
    )


def _answers_each_once(subject: BackendSubject) -> None:
    for request, answer in zip(subject.requests, subject.answers, strict=True):
        if not request.score and isinstance(answer, BackendError):
            raise Broken(
                f"a plain question about a picture failed ({answer.message}): give the backend "
                "what it needs, or mend it"
            )
    require(ask(subject.made, ()) == [], "run([]) gave results")


def _alone_as_in_company(subject: BackendSubject) -> None:
    for index, (request, together) in enumerate(
        zip(subject.requests, subject.answers, strict=True)
    ):
        (alone,) = ask(subject.made, [request])
        require(
            subject.same(alone, together),
            f"request {index} is answered {_said(together)} among others and {_said(alone)} "
            "alone: mask the padding, and let nothing of one request reach another"
            + (", or do not say batch_invariant" if subject.batch_invariant else ""),
        )


def _any_order(subject: BackendSubject) -> None:
    backwards = ask(subject.made, subject.requests[::-1])[::-1]
    for index, (first, second) in enumerate(zip(subject.answers, backwards, strict=True)):
        require(
            subject.same(first, second),
            f"request {index} is answered {_said(first)}, and {_said(second)} where the requests "
            "come in reverse: yield each result with the index of its own request",
        )


def _deterministic(subject: BackendSubject) -> None:
    for again in (subject.made, subject.make()):
        for first, second in zip(subject.answers, ask(again, subject.requests), strict=True):
            require(
                subject.same(first, second),
                f"asked again it answers {_said(second)} instead of {_said(first)}: decode as "
                "Decoding says, without sampling, and put the model in evaluation mode",
            )


def _scores_in_order(subject: BackendSubject) -> None:
    if not subject.scores:
        raise NotApplicable("it gives no log-probabilities, and says so")
    request, together = subject.requests[-1], subject.answers[-1]
    assert isinstance(together, Response)
    one_each = ask(subject.made, [replace(request, score=(answer,)) for answer in request.score])
    for answer, logprob, alone in zip(
        request.score, together.score_logprobs, one_each, strict=True
    ):
        require(
            isinstance(alone, Response) and subject.same(Response(alone.text, (logprob,)), alone),
            f"{answer!r} scores {logprob:.4g} among {request.score} and "
            f"{_said(alone)} alone: give score_logprobs in the order of Request.score",
        )


def _stops(subject: BackendSubject) -> None:
    for request, answer in zip(subject.requests, subject.answers, strict=True):
        text = answer.text if isinstance(answer, Response) else None
        if request.decoding is not None and text is not None and len(text.strip()) > 1:
            break
    else:
        raise NotApplicable("it writes no text of two letters")
    stop = text[len(text) // 2 :]
    decoding = replace(request.decoding, stop=(stop,))
    (stopped,) = ask(subject.made, [replace(request, decoding=decoding)])
    if isinstance(stopped, BackendError):
        raise NotApplicable(f"it refuses stop strings: {stopped.message}")
    expected = text[: text.find(stop)].strip()
    require(
        (stopped.text or "").strip() == expected,
        f"with the stop string {stop!r} it answers {stopped.text!r} instead of {expected!r}: end "
        "the text before the first of Decoding.stop",
    )


def _failures_are_values(subject: BackendSubject) -> None:
    image = UnreadableImage()
    failing = Request(Prompt((Message("user", (image, "what is this?")),)), Decoding())
    first, broken, last = ask(subject.made, [subject.requests[0], failing, subject.requests[-1]])
    require(
        not image.opened or isinstance(broken, BackendError),
        f"a question whose picture cannot be read is answered {_said(broken)}: yield a "
        "BackendError, for a failure must never count as an answer",
    )
    for answer, company in ((subject.answers[0], first), (subject.answers[-1], last)):
        require(
            subject.same(answer, company),
            f"beside a request that fails it answers {_said(company)} instead of "
            f"{_said(answer)}: let a failure touch its own request alone",
        )


def _fingerprint(subject: BackendSubject) -> None:
    def differs(other: VQABackend) -> bool:
        pairs = zip(subject.answers, ask(other, subject.requests), strict=True)
        return not all(subject.same(one, another) for one, another in pairs)

    check_fingerprint(subject, differs)


def _counts(subject: BackendSubject) -> None:
    check_count(subject.made, subject.requests)


def _prices(subject: BackendSubject) -> None:
    check_cost(subject.made)


def _said(answer: Response | BackendError) -> str:
    if isinstance(answer, BackendError):
        return f"with a failure ({answer.message})"
    logprobs = ", ".join(f"{each:.4g}" for each in answer.score_logprobs)
    return f"{answer.text!r}" + (f" (scores {logprobs})" if logprobs else "")


_FOUNDATIONS: dict[str, Check[BackendSubject]] = {
    "has a fingerprint and run": _has_members,
    "answers each request once": _answers_each_once,
    "answers again as before": _deterministic,
    "answers in any order": _any_order,
    "answers alone as in company": _alone_as_in_company,
}
_FURTHER: dict[str, Check[BackendSubject]] = {
    "scores in the order asked": _scores_in_order,
    "ends before a stop string": _stops,
    "failures are values": _failures_are_values,
    "its fingerprint tells apart what it answers": _fingerprint,
    "counts without running": _counts,
    "knows a price, or none": _prices,
}
