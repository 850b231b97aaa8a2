"""Metrics: the official VQA accuracy, and exact match."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from pointer_rl.errors import InputError
from pointer_rl.types import Judgement
from pointer_rl_standard.vqa_normalisation import clean_whitespace, normalise


def _check_list(answers: Sequence[str]) -> None:
    if isinstance(answers, str):
        raise InputError(
            f"the annotators' answers are a list, one string for each annotator, not {answers!r}"
        )


class VQAAccuracy:
    """The official VQA accuracy: the mean of min(matches / 3, 1), leaving out each annotator once.

    If all annotators give the same string, answers are compared without normalisation, as in the
    official evaluation. `correct` means an accuracy above 0.
    """

    version = "1"

    def normalise(self, answer: str) -> str:
        """Remove punctuation, case and articles; see `vqa_normalisation`."""
        return normalise(answer)

    def judge(self, answer: str, answers: Sequence[str]) -> Judgement:
        """Raises InputError for fewer than two annotators: leaving one out would leave none."""
        _check_list(answers)
        if len(answers) < 2:
            raise InputError(
                f"the metric vqa needs the answers of two annotators or more, not {len(answers)}: "
                "use the metric exact, or drop examples that lack answers"
            )
        agreed, given = _compared(tuple(answers))
        asked = clean_whitespace(answer) if agreed else normalise(answer)
        matches = given.count(asked)
        others = len(given) - matches
        # A matching annotator who is left out does not count as a match.
        total = matches * min((matches - 1) / 3, 1.0) + others * min(matches / 3, 1.0)
        accuracy = total / len(given)
        return Judgement(correct=accuracy > 0, accuracy=accuracy)


@lru_cache(maxsize=2**12)  # the candidates of a query are judged one after the other
def _compared(answers: tuple[str, ...]) -> tuple[bool, list[str]]:
    """Return whether all annotators agree, and their answers in the form that is compared."""
    given = [clean_whitespace(each) for each in answers]
    agreed = len(set(given)) == 1
    return agreed, given if agreed else [normalise(each) for each in given]


class ExactMatch:
    """Correct if equal to any annotator's answer, ignoring case and surrounding spaces."""

    version = "1"

    def normalise(self, answer: str) -> str:
        """Fold case and strip surrounding spaces."""
        return answer.strip().casefold()

    def judge(self, answer: str, answers: Sequence[str]) -> Judgement:
        """Raises InputError if there is no annotator's answer."""
        _check_list(answers)
        if not answers:
            raise InputError(
                "the metric exact needs at least one annotator's answer: "
                "drop examples that lack answers"
            )
        correct = self.normalise(answer) in {self.normalise(each) for each in answers}
        return Judgement(correct=correct, accuracy=float(correct))
