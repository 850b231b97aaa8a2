"""What a metric promises: `pointer_rl.types.Metric`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pointer_rl.errors import InputError
from pointer_rl.testing.examine import Check, examine
from pointer_rl.testing.findings import (
    Broken,
    Result,
    Subject,
    raise_findings,
    require,
)
from pointer_rl.types import Judgement, Metric

__all__ = ["check_metric", "examine_metric"]

Metrics = Subject[Metric]

_ANNOTATORS: tuple[tuple[str, ...], ...] = (
    ("red",) * 10,
    ("red",) * 7 + ("dark red", "crimson", "Red."),
    ("two dogs", "2 dogs", "dogs"),
    ("red",),
    (),
)
_ANSWERS = ("red", "Red", " red. ", "blue", "", "two", "2 dogs", "дом 🏠", "red " * 200)


def check_metric(factory: Callable[..., Metric], options: Any = None) -> None:
    """Raise ContractError unless the metric that `factory(options)` makes keeps its contract."""
    __tracebackhide__ = True
    subject = Subject("metric", factory, options)
    raise_findings(subject, examine(subject, _FOUNDATIONS, _FURTHER))


def examine_metric(factory: Callable[..., Metric], options: Any) -> Iterator[Result]:
    """Likewise, a result for each check."""
    return examine(Subject("metric", factory, options), _FOUNDATIONS, _FURTHER)


def judge(metric: Metric, answer: str, annotators: Sequence[str]) -> Judgement | None:
    """The verdict; None where it says that it cannot judge. Raises Broken for any other."""
    given = list(annotators)
    where = f"judge({answer[:30]!r}, {given})"
    try:
        verdict = metric.judge(answer, given)
    except InputError:
        return None
    except Exception as error:
        raise Broken(
            f"{where} raised {type(error).__name__}: give a Judgement, or raise InputError where "
            "the annotators' answers do not suffice"
        ) from error
    require(given == list(annotators), f"{where} changed the annotators' answers: copy them first")
    require(
        isinstance(verdict, Judgement),
        f"{where} gave a {type(verdict).__name__}: return Judgement(correct, accuracy)",
    )
    require(
        type(verdict.correct) is bool,
        f"{where} gave correct={verdict.correct!r}: make it True or False",
    )
    require(
        isinstance(verdict.accuracy, float)
        and math.isfinite(verdict.accuracy)
        and 0 <= verdict.accuracy <= 1,
        f"{where} gave accuracy={verdict.accuracy!r}: make it a float from 0 to 1",
    )
    return verdict


def _has_version(subject: Metrics) -> None:
    version = getattr(subject.made, "version", None)
    require(
        isinstance(version, str) and bool(version),
        f"its version is {version!r}: make it a string, and change it whenever a judgement may",
    )
    require(
        subject.make().version == version,
        "made again it has another version: change it by hand, when a judgement may change",
    )


def _judges(subject: Metrics) -> None:
    verdicts = [judge(subject.made, answer, given) for given in _ANNOTATORS for answer in _ANSWERS]
    require(any(verdicts), "it refuses to judge any answer")


def _deterministic(subject: Metrics) -> None:
    again = subject.make()
    for given in _ANNOTATORS:
        for answer in _ANSWERS:
            first, second = judge(subject.made, answer, given), judge(again, answer, given)
            require(
                first == second == judge(subject.made, answer, given),
                f"judge({answer[:30]!r}, {list(given)}) gave {first} and then {second}: let a "
                "judgement depend on the two answers and the options alone",
            )


def _tells_right_from_wrong(subject: Metrics) -> None:
    given = _ANNOTATORS[0]
    right, wrong = judge(subject.made, "red", given), judge(subject.made, "blue", given)
    require(
        right is not None and wrong is not None,
        "it refuses to judge an answer that ten annotators agree on",
    )
    assert right is not None
    assert wrong is not None
    require(
        right.correct and right.accuracy > 0,
        f"the answer that all ten annotators gave is judged {right}: count it as correct",
    )
    require(
        not wrong.correct and wrong.accuracy < right.accuracy,
        f"an answer that nobody gave is judged {wrong}, the one that all gave {right}: tell them "
        "apart",
    )


def _normalises(subject: Metrics) -> None:
    for answer in _ANSWERS:
        form = subject.made.normalise(answer)
        require(
            isinstance(form, str),
            f"normalise({answer[:30]!r}) gave a {type(form).__name__}: return a str",
        )
        require(
            form == subject.make().normalise(answer),
            f"normalise({answer[:30]!r}) gave two forms: let it depend on the answer alone",
        )


_FOUNDATIONS: dict[str, Check[Metrics]] = {
    "has a version": _has_version,
    "judges any answer, within [0, 1]": _judges,
    "judges again as before": _deterministic,
}
_FURTHER: dict[str, Check[Metrics]] = {
    "tells right from wrong": _tells_right_from_wrong,
    "normalises to one form": _normalises,
}
