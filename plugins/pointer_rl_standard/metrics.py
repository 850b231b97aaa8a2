"""Metrics: the official VQA accuracy, and plain equality."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from pointer_rl.errors import InputError
from pointer_rl.types import Judgement
from pointer_rl_standard.vqa_normalisation import clean_whitespace, normalise

__all__ = ["ExactMatch", "VQAAccuracy"]


class VQAAccuracy:
    """The official VQA accuracy: min(matches / 3, 1), averaged over leaving each annotator out.

    Where all annotators agree to the letter, answers are compared without normalisation, as the
    official evaluation does. `correct` means an accuracy above 0.
    """

    version = "1"

    def normalise(self, answer: str) -> str:
        """The answer without punctuation, case and articles; see `vqa_normalisation`."""
        return normalise(answer)

    def judge(self, answer: str, answers: Sequence[str]) -> Judgement:
        """Raises InputError for fewer than two annotators: leaving one out would leave none."""
        if len(answers) < 2:
            raise InputError(
                f"the metric vqa needs the answers of two annotators or more, not {len(answers)}: "
                "use the metric exact, or drop examples that lack answers"
            )
        agreed, given = _compared(tuple(answers))
        asked = clean_whitespace(answer) if agreed else normalise(answer)
        matches = given.count(asked)
        others = len(given) - matches
        # A matching annotator is not counted as a match where it is the one left out.
        total = matches * min((matches - 1) / 3, 1.0) + others * min(matches / 3, 1.0)
        accuracy = total / len(given)
        return Judgement(correct=accuracy > 0, accuracy=accuracy)


@lru_cache(maxsize=2**12)  # a query's candidates are judged one after the other
def _compared(answers: tuple[str, ...]) -> tuple[bool, list[str]]:
    """Whether all annotators agree, and their answers as they are compared."""
    given = [clean_whitespace(each) for each in answers]
    agreed = len(set(given)) == 1
    return agreed, given if agreed else [normalise(each) for each in given]


class ExactMatch:
    """Right when equal to any annotator's answer, but for case and surrounding spaces."""

    version = "1"

    def normalise(self, answer: str) -> str:
        """The answer case-folded, without spaces around it."""
        return answer.strip().casefold()

    def judge(self, answer: str, answers: Sequence[str]) -> Judgement:
        """Raises InputError where there is no annotator's answer."""
        if not answers:
            raise InputError(
                "the metric exact needs at least one annotator's answer: "
                "drop examples that lack answers"
            )
        correct = self.normalise(answer) in {self.normalise(each) for each in answers}
        return Judgement(correct=correct, accuracy=float(correct))
