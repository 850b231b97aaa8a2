"""Tests of a metric: `pointer_rl.types.Metric`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pointer_rl.errors import InputError
from pointer_rl.testing.plugin import PluginTests
from pointer_rl.types import Judgement, Metric

_ANNOTATORS: tuple[tuple[str, ...], ...] = (
    ("red",) * 10,
    ("red",) * 7 + ("dark red", "crimson", "Red."),
    ("two dogs", "2 dogs", "dogs"),
    ("red",),
    (),
)
_ANSWERS = ("red", "Red", " red. ", "blue", "", "two", "2 dogs", "дом 🏠", "red " * 200)


class MetricTests(PluginTests[Metric]):
    """Judges a few answers against those of up to ten annotators."""

    kind = "metric"

    def test_has_a_version(self) -> None:
        """`version` is a string that stays until judgements change."""
        version = getattr(self.made, "version", None)
        assert isinstance(version, str) and version, (
            f"its version is {version!r}: make it a string, and change it whenever a judgement "
            "may change"
        )
        assert self.make().version == version, (
            "built again it has another version: change it by hand when a judgement may change"
        )

    @property
    def judgements(self) -> dict[tuple[str, tuple[str, ...]], Judgement | None]:
        """The judgement of each answer by each group of annotators."""
        return self.once(
            "judgements",
            lambda: {
                (answer, given): judge(self.made, answer, given)
                for given in _ANNOTATORS
                for answer in _ANSWERS
            },
        )

    def test_judges_any_answer_within_0_and_1(self) -> None:
        """Every answer gets a judgement, or InputError if the annotators' do not suffice."""
        assert any(self.judgements.values()), "it refuses to judge any answer"

    def test_judges_again_as_before(self) -> None:
        """A judgement depends on the answers and the options alone."""
        judgements, made_again = self.judgements, self.make()
        for (answer, given), first in judgements.items():
            for again in (self.made, made_again):
                second = judge(again, answer, given)
                assert first == second, (
                    f"judge({answer[:30]!r}, {list(given)}) gave {first} and then {second}: let a "
                    "judgement depend on the two answers and the options alone"
                )

    def test_tells_right_from_wrong(self) -> None:
        """An answer that all annotators gave counts more than one that nobody gave."""
        right, wrong = (self.judgements[answer, _ANNOTATORS[0]] for answer in ("red", "blue"))
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

    def test_normalises_to_one_form(self) -> None:
        """`normalise` returns a string that depends on the answer alone."""
        for answer in _ANSWERS:
            form = self.made.normalise(answer)
            assert isinstance(form, str), (
                f"normalise({answer[:30]!r}) gave a {type(form).__name__}: return a str"
            )
            assert form == self.make().normalise(answer), (
                f"normalise({answer[:30]!r}) gave two forms: let it depend on the answer alone"
            )


def judge(metric: Metric, answer: str, annotators: Sequence[str]) -> Judgement | None:
    """A sound judgement, or None if the metric says that it cannot judge. Fails otherwise."""
    given = list(annotators)
    where = f"judge({answer[:30]!r}, {given})"
    try:
        judgement = metric.judge(answer, given)
    except InputError:
        return None
    except Exception as error:
        raise AssertionError(
            f"{where} raised {type(error).__name__}: return a Judgement, or raise InputError if "
            "the annotators' answers do not suffice"
        ) from error
    assert given == list(annotators), f"{where} changed the annotators' answers: copy them first"
    assert isinstance(judgement, Judgement), (
        f"{where} gave a {type(judgement).__name__}: return Judgement(correct, accuracy)"
    )
    correct, accuracy = judgement.correct, judgement.accuracy
    assert type(correct) is bool, f"{where} gave correct={correct!r}: make it True or False"
    assert isinstance(accuracy, float) and math.isfinite(accuracy) and 0 <= accuracy <= 1, (
        f"{where} gave accuracy={accuracy!r}: make it a float from 0 to 1"
    )
    return judgement
