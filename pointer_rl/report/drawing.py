"""Draw a figure of the report by its name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pointer_rl.errors import InputError, did_you_mean
from pointer_rl.evaluate.evaluation import Evaluation as Measured
from pointer_rl.records.layouts import detect_layout, upgrade_record
from pointer_rl.report.evaluations import Evaluation
from pointer_rl.report.figures import Figure
from pointer_rl.report.inputs import KINDS, Input, Kind, find_inputs
from pointer_rl.report.outcomes import outcomes_figure
from pointer_rl.report.svg import Chart, Panel
from pointer_rl.report.tally import Tally
from pointer_rl.report.training import Training, group_trainings
from pointer_rl.report.trial_files import is_usable
from pointer_rl.report.trials import QueryTrials, read_trials
from pointer_rl.train.run import TrainResult

Source = str | os.PathLike[str] | Measured | TrainResult | Mapping[str, Any]
_IN_MEMORY = "in memory"


def figure(name: str, *sources: Source) -> Figure:
    """Draw a figure of the report. A notebook shows it as the last value of a cell.

    ========  ============================================  =======================
    name      shows                                         sources
    ========  ============================================  =======================
    arms      each arm against random, with its interval    an evaluation
    rivals    the primary arm against every other arm       an evaluation
    shots     accuracy by number of demonstrations          an evaluation
    training  learning curves                               trainings
    outcomes  right, wrong and failed candidates by method  RL data
    ========  ============================================  =======================

    A source is a file or folder, a result of `Session.evaluate` or `Session.train`, or the
    `records` of RL data. `save("arms.svg")` writes the figure to a file. Raises InputError for an
    unknown name, and for a source that is of the wrong kind, is damaged or has nothing to show.
    """
    if name not in _FIGURES:
        raise InputError(f"no figure {name!r}{did_you_mean(name, _FIGURES)}")
    if not sources:
        raise InputError(f"{name}: give what to show: a file, a folder, or a result of a session")
    return _FIGURES[name](sources)


def _arms(sources: Sequence[Source]) -> Figure:
    evaluation = _evaluation(sources)
    tables = evaluation.tables()
    if not tables:
        raise InputError(f"{evaluation.input.name}: no arm shows demonstrations")
    return _figure(tables[0].chart())


def _rivals(sources: Sequence[Source]) -> Figure:
    evaluation = _evaluation(sources)
    if not evaluation.rivals()[1]:
        raise InputError(f"{evaluation.input.name}: {evaluation.primary} was compared with nothing")
    return _figure(evaluation.rivals_chart())


def _shots(sources: Sequence[Source]) -> Figure:
    evaluation = _evaluation(sources)
    chart = evaluation.chart()
    if chart is None:
        raise InputError(
            f"{evaluation.input.name}: only one number of demonstrations; evaluate with several"
        )
    return _figure(chart)


def _training(sources: Sequence[Source]) -> Figure:
    given = [each.folder if isinstance(each, TrainResult) else each for each in sources]
    trainings = [Training.read(each, {}) for each in _inputs(given, "training")]
    groups = group_trainings(trainings)
    if len(groups) > 1:
        raise InputError(
            "trainings on beams and on rewards have different metrics: give those of one kind"
        )
    if not groups:
        raise InputError(f"{trainings[0].input.name}: no metrics.jsonl")
    return groups[0].figure()


def _outcomes(sources: Sequence[Source]) -> Figure:
    tallies = {}
    records = [each for each in sources if isinstance(each, Mapping)]
    for number, each in enumerate(records):
        name = _IN_MEMORY if len(records) == 1 else f"{_IN_MEMORY} {number + 1}"
        tallies[name] = _tally(
            name,
            (
                QueryTrials(id, upgrade_record(record, detect_layout(record)))
                for id, record in each.items()
            ),
        )
    paths = [each for each in sources if not isinstance(each, Mapping)]
    for input in _inputs(paths, "rl") if paths else ():
        tallies[input.name] = _tally(input.name, read_trials(input.path))
    return outcomes_figure(tallies)


_FIGURES: Mapping[str, Callable[[Sequence[Source]], Figure]] = {
    "arms": _arms,
    "rivals": _rivals,
    "shots": _shots,
    "training": _training,
    "outcomes": _outcomes,
}


def _figure(chart: Chart) -> Figure:
    return Figure([Panel("", chart)])


def _evaluation(sources: Sequence[Source]) -> Evaluation:
    [source, *others] = sources
    if isinstance(source, Measured):
        input = Input(Path(), "evaluation", "the evaluation")
        found = [Evaluation.of(input, json.loads(source.to_json()))]
    else:
        found = [Evaluation.read(each) for each in _inputs([source], "evaluation")]
    if others or len(found) > 1:
        raise InputError("this figure is of one evaluation: give one")
    return found[0]


def _inputs(sources: Sequence[Source], kind: Kind) -> list[Input]:
    """The files or folders of a kind."""
    paths = []
    for each in sources:
        if not isinstance(each, str | os.PathLike):
            what = type(each).__name__
            raise InputError(f"this figure is of {KINDS[kind][1]}: give a path, not {what}")
        paths.append(Path(each))
    found = find_inputs(paths)
    if not (fitting := [each for each in found if each.kind == kind]):
        raise InputError(
            f"{paths[0]}: this figure is of {KINDS[kind][1]}, not of {KINDS[found[0].kind][1]}"
        )
    return fitting


def _tally(name: str, queries: Iterable[QueryTrials]) -> Tally:
    tally = Tally()
    for trials in queries:
        if not is_usable(trials):
            raise InputError(
                f"{name}: {trials.id!r}: what is counted is missing or malformed "
                "(pointer-rl validate lists all problems)"
            )
        tally.add(trials)
    return tally
