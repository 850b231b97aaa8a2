"""`pointer-rl show`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pointer_rl.cli.common import FILE, GuideCommand, number_option, plugin_options, with_options
from pointer_rl.cli.output import echo, echo_wrapped, on_terminal
from pointer_rl.cli.tables import counted
from pointer_rl.cli.trials import Page, ShowImage, format_number, quoted

if TYPE_CHECKING:
    from pointer_rl.report.trials import QueryTrials
    from pointer_rl.types import Candidate, Dataset, Example, Outcome

_COLOURS = {"correct": "green", "wrong": "red", "failed": "yellow"}


@click.command(cls=GuideCommand)
@click.argument("file", type=FILE)
@click.argument("query", required=False)
@click.option("--wrong", is_flag=True, help="Only candidates whose answer was judged wrong.")
@click.option("--failed", is_flag=True, help="Only candidates whose trial failed.")
@click.option(
    "--gen-method",
    metavar="NAME",
    help="Only candidates that this method proposed or, in an evaluation, that this arm showed.",
)
@number_option("--limit", 3, help="Queries to show.")
@click.option(
    "--images", is_flag=True, help="Show the images, in terminals that can (kitty, iTerm2, …)."
)
@with_options(
    plugin_options(
        "dataset",
        None,
        "Dataset with the questions of the demonstrations  [default: the one that FILE names].",
    )
)
def show(
    file: Path,
    query: str | None,
    wrong: bool,
    failed: bool,
    gen_method: str | None,
    limit: int,
    images: bool,
    dataset: str | None,
    dataset_opt: tuple[str, ...],
) -> None:
    """Look at trials: what queries were shown, and what the model answered.

    FILE is RL data, beam data or an evaluation (`evaluate --output-path`). Prints the query with
    the id QUERY, or the first few: question, annotators' answers, and each candidate with its
    judgement, proposer and demonstrations. --wrong and --failed together show both.
    """
    from pointer_rl.errors import InputError
    from pointer_rl.options import parse_assignments
    from pointer_rl.report.trials import judgement_of, read_trials

    wanted = {name for name, given in (("wrong", wrong), ("failed", failed)) if given}
    options = parse_assignments(dataset_opt, "--dataset-opt")
    view = _View(file, dataset, options, _image_shower() if images else None)
    seen = _Seen()
    for trials in read_trials(file):
        if query is not None and trials.id != query:
            continue
        if wanted and trials.are_beams:
            raise InputError(f"{file}: beam data, which have no answers: leave out --{min(wanted)}")
        passing = [
            place
            for place, each in enumerate(trials.candidates)
            if (not wanted or judgement_of(each) in wanted)
            and (gen_method is None or gen_method in trials.methods_of(each))
        ]
        seen.add(trials, passing)
        if passing and seen.passed <= limit:
            view.show(trials, passing)
        if query is not None:
            break
    if query is not None and not seen.queries:
        raise InputError(f"{file}: no query {query!r} in it")
    if gen_method is not None and gen_method not in seen.methods:
        known = ", ".join(sorted(seen.methods)) or "none"
        raise InputError(f"{file}: no candidate by {gen_method!r} (there are: {known})")
    if query is None or not seen.passed:
        echo_wrapped(seen.in_words(min(limit, seen.passed)))


@dataclass
class _Seen:
    """What of a file was looked at, and how much of it passes the filters."""

    queries: int = 0
    passed: int = 0
    candidates: int = 0
    passing: int = 0
    methods: set[str] = field(default_factory=set)

    def add(self, trials: QueryTrials, passing: Sequence[int]) -> None:
        self.queries += 1
        self.passed += bool(passing)
        self.candidates += len(trials.candidates)
        self.passing += len(passing)
        self.methods.update(each for one in trials.candidates for each in trials.methods_of(one))

    def in_words(self, shown: int) -> str:
        """`shown: 3 of the 9 queries with such candidates (31 of 123 candidates; …)`."""
        every = counted(self.queries, "query", "queries")
        candidates = counted(self.candidates, "candidate")
        if not self.passing:
            return f"no such candidates (of {candidates} in {every})"
        if self.passing == self.candidates:
            return f"shown: {shown:,} of {every} ({candidates})"
        passed = counted(self.passed, "query", "queries")
        return (
            f"shown: {shown:,} of the {passed} with such candidates ({self.passing:,} of "
            f"{candidates}; {every} in all)"
        )


class _View:
    """Prints queries; opens the dataset before the first."""

    def __init__(
        self,
        file: Path,
        dataset: str | None,
        options: Mapping[str, object],
        show_image: ShowImage | None,
    ) -> None:
        self._file, self._named, self._options = file, dataset, options
        self._show_image = show_image

    @cached_property
    def _dataset(self) -> Dataset | None:
        """The dataset of the file; if it cannot be opened, says why, and None."""
        from pointer_rl.datasets.recorded import open_recorded
        from pointer_rl.errors import PointerRLError
        from pointer_rl.report.trials import read_dataset_description

        described = read_dataset_description(self._file)
        try:
            return open_recorded(described, self._file, self._named, self._options)
        except PointerRLError as error:
            if self._named is not None or self._options:
                raise
            echo(f"pointer-rl: demonstrations are shown as rows alone: {error}", err=True)
            return None

    def _example(self, trials: QueryTrials) -> Example | None:
        """The query in the dataset, if it is there."""
        queries: Sequence[Example] = () if self._dataset is None else self._dataset.queries
        row = int(trials.record.get("query", {}).get("row", -1))
        if 0 <= row < len(queries) and queries[row].id == trials.id:
            return queries[row]
        return next((each for each in queries if each.id == trials.id), None)

    @cached_property
    def _page(self) -> Page:
        pool = None if self._dataset is None else self._dataset.pool
        return Page(pool, show_image=self._show_image)

    def show(self, trials: QueryTrials, places: Sequence[int]) -> None:
        """Print a query and those of its candidates that are at these places."""
        from pointer_rl.records.records import read_candidate
        from pointer_rl.report.trials import judgement_of

        trials.check(self._file)
        recorded, known = trials.record.get("query", {}), self._example(trials)
        self._page.query(
            trials.id,
            recorded.get("question", known.question if known else None),
            known.image if known else None,
            recorded.get("gt_answers_raw", known.answers if known else ()),
        )
        echo_wrapped(_counts(trials), indent=2)
        for place in places:
            one = trials.candidates[place]
            if trials.are_beams:
                echo_wrapped(_beam(place, one), indent=2, hanging=4)
            else:
                candidate, outcome = read_candidate(one)
                judgement = judgement_of(one)
                answer = _answer(judgement, outcome)
                colour = _COLOURS.get(judgement)
                echo_wrapped(f"candidate {place}: {answer}", indent=2, hanging=4, fg=colour)
                by = _proposer(candidate) if trials.arms is None else _arms(trials, one)
                echo_wrapped(by, indent=4, hanging=6)
            self._page.demonstrations([int(row) for row in one["pointer"]], indent=4)
        echo("")


def _counts(trials: QueryTrials) -> str:
    """`7 candidates: 2 correct, 5 wrong`, or `5 beams`."""
    from pointer_rl.report.trials import judgement_of

    number = len(trials.candidates)
    if trials.are_beams:
        return counted(number, "beam")
    judged = Counter(map(judgement_of, trials.candidates))
    each = ", ".join(f"{judged[name]:,} {name}" for name in sorted(judged))
    return f"{counted(number, 'candidate')}: {each or 'none'}"


def _answer(judgement: str, outcome: Outcome) -> str:
    """`wrong, accuracy 0.3: answer "blue", generation "blue."`."""
    if judgement == "failed":
        return f"failed: {outcome.failure}"
    said = f"{judgement}, accuracy {format_number(outcome.accuracy)}"
    said += f": answer {quoted(outcome.answer)}"
    if outcome.raw_generation is not None:
        said += f", generation {quoted(outcome.raw_generation)}"
    if outcome.gt_prob is not None:
        said += f", probability of the annotators' answers {format_number(outcome.gt_prob)}"
    return said


def _proposer(candidate: Candidate) -> str:
    """`by sample, log-probability -5.3, temperature 1.5`."""
    scores = {
        "rank": candidate.beam_rank,
        "score": candidate.beam_score,
        "log-probability": candidate.logprob_score,
        "temperature": candidate.temperature,
        "top-p": candidate.top_p,
        "similarity": candidate.similarity_score,
    }
    known = [
        f"{name} {format_number(value)}" for name, value in scores.items() if value is not None
    ]
    return ", ".join([f"by {candidate.gen_method}", *known])


def _arms(trials: QueryTrials, candidate: Mapping[str, Any]) -> str:
    """`shown by random (2 shots), image, oracle (1, 2 shots)`."""
    by_shots: dict[tuple[int, ...], list[str]] = {}
    for arm, shots in trials.arms_of(candidate).items():
        by_shots.setdefault(tuple(shots), []).append(arm)
    return "shown by " + ", ".join(
        f"{', '.join(arms)} ({', '.join(map(str, shots))} {'shot' if shots == (1,) else 'shots'})"
        for shots, arms in by_shots.items()
    )


def _beam(place: int, beam: Mapping[str, Any]) -> str:
    """`beam 0: InfoScore 9.2 (5.1 + 4.1)`."""
    steps = " + ".join(map(format_number, beam.get("step_scores", [])))
    return f"beam {place}: InfoScore {format_number(beam['score'])}" + (
        f" ({steps})" if steps else ""
    )


def _image_shower() -> ShowImage | None:
    """How images are shown in this terminal; None, with a line, if they cannot be."""
    from pointer_rl.cli.inline_images import image_printer, protocol_of

    protocol = protocol_of(os.environ) if on_terminal() else None
    if protocol is None:
        why = "this terminal is not known to show any" if on_terminal() else "this is no terminal"
        echo(f"pointer-rl: --images: images are left out: {why}", err=True)
        return None
    return image_printer(protocol)
