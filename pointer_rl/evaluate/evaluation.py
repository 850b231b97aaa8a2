"""An evaluation: what was measured, and what follows from it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import stdev
from typing import Any, ClassVar

from numpy.typing import NDArray

from pointer_rl.evaluate.arms import ATTAINABLE
from pointer_rl.evaluate.conclusions import Comparison, Conclusions, in_words
from pointer_rl.evaluate.measure import Measured
from pointer_rl.evaluate.statistics import Share

MANY_FAILURES = 0.05
"""Share of left-out queries above which the result is not to be trusted."""


@dataclass(frozen=True)
class Leakage:
    """What the arms may have seen of the queries."""

    shared_images: int
    """Queries whose image is also a pool example's, by content."""
    shown: int
    """Those that may be shown it: under another image_id it is not masked."""
    trained_on: Mapping[str, int]
    """Policy → number of these queries that it was trained on, if that is known."""


@dataclass(frozen=True)
class Evaluation:
    """The arms' accuracies on the same queries, and their comparisons."""

    SUMMARY: ClassVar = (
        "verdict",
        "not_beaten",
        "sentences",
        "warnings",
        "queries",
        "trials",
        "failed",
        "rows",
        "comparisons",
        "settings",
    )
    """What a policy's card says of an evaluation."""

    settings: Mapping[str, Any]
    """Everything that decides it: dataset, backend, prompt, metric, decoding, arms, seeds."""
    query_ids: tuple[str, ...]
    measured: tuple[Measured, ...]
    """In ascending shots, the first at 0."""
    records: Sequence[bytes]
    """An encoded record per query, as in RL data, with a candidate for each pointer that any arm
    showed."""
    conclusions: Conclusions | None
    """None if nothing is left to compare."""
    leakage: Leakage
    training_calls: Mapping[tuple[int, str], int | None]
    """By shots and arm, the trials that it was trained with; None if that is unknown."""
    policies: Sequence[str]
    """The arms that are policies: those are expected to tell queries apart."""
    left_out: Mapping[str, str]
    """Baselines that could not take part, and why."""
    trials: int
    failed: int
    """Trials without an outcome."""
    first_failure: str | None
    from_cache: int = 0
    """Trials answered from the response cache; not in the JSON, since the result is the same."""

    def __repr__(self) -> str:
        return f"Evaluation({self.verdict!r})"

    @property
    def verdict(self) -> str:
        """The primary comparison in words, and the arms that the primary arm does not beat."""
        if self.conclusions is None:
            return f"nothing measured: a trial of every query failed ({self.first_failure})"
        primary = self.conclusions.primary
        [measured] = [each for each in self.measured if each.shots == primary.shots]
        spread = _spread(self._training_seeds(measured, primary.arm))
        return self.conclusions.verdict + (spread and f". {primary.arm} is the mean of {spread}")

    def _training_seeds(self, measured: Measured, arm: str) -> list[float]:
        """Accuracies of a policy's seeds; [] for one seed, and for arms that are no policies."""
        return measured.seeds(arm) if arm in self.policies else []

    def sentences(self) -> list[str]:
        """The verdict, its comparisons, what the shares refer to, and warnings."""
        found = [self.verdict]
        if self.conclusions is not None:
            found += [*self.conclusions.comparisons(), *self._shares(self.conclusions)]
        found += [f"{arm} takes no part: {why}" for arm, why in self.left_out.items()]
        return [*found, *self._collapsed(), *self._leaks()]

    def _shares(self, conclusions: Conclusions) -> Iterator[str]:
        yield (
            "gap recovered: (arm - random) / (oracle - random); the oracle is "
            f"{self.settings['oracle']}"
        )
        if conclusions.of_attainable is not None:
            primary = conclusions.primary
            share = _share(conclusions.of_attainable)
            yield (
                f"{primary.arm}, {in_words(primary.shots)}: recovers {share} of the gap to "
                f"{ATTAINABLE}, the rows that the dataset knows to answer a query"
            )
        outside = [
            f"{arm} at {in_words(shots)} ({each.share:.2f})"
            for (shots, arm), each in conclusions.recovered.items()
            if isinstance(each, Share) and not 0 <= each.share <= 1
        ]
        if outside:
            yield (
                f"WARNING: shares outside 0 to 1: {', '.join(outside)}; below 0 an arm is worse "
                "than random, above 1 better than the oracle, which is then no measure of it"
            )

    def _collapsed(self) -> Iterator[str]:
        for each in self.measured:
            for arm in self.policies:
                found = each.collapse(arm) if arm in each.shown else None
                if found is not None:
                    yield (
                        f"WARNING: {arm} hardly tells queries apart at {in_words(each.shots)}: "
                        f"{found}"
                    )

    def _leaks(self) -> Iterator[str]:
        total = len(self.query_ids)
        shared = self.leakage.shared_images
        if shared:
            yield f"{shared:,} of {total:,} queries share their image with a pool example" + (
                f"; WARNING: {self.leakage.shown:,} may be shown it, under another image_id"
                if self.leakage.shown
                else " and are not shown it"
            )
        else:
            yield "no query shares its image with a pool example"
        for name, number in self.leakage.trained_on.items():
            yield (
                f"WARNING: {name} was trained on {number:,} of these {total:,} queries (by id)"
                if number
                else f"{name} was trained on none of these queries"
            )

    def warnings(self) -> list[str]:
        """Queries left out because a trial failed; with a warning if there are many."""
        total = len(self.query_ids)
        return [
            ("WARNING, not to be trusted: " if each.left_out > MANY_FAILURES * total else "")
            + f"{each.left_out:,} of {total:,} queries left out at {in_words(each.shots)}, where a "
            f"trial failed (first: {self.first_failure})"
            for each in self.measured
            if each.left_out
        ]

    # --- as a table ---

    def rows(self) -> list[tuple[str, ...]]:
        """Header and lines of a table: points, and the intervals of `Conclusions`.

        `shown` is the mean number of demonstrations; it is there if a policy shows fewer than the
        shots.
        """
        varies = any(
            shown is not None and shown < each.shots
            for each in self.measured
            for arm in self.policies
            if arm in each.shown
            for shown in [each.demonstrations(arm)]
        )
        rows = [
            (
                *("shots", "arm", "shown", "queries", "calls", "accuracy"),
                *("vs random", "interval", "gap recovered"),
            ),
            *(self._row(each, arm) for each in self.measured for arm in each.accuracies),
        ]
        return rows if varies else [(*row[:2], *row[3:]) for row in rows]

    def _row(self, measured: Measured, arm: str) -> tuple[str, ...]:
        accuracy = measured.accuracy(arm)
        compared = recovered = None
        if self.conclusions is not None:
            compared = self.conclusions.against_random.get((measured.shots, arm))
            recovered = self.conclusions.recovered.get((measured.shots, arm))
        difference = compared and compared.difference
        shown = measured.demonstrations(arm)
        return (
            str(measured.shots),
            arm,
            "" if shown is None else f"{shown:.2f}",
            f"{len(self.query_ids) - measured.left_out:,}",
            self._calls(measured, arm),
            "-" if accuracy is None else self._accuracy(accuracy, measured, arm),
            f"{100 * difference.mean:+.1f}" if difference else "",
            f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f}" if difference else "",
            "" if recovered is None else _share(recovered),
        )

    def _accuracy(self, accuracy: float, measured: Measured, arm: str) -> str:
        """`81.2 ±1.8`: with the standard deviation over the seeds of a training."""
        seeds = self._training_seeds(measured, arm)
        return f"{100 * accuracy:.1f}" + (f" ±{100 * stdev(seeds):.1f}" if seeds else "")

    def _calls(self, measured: Measured, arm: str) -> str:
        """`15,000 + 200`: trials to train the arm, and in this evaluation."""
        trained = self.training_calls[measured.shots, arm]
        asked = f"{measured.calls(arm):,}"
        return asked if trained == 0 else f"{'–' if trained is None else f'{trained:,}'} + {asked}"

    # --- as JSON ---

    def summary(self) -> dict[str, Any]:
        """What a policy's card says of it: verdict, table, settings; no query by query."""
        return {key: self._content[key] for key in self.SUMMARY}

    def to_json(self) -> str:
        """Everything, one entry per line; the same evaluation gives the same bytes.

        `pointers` has what each arm showed each query, by shots; `records` has the answers.
        """
        return "".join(self.parts_of_json())

    def parts_of_json(self) -> Iterator[str]:
        """`to_json` in parts, so that a large evaluation is not held as one string."""
        yield "{\n"
        for key, value in {
            **self._content,
            "query_ids": self.query_ids,
            "accuracies": {str(each.shots): _by_query(each) for each in self.measured},
            "pointers": {str(each.shots): each.shown for each in self.measured},
        }.items():
            encoded = json.dumps(value, ensure_ascii=False, allow_nan=False)
            yield f"{json.dumps(key)}: {encoded},\n"
        yield '"records": {'
        separator = "\n"
        for id, record in zip(self.query_ids, self.records, strict=True):
            yield f"{separator}{json.dumps(id)}: {record.decode()}"
            separator = ",\n"
        yield "\n}\n}\n"

    @cached_property
    def _content(self) -> dict[str, Any]:
        compared = self.conclusions and (
            *self.conclusions.against_random.values(),
            *self.conclusions.rivals,
        )
        return {
            "verdict": self.verdict,
            "not_beaten": list(self.conclusions.not_beaten) if self.conclusions else [],
            "sentences": self.sentences(),
            "warnings": self.warnings(),
            "queries": len(self.query_ids),
            "trials": self.trials,
            "failed": self.failed,
            "rows": [self._entry(each, arm) for each in self.measured for arm in each.accuracies],
            "comparisons": [_comparison(each) for each in compared or ()],
            "leakage": asdict(self.leakage),
            "settings": dict(self.settings),
        }

    def _entry(self, measured: Measured, arm: str) -> dict[str, Any]:
        recovered = self.conclusions and self.conclusions.recovered.get((measured.shots, arm))
        return {
            "arm": arm,
            "shots": measured.shots,
            "queries": len(self.query_ids) - measured.left_out,
            "training_calls": self.training_calls[measured.shots, arm],
            "calls": measured.calls(arm),
            "demonstrations": measured.demonstrations(arm),
            "accuracy": measured.accuracy(arm),
            "accuracy_by_seed": measured.seeds(arm),
            "gap_recovered": asdict(recovered) if isinstance(recovered, Share) else None,
        }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "arm": comparison.arm,
        "reference": comparison.reference,
        "shots": comparison.shots,
        "primary": comparison.family is None,
        "distinguishable": comparison.difference.distinguishable,
        **asdict(comparison.difference),
    }


def _by_query(measured: Measured) -> dict[str, Any]:
    """Arm → its accuracies in the order of the query ids; null if left out."""
    arms: dict[str, Any] = {arm: _numbers(values) for arm, values in measured.accuracies.items()}
    for arm, by_seed in measured.by_seed.items():
        arms[f"{arm} by seed"] = [_numbers(values) for values in by_seed]
    return arms


def _spread(seeds: Sequence[float]) -> str:
    """`3 training seeds: 79.5, 81.0, 83.0 (standard deviation 1.8)`; "" if there is one."""
    if not seeds:
        return ""
    each = ", ".join(f"{100 * accuracy:.1f}" for accuracy in seeds)
    deviation = f"standard deviation {100 * stdev(seeds):.1f}"
    return f"{len(seeds)} training seeds: {each} ({deviation}); intervals are for these seeds"


def _share(found: Share | str) -> str:
    if isinstance(found, str):
        return f"– ({found})"
    return f"{found.share:.2f} ({found.low:.2f} to {found.high:.2f})"


def _numbers(values: NDArray[Any] | Sequence[float]) -> list[float | None]:
    return [None if math.isnan(value) else round(float(value), 6) for value in values]
