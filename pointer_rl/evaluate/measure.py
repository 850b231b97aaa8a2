"""From the arms' pointers to accuracies: every trial is asked once, failures are left out in pairs.

Shapes: N queries, S seeds of an arm.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointer_rl.errors import PluginError
from pointer_rl.evaluate.arms import METHOD, ORACLE, Arm, Floats, Pointers, Setting
from pointer_rl.records.fields import has_failed
from pointer_rl.records.records import encode_record, to_record
from pointer_rl.session.candidates import judge_candidates
from pointer_rl.session.judge import Judge
from pointer_rl.session.session import Session
from pointer_rl.types import Candidate, Example, Metric, Pointer, Window

FEW_POINTERS = 5
ENOUGH_QUERIES = 20


@dataclass(frozen=True, kw_only=True)
class EvaluationJob:
    """Ask each query with the pointers that the arms show it; see `pointer_rl.types.Job`."""

    session: Session
    queries: Sequence[Example]
    pointers: Sequence[Mapping[Pointer, Sequence[str]]]
    """For each query its pointers, with the arms that show them."""

    def __getstate__(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @cached_property
    def _judge(self) -> Judge:
        return self.session.judge()

    def run(self, window: Window) -> dict[int, dict[str, Any]]:
        """The record of every query in `window.todo`, with a candidate for each pointer."""
        queries = [self.queries[index] for index in window.todo]
        candidates = [[Candidate(p, METHOD) for p in self.pointers[i]] for i in window.todo]
        arms = [names for i in window.todo for names in self.pointers[i].values()]
        pool, observer = self.session.dataset.pool, self.session.observer
        observer.window(len(queries), len(arms))
        judged = judge_candidates(self._judge, queries, pool, candidates, observer, arms)
        return dict(zip(window.todo, map(to_record, queries, judged), strict=True))


@dataclass
class Asked:
    """Accuracy by query number and pointer; NaN if the trial failed."""

    accuracies: dict[tuple[int, Pointer], float] = field(default_factory=dict)
    failed: int = 0
    first_failure: str | None = None
    records: list[bytes] = field(default_factory=list)
    """The queries' records, with a candidate for each pointer that was asked. Encoded, they take a
    tenth of the memory."""

    def add(self, query: int, record: Mapping[str, Any]) -> None:
        """Take in the record of a query."""
        self.records.append(encode_record(record))
        for candidate in record["pointer_candidates"]:
            accuracy = math.nan
            if has_failed(candidate):
                self.failed += 1
                self.first_failure = self.first_failure or candidate["eval_error"]
            else:
                accuracy = candidate["vqa_acc_score"]
            self.accuracies[query, tuple(candidate["pointer"])] = accuracy


@dataclass(frozen=True)
class Measured:
    """The arms' accuracies at one number of shots.

    A query with a failed trial at these shots is left out of every arm: NaN in all of them.
    """

    shots: int
    accuracies: Mapping[str, Floats]
    """[N] by arm."""
    by_seed: Mapping[str, Floats]
    """[S, N] seed by seed, of the arms that have several."""
    shown: Mapping[str, Pointers]
    """By arm, the pointers that it had asked for each query. A vote has none."""

    @property
    def kept(self) -> NDArray[np.bool_]:
        """[N] whether the query counts."""
        first = next(iter(self.accuracies.values()))
        return ~np.isnan(first)

    @property
    def left_out(self) -> int:
        """Queries that do not count."""
        return int((~self.kept).sum())

    def accuracy(self, arm: str) -> float | None:
        """Mean over the queries that count; None if there are none."""
        values = self.accuracies[arm][self.kept]
        return float(values.mean()) if len(values) else None

    def seeds(self, arm: str) -> list[float]:
        """Accuracy of each of its seeds over the queries that count; [] if it has one."""
        if arm not in self.by_seed or not self.kept.any():
            return []
        means: list[float] = self.by_seed[arm][:, self.kept].mean(axis=1).tolist()
        return means

    def calls(self, arm: str) -> int:
        """Trials that the arm needs by itself, cached or not; a pointer of a query counts once."""
        return sum(len(set(pointers)) for pointers in self.shown[arm])

    def demonstrations(self, arm: str) -> float | None:
        """Mean number shown to the queries that count; None for an arm that shows no pointers."""
        lengths = [
            float(np.mean([len(each) for each in pointers]))
            for pointers, kept in zip(self.shown[arm], self.kept, strict=True)
            if kept and pointers
        ]
        return float(np.mean(lengths)) if lengths else None

    def collapse(self, arm: str) -> str | None:
        """Evidence that an arm shows most queries the same, in words; None if there is none.

        It is fewer than FEW_POINTERS different pointers, or one row in more than half of them. It
        cannot be said of fewer than ENOUGH_QUERIES queries.
        """
        pointers = [each for of_query in self.shown[arm] for each in of_query]
        number, different = len(pointers), len(set(pointers))
        if number < ENOUGH_QUERIES:
            return None
        rows = Counter(chain.from_iterable(pointers))
        row, times = rows.most_common(1)[0] if rows else (None, 0)
        if different >= FEW_POINTERS and 2 * times <= number:
            return None
        often = f", and row {row} in {times:,} of them" if times else ""
        return f"{different:,} different pointers for {number:,} queries{often}"


def pointers_to_ask(settings: Iterable[Setting]) -> list[dict[Pointer, list[str]]]:
    """For each query, every pointer that any arm shows it in any setting, with these arms.

    The oracle is not named: its accuracy is not the mean of its pointers'.
    """
    settings = list(settings)
    found: list[dict[Pointer, list[str]]] = [{} for _ in settings[0].queries]
    for setting in settings:
        for arm, shown in setting.chosen.items():
            for arms_of, pointers in zip(found, shown, strict=True):
                for pointer in pointers:
                    arms_of.setdefault(pointer, []).extend([arm] if arm != ORACLE else [])
    return found


def _shown(setting: Setting) -> list[dict[Pointer, None]]:
    return [
        dict.fromkeys(chain.from_iterable(of_query))
        for of_query in zip(*setting.chosen.values(), strict=True)
    ]


def measure(setting: Setting, arms: Mapping[str, Arm], asked: Asked, metric: Metric) -> Measured:
    """The accuracies of every arm that chose in this setting.

    Raises PluginError for an arm that has no accuracy on a query without a failed trial.
    """
    outcomes = [
        {pointer: asked.accuracies[number, pointer] for pointer in pointers}
        for number, pointers in enumerate(_shown(setting))
    ]
    out = np.isnan([sum(each.values()) for each in outcomes])
    by_seed = {}
    for name, shown in setting.chosen.items():
        if arms[name].seeds > 1:
            if any(len(pointers) != arms[name].seeds for pointers in shown):
                raise PluginError(f"arm {name} does not show a query one pointer for each seed")
            pairs = zip(outcomes, shown, strict=True)
            by_seed[name] = np.array([[mine[p] for p in pointers] for mine, pointers in pairs]).T
    accuracies = {
        name: arms[name].accuracies(setting, shown, outcomes, metric)
        for name, shown in setting.chosen.items()
    }
    for name, each in accuracies.items():
        if each.shape != out.shape or np.isnan(each[~out]).any():
            raise PluginError(f"arm {name} does not have an accuracy for each query")
    return Measured(
        shots=setting.shots,
        accuracies={name: np.where(out, np.nan, each) for name, each in accuracies.items()},
        by_seed={name: np.where(out, np.nan, each) for name, each in by_seed.items()},
        shown=setting.chosen,
    )
