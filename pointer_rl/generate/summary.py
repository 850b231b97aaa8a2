"""What came out, by the method that proposed it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pointer_rl.types import Candidate, Outcome, Usage

__all__ = ["Summary", "Tally"]


@dataclass
class Tally:
    """Counts of one group of candidates."""

    candidates: int = 0
    failed: int = 0
    correct: int = 0
    accuracy_sum: float = 0.0

    def add(self, correct: bool | None, accuracy: float | None) -> None:
        """Count one candidate; None means that its trial failed."""
        self.candidates += 1
        if correct is None or accuracy is None:
            self.failed += 1
        else:
            self.correct += correct
            self.accuracy_sum += accuracy

    @property
    def judged(self) -> int:
        """Candidates with an outcome."""
        return self.candidates - self.failed

    @property
    def share_correct(self) -> float | None:
        """Of those judged; None where none was."""
        return self.correct / self.judged if self.judged else None

    @property
    def accuracy(self) -> float | None:
        """Mean over those judged; None where none was."""
        return self.accuracy_sum / self.judged if self.judged else None


@dataclass
class Summary:
    """Tallies by generator name, over all candidates, and over each query's best."""

    queries: int = 0
    by_method: dict[str, Tally] = field(default_factory=dict)
    all: Tally = field(default_factory=Tally)
    best: Tally = field(default_factory=Tally)
    """The best candidate of each query: what a perfect chooser among them would get."""
    asked: int = 0
    """Trials put to the backend, by this run."""
    from_store: int = 0
    """Trials whose response was in the store."""
    left: int = 0
    """Queries that are not done."""
    stopped_by: str | None = None
    """The option that ended the run before they were."""
    used: Usage = Usage()
    """What the trials that were not in the store took."""
    cost: float | None = None
    """Its price; None where the backend knows none."""
    first_failure: str | None = None
    """Why the first of the trials that failed did."""

    def add(self, judged: Sequence[tuple[Candidate, Outcome]]) -> None:
        """Count one query's candidates."""
        self.queries += 1
        best: tuple[bool | None, float | None] = (None, None)
        for candidate, outcome in judged:
            self.first_failure = self.first_failure or outcome.failure
            tally = self.by_method.setdefault(candidate.gen_method, Tally())
            for each in (tally, self.all):
                each.add(outcome.correct, outcome.accuracy)
            if outcome.accuracy is not None and (best[1] is None or outcome.accuracy > best[1]):
                best = (outcome.correct, outcome.accuracy)
        if judged:
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
