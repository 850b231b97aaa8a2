"""Tests of a metric: `pointer_rl.types.Metric`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pointer_rl.errors import InputError
from pointer_rl.testing.plugin import PluginTests, check_type, explain
from pointer_rl.types import Judgement, Metric

_AGREED = ("red",) * 10
_ANNOTATORS: tuple[tuple[str, ...], ...] = (
    _AGREED,
    ("red",) * 7 + ("dark red", "crimson", "Red."),
    ("two dogs", "2 dogs", "dogs"),
    ("red",),
    (),
)
_ANSWERS = ("red", "Red", " red. ", "blue", "", "two", "2 dogs", "дом 🏠", "red " * 200)


class MetricTests(PluginTests[Metric]):
    """Judges a few answers against those of up to ten annotators."""

    kind = "metric"

    def use(self, made: Metric) -> dict[str, Any]:
        results: dict[str, Any] = {}
        for answer in _ANSWERS:
            what = f"normalise({answer[:30]!r})"
            results[what] = made.normalise(answer)
            check_type(results[what], str, what)
            for given in _ANNOTATORS:
                results[_describe(answer, given)] = _judge(made, answer, given)
        return results

    def test_has_a_version(self) -> None:
        """`version` is a string that stays until judgements change."""
        versions = [getattr(made, "version", None) for made in (self.made, self.make())]
        assert isinstance(versions[0], str) and versions[0] and versions[1] == versions[0], (
            f"its version is {versions[0]!r}, and {versions[1]!r} when it is built again: make it "
            "a string, and change it by hand whenever a judgement may change"
        )

    def test_tells_right_from_wrong(self) -> None:
        """An answer that all annotators gave counts more than one that nobody gave."""
        right, wrong = (self.results[_describe(answer, _AGREED)] for answer in ("red", "blue"))
        assert right is not None and wrong is not None, (
            "it refuses to judge an answer that ten annotators agree on"
        )
        assert right.correct and right.accuracy > 0, (
            f"the answer that all ten annotators gave is judged {right}: count it as correct"
        )
        assert not wrong.correct and wrong.accuracy < right.accuracy, (
            f"an answer that nobody gave is judged {wrong}, the one that all gave {right}: tell "
            "them apart"
        )


def _describe(answer: str, annotators: Sequence[str]) -> str:
    return f"judge({answer[:30]!r}, {list(annotators)})"


def _judge(metric: Metric, answer: str, annotators: Sequence[str]) -> Judgement | None:
    """A sound judgement, or None if the metric says that it cannot judge. Fails otherwise."""
    given, what = list(annotators), _describe(answer, annotators)
    fix = "return a Judgement, or raise InputError if the annotators' answers do not suffice"
    try:
        with explain(what, fix, InputError):
            judgement = metric.judge(answer, given)
    except InputError:
        return None
    assert given == list(annotators), f"{what} changed the annotators' answers: copy them first"
    check_type(judgement, Judgement, what, "Judgement(correct, accuracy)")
    correct, accuracy = judgement.correct, judgement.accuracy
    assert type(correct) is bool, f"{what} gave correct={correct!r}: make it True or False"
    assert isinstance(accuracy, float) and math.isfinite(accuracy) and 0 <= accuracy <= 1, (
        f"{what} gave accuracy={accuracy!r}: make it a float from 0 to 1"
    )
    return judgement
