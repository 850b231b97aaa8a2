"""What a run of `generate` produced, by the method that proposed it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pointer_rl.records.fields import has_failed
from pointer_rl.session.windows import RunSummary
from pointer_rl.types import Usage


@dataclass
class Tally:
    """Counts of a group of candidates."""

    candidates: int = 0
    failed: int = 0
    correct: int = 0
    accuracy_sum: float = 0.0

    def add(self, correct: int | None, accuracy: float | None) -> None:
        """Count one candidate; None if its trial failed."""
        self.candidates += 1
        if correct is None or accuracy is None:
            self.failed += 1
        else:
            self.correct += correct
            self.accuracy_sum += accuracy

    @property
    def judged(self) -> int:
        """Candidates whose trial did not fail."""
        return self.candidates - self.failed

    @property
    def share_correct(self) -> float | None:
        """Share of the judged candidates that are correct; None if there are none."""
        return self.correct / self.judged if self.judged else None

    @property
    def accuracy(self) -> float | None:
        """Mean accuracy of the judged candidates; None if there are none."""
        return self.accuracy_sum / self.judged if self.judged else None


@dataclass
class Summary(RunSummary):
    """Tallies by generator, over all candidates, and over each query's best candidate."""

    by_method: dict[str, Tally] = field(default_factory=dict)
    all: Tally = field(default_factory=Tally)
    best: Tally = field(default_factory=Tally)
    """Each query's best candidate: what a perfect chooser among them would get."""
    used: Usage = Usage()
    """Tokens and images of the trials that were not cached."""
    cost: float | None = None
    """Their price; None if the backend knows none."""

    def add(self, record: Mapping[str, Any]) -> None:
        """Count the candidates of a query's record."""
        self.queries += 1
        best: tuple[int | None, float | None] = (None, None)
        for candidate in record["pointer_candidates"]:
            if has_failed(candidate):
                self.first_failure = self.first_failure or candidate.get("eval_error")
            correct, accuracy = candidate.get("vqa_correct"), candidate.get("vqa_acc_score")
            self.all.add(correct, accuracy)
            self.by_method.setdefault(candidate["gen_method"], Tally()).add(correct, accuracy)
            if accuracy is not None and (best[1] is None or accuracy > best[1]):
                best = (correct, accuracy)
        if record["pointer_candidates"]:
            self.best.add(*best)

    def rows(self) -> list[tuple[str, ...]]:
        """Header and lines of a table."""
        groups = [*self.by_method.items(), ("all", self.all), ("best of each query", self.best)]
        return [
            ("method", "candidates", "failed", "correct", "accuracy"),
            *(
                (
                    name,
                    f"{tally.candidates:,}",
                    f"{tally.failed:,}",
                    "-" if tally.share_correct is None else f"{tally.share_correct:.1%}",
                    "-" if tally.accuracy is None else f"{tally.accuracy:.3f}",
                )
                for name, tally in groups
            ),
        ]
