"""A page that answers what happened, whether it can be believed, and what went wrong.

The page is one file that loads nothing: its style, its script and its images are in it, and a
content security policy forbids anything else. Foreign text is escaped once: on its way into the
HTML by Jinja, and on its way into JSON by `gallery.to_json`; the script only ever sets text.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pointer_rl.datasets.recorded import open_recorded
from pointer_rl.errors import InputError, PointerRLError, first_line
from pointer_rl.escaping import printable
from pointer_rl.files import AtomicFile, check_writable
from pointer_rl.records.formats import read_meta
from pointer_rl.report.evaluations import Evaluation
from pointer_rl.report.gallery import Sample, share_out, to_json
from pointer_rl.report.inputs import Input, find_inputs
from pointer_rl.report.svg import STYLES
from pointer_rl.report.tally import (
    FEWEST_QUERIES,
    JOINT_LEVEL,
    MethodTally,
    Mean,
    RowLift,
    Tally,
    method_name,
)
from pointer_rl.report.thumbnails import Thumbnails
from pointer_rl.report.training import Training, group_trainings
from pointer_rl.report.trials import read_trials
from pointer_rl.types import Dataset, Example
from pointer_rl.validate import Report as Validation
from pointer_rl.validate import ValidationConfig, validate_file

_KINDS = {
    "evaluation": "evaluation",
    "rl": "RL data",
    "beams": "beam data",
    "training": "training folder",
}
_TEXT_SHARE = 0.55
"""Share of the page that the text of the queries may take; thumbnails have what it leaves."""
_FINDINGS = 20
"""Findings of validate that are shown of a file."""
_SHOWN_IDS = 5
_RANKED = 8
"""Rows that help, and rows that hurt."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """How a report is made."""

    max_bytes: int = 25_000_000
    """Size of the page."""
    dataset: str | None = None
    """The dataset of all files; None: the one that each file names."""
    dataset_options: Mapping[str, object] = field(default_factory=dict)
    overwrite: bool = False


@dataclass(frozen=True)
class Written:
    """What was written."""

    path: Path
    size: int
    notes: Sequence[str]
    """What is not in the page, and why."""


def write_report(
    paths: Sequence[Path], output_path: Path, options: ReportOptions = ReportOptions()
) -> Written:
    """Write the page of these files and folders.

    Raises InputError for a path that is no input or is damaged, for a file that exists and may not
    be replaced, and for a page that cannot be written.
    """
    if output_path.suffix != ".html":
        raise InputError(f"{output_path}: the report is an .html file; name one")
    check_writable(output_path, overwrite=options.overwrite)
    inputs = find_inputs(paths)
    datasets = _Datasets(options)
    evaluations = [Evaluation.read(each) for each in inputs if each.kind == "evaluation"]
    trials = _read_trials(inputs, evaluations, datasets, int(options.max_bytes * _TEXT_SHARE))
    tallies = {each.input.path: each.tally for each in trials}
    trainings = [Training.read(each, tallies) for each in inputs if each.kind == "training"]
    page = _Page(inputs, evaluations, trials, trainings, datasets)
    text, notes = page.render(options.max_bytes)
    with AtomicFile(output_path) as file:
        file.write(text)
    return Written(output_path, len(text), notes)


# --- reading ----------------------------------------------------------------------------------


class _Datasets:
    """The datasets of the files, each opened once; or why one could not be opened."""

    def __init__(self, options: ReportOptions) -> None:
        self._options = options
        self._by_description: dict[str, int | None] = {}
        self.opened: list[Dataset] = []
        self.reasons: dict[str, str] = {}
        """Name of a file → why its dataset is not known."""

    def number_of(self, described: object, input: Input) -> int | None:
        """The number of the dataset that a file describes; None if it cannot be opened.

        Raises PointerRLError if the user named the dataset and it cannot be opened.
        """
        key = repr(described)
        if key not in self._by_description:
            name, values = self._options.dataset, self._options.dataset_options
            try:
                self.opened.append(open_recorded(described, input.path, name, values))
                self._by_description[key] = len(self.opened) - 1
            except PointerRLError as error:
                if name is not None or values:
                    raise
                self._by_description[key] = None
                self.reasons[input.name] = first_line(error)
        return self._by_description[key]


@dataclass
class _Trials:
    """A file of trials, as the page shows it."""

    input: Input
    meta: Mapping[str, Any]
    dataset_number: int | None
    dataset: Dataset | None
    tally: Tally
    sample: Sample
    evaluation: Evaluation | None = None
    validation: Validation | None = None
    unread: str | None = None
    """Why there are no trials; None if there are."""

    @property
    def is_evaluation(self) -> bool:
        return self.evaluation is not None

    @property
    def are_beams(self) -> bool:
        return self.input.kind == "beams"

    @property
    def highlight(self) -> str | None:
        """The method to look at first."""
        found = self.evaluation
        return None if found is None else method_name(found.primary, found.primary_shots)

    @property
    def methods(self) -> list[tuple[str, MethodTally]]:
        return list(self.tally.methods.items())

    @property
    def main_methods(self) -> list[tuple[str, MethodTally]]:
        """Of an evaluation, the arms at the primary's shots."""
        if self.evaluation is None:
            return self.methods
        shots = self.evaluation.primary_shots
        arms = dict.fromkeys(str(row["arm"]) for row in self.evaluation.content["rows"])
        names = [method_name(arm, shots) for arm in arms]
        return [(name, self.tally.methods[name]) for name in names if name in self.tally.methods]

    # --- demonstrations ---

    @property
    def ranked(self) -> list[tuple[str, list[RowLift]]]:
        """Title and rows of the tables of rows that help and of rows that hurt."""
        lifts = self.tally.ranked_lifts()
        helps = [each for each in lifts if each.lift > 0][:_RANKED]
        hurts = [each for each in reversed(lifts) if each.lift < 0][:_RANKED]
        return [
            (title, rows)
            for title, rows in (("Rows that help", helps), ("Rows that hurt", hurts))
            if rows
        ]

    @property
    def usage_in_words(self) -> Iterator[str]:
        tally, lifts = self.tally, self.tally.ranked_lifts()
        pool = None if self.dataset is None else len(self.dataset.pool)
        shown = len(tally.trials_of_row)
        yield (
            f"{shown:,} different rows were shown" + (f", of a pool of {pool:,}." if pool else ".")
        )
        if lifts:
            beyond = sum(each.beyond_chance for each in lifts)
            yield (
                f"{len(lifts):,} rows were compared in {FEWEST_QUERIES} queries or more; {beyond:,} "
                f"of them help or hurt beyond chance (*), with intervals that hold together at "
                f"{JOINT_LEVEL:.0%}.".replace("%", " %")
            )
        if tally.orders:
            yield (
                f"{tally.orders:,} pairs of trials show a query the same rows in another order: "
                f"{tally.orders_differ:,} ({tally.orders_differ / tally.orders:.1%}) differ in "
                "accuracy.".replace("%", " %")
            )

    @property
    def position_rows(self) -> list[tuple[int, int, Mean]]:
        """(demonstrations, position from 1, accuracy)."""
        return [
            (shown, place + 1, mean)
            for (shown, place), mean in sorted(self.tally.positions.items())
        ]

    def describe_row(self, row: int) -> str:
        """Question and answer of a pool row."""
        example = _at(self.dataset and self.dataset.pool, row)
        return "" if example is None else f"{example.question} → {example.answer}"


def _read_trials(
    inputs: Sequence[Input],
    evaluations: Sequence[Evaluation],
    datasets: _Datasets,
    most: int,
) -> list[_Trials]:
    """Every file of trials; `most` bytes of queries are kept of all together."""
    by_path = {each.input.path: each for each in evaluations}
    found: list[_Trials] = []
    part = most
    for input in inputs:
        if input.kind == "training":
            continue
        evaluation = by_path.get(input.path)
        meta = (read_meta(input.path) or {}) if evaluation is None else evaluation.settings
        number = datasets.number_of(meta.get("dataset"), input)
        one = _Trials(
            input=input,
            meta=meta,
            dataset_number=number,
            dataset=None if number is None else datasets.opened[number],
            tally=Tally(),
            sample=Sample(input.name),
            evaluation=evaluation,
        )
        one.tally.answers_of = _answers(one.dataset)
        _read_into(one, part)
        found.append(one)
        part = share_out([each.sample for each in found], most)
    return found


def _read_into(one: _Trials, most: int) -> None:
    try:
        for trials in read_trials(one.input.path):
            trials.check(one.input.path)
            one.tally.add(trials)
            one.sample.add(trials, most)
    except InputError as error:
        if one.evaluation is None or one.tally.queries:
            raise
        one.unread = str(error)  # an evaluation of an earlier version, without answers
    if one.input.kind == "rl":
        one.validation = validate_file(one.input.path, ValidationConfig(max_findings=_FINDINGS))


def _answers(dataset: Dataset | None) -> Any:
    pool = None if dataset is None else dataset.pool

    def answer_of(row: int) -> str | None:
        example = _at(pool, row)
        return None if example is None else example.answer

    return answer_of


def _at(examples: Sequence[Example] | None, row: int) -> Example | None:
    return examples[row] if examples is not None and 0 <= row < len(examples) else None


# --- the page ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Block:
    """JSON that the script reads when it needs it."""

    id: str
    json: Markup


@dataclass(frozen=True)
class _Problem:
    title: str
    lines: Sequence[str]


@dataclass(frozen=True)
class _Provenance:
    name: str
    kind: str
    facts: Sequence[tuple[str, str]]
    command: str | None = None


class _Page:
    """Everything that is in the page."""

    def __init__(
        self,
        inputs: Sequence[Input],
        evaluations: Sequence[Evaluation],
        trials: Sequence[_Trials],
        trainings: Sequence[Training],
        datasets: _Datasets,
    ) -> None:
        self._inputs, self._evaluations = inputs, evaluations
        self._trials, self._trainings, self._datasets = trials, trainings, datasets

    def render(self, most: int) -> tuple[bytes, list[str]]:
        """The page in UTF-8, of at most `most` bytes, and what it leaves out."""
        shown = [each for each in self._trials if each.sample.kept]
        blocks = [
            _block(f"queries-{number}", f"[{','.join(each.sample.in_file_order())}]")
            for number, each in enumerate(shown)
        ]
        pairs = [each for each in map(_pairs, shown) if each is not None]
        blocks.append(_block("pairs", to_json(pairs)))
        bare = self._fill(shown, blocks, {}, bool(pairs), [])
        thumbnails = Thumbnails(most - len(bare) - 2_000)
        tables, notes = self._tables(shown, thumbnails)
        blocks.append(_block("thumbnails", to_json(thumbnails.encoded)))
        sampling = [*self._sampling(shown), *notes]
        return self._fill(shown, blocks, tables, bool(pairs), sampling), sampling

    def _fill(
        self,
        shown: Sequence[_Trials],
        blocks: Sequence[_Block],
        tables: Mapping[str, Any],
        has_pairs: bool,
        sampling: Sequence[str],
    ) -> bytes:
        style, script = _resource("page.css"), _resource("page.js")
        usage = [each for each in self._trials if each.tally.methods]
        data = [each for each in self._trials if each.input.kind == "rl"]
        content = {
            "policy": _policy(style, script),
            "css": Markup(style),
            "script": Markup(script),
            "title": self._title(),
            "summary": self._summary(),
            "version": version("pointer-rl"),
            "evaluations": self._evaluations,
            "side_by_side": self._side_by_side(),
            "has_pairs": has_pairs,
            "curve_groups": group_trainings(self._trainings),
            "trainings": self._trainings,
            "data": data,
            "usage": usage,
            "has_gallery": bool(shown),
            "sampling": sampling,
            "problems": list(self._problems()),
            "provenance": list(self._provenance()),
            "page_data": Markup(to_json({"files": [_file(each) for each in shown], **tables})),
            "blocks": blocks,
        }
        content["sections"] = [
            (id, name)
            for id, name, present in (
                ("verdict", "Verdict", self._evaluations),
                ("arms", "Arms", self._evaluations),
                ("pairs", "Wins and losses", has_pairs),
                ("training", "Training", self._trainings),
                ("data", "Trials", data),
                ("demonstrations", "Demonstrations", usage),
                ("gallery", "Queries", shown),
                ("problems", "Problems", True),
                ("provenance", "Provenance", True),
            )
            if present
        ]
        return _template(_resource("page.html")).render(content).encode()

    def _title(self) -> str:
        if len(self._inputs) == 1:
            return self._inputs[0].name
        shared = {each.path.absolute().parent for each in self._inputs}
        parents = sorted(shared, key=lambda each: len(each.parts))
        return parents[0].name or "Report"

    def _summary(self) -> str:
        kinds = [each.kind for each in self._inputs]
        return ", ".join(
            f"{kinds.count(kind)} {name}{'s' if kinds.count(kind) > 1 and kind in ('evaluation', 'training') else ''}"
            for kind, name in _KINDS.items()
            if kind in kinds
        )

    def _side_by_side(self) -> list[tuple[str, list[float | None]]]:
        """Arm at its shots → its accuracy in percent in each evaluation; [] for one evaluation."""
        if len(self._evaluations) < 2:
            return []
        columns = [
            {
                method_name(str(row["arm"]), int(row["shots"])): row["accuracy"]
                for row in each.content["rows"]
            }
            for each in self._evaluations
        ]
        names = dict.fromkeys(name for column in columns for name in column)
        return [
            (
                name,
                [None if (a := column.get(name)) is None else 100 * a for column in columns],
            )
            for name in names
        ]

    # --- the gallery ---

    def _tables(
        self, shown: Sequence[_Trials], thumbnails: Thumbnails
    ) -> tuple[dict[str, Any], list[str]]:
        """The pool rows and images that the queries refer to, and what is missing."""
        pools: list[dict[str, list[Any]]] = [{} for _ in self._datasets.opened]
        query_images: list[dict[str, int]] = [{} for _ in shown]
        whole = number = 0
        for of_files in zip_longest(*(each.sample.by_hash() for each in shown)):
            for place, query in enumerate(of_files):
                if query is not None and shown[place].dataset is not None:
                    number += 1
                    whole += self._show(query, shown[place], pools, query_images[place], thumbnails)
        for each in self._trials:  # the tables of rows that help and hurt
            for _, rows in each.ranked if each.dataset is not None else ():
                for row in rows:
                    self._show_row(each, row.row, pools, thumbnails)
        notes = []
        if thumbnails.full:
            notes.append(
                f"{whole:,} of {number:,} queries have all their images; there was no room for "
                "others (--max-mb)."
            )
        if thumbnails.unreadable:
            first = next(iter(thumbnails.unreadable.values()))
            notes.append(
                f"{len(thumbnails.unreadable):,} images could not be read (first: {first})."
            )
        for name, reason in self._datasets.reasons.items():
            notes.append(f"{name}: no images and no demonstrations' questions: {reason}")
        return {"pools": pools, "images": query_images}, notes

    def _show(
        self,
        query: list[Any],
        file: _Trials,
        pools: list[dict[str, list[Any]]],
        images: dict[str, int],
        thumbnails: Thumbnails,
    ) -> bool:
        """Add a query's image and its demonstrations; returns whether no image is missing."""
        assert file.dataset is not None
        id, row = query[0], query[3]
        example = _at(file.dataset.queries, row)
        found = [None]
        if example is not None and printable(example.id) == id:
            found = [thumbnails.add(example.image)]
            if found[0] is not None:
                images[id] = found[0]
        for shown in dict.fromkeys(row for candidate in query[4] for row in candidate[1]):
            found.append(self._show_row(file, shown, pools, thumbnails))
        return None not in found

    def _show_row(
        self,
        file: _Trials,
        row: int,
        pools: list[dict[str, list[Any]]],
        thumbnails: Thumbnails,
    ) -> int | None:
        """Add a pool row to the table of its dataset; returns the number of its image."""
        assert file.dataset is not None and file.dataset_number is not None
        table, example = pools[file.dataset_number], _at(file.dataset.pool, row)
        if example is None:
            return None
        known = table.get(str(row))
        if known is None:
            image = thumbnails.add(example.image)
            texts = map(printable, (example.id, example.question, example.answer))
            table[str(row)] = known = [*texts, image]
        number: int | None = known[3]
        return number

    def _sampling(self, shown: Sequence[_Trials]) -> Iterator[str]:
        for each in shown:
            kept, total = each.sample.kept, each.sample.total
            if kept < total:
                yield (
                    f"{each.input.name}: {kept:,} of {total:,} queries are shown, a random sample "
                    "(--max-mb); everything above this section counts all of them."
                )

    # --- problems and provenance ---

    def _problems(self) -> Iterator[_Problem]:
        for each in self._trials:
            yield from _problems_of(each)
        for evaluation in self._evaluations:
            leakage = evaluation.content["leakage"]
            lines = [
                f"{name} was trained on {number:,} of these queries"
                for name, number in leakage.get("trained_on", {}).items()
                if number
            ]
            if leakage.get("shown"):
                lines.append(f"{leakage['shown']:,} queries may be shown their own image")
            if lines:
                yield _Problem(f"{evaluation.input.name}: leaks", lines)

    def _provenance(self) -> Iterator[_Provenance]:
        for each in self._trials:
            yield _Provenance(each.input.name, _KINDS[each.input.kind], list(_facts(each.meta)))
        for training in self._trainings:
            document = {
                key: value for key, value in training.document.items() if key != "evaluation"
            }
            yield _Provenance(training.input.name, _KINDS["training"], list(_facts(document)))


def _problems_of(file: _Trials) -> Iterator[_Problem]:
    name, tally = file.input.name, file.tally
    if tally.failures:
        most = sorted(tally.failures.items(), key=lambda each: -len(each[1]))
        lines = [
            f"{len(ids):,} × {reason} (queries {_some(ids)})" for reason, ids in most[:_FINDINGS]
        ]
        if len(most) > _FINDINGS:
            lines.append(f"and {len(most) - _FINDINGS:,} other reasons")
        yield _Problem(f"{name}: {tally.failed:,} failed trials", lines)
    if tally.excluded_shown:
        yield _Problem(
            f"{name}: leaks",
            [
                f"{len(tally.excluded_shown):,} trials show a row that is excluded for their query "
                f"({_some(tally.excluded_shown)})"
            ],
        )
    if tally.duplicates:
        yield _Problem(
            f"{name}: duplicates",
            [f"{tally.duplicates:,} trials show a query a pointer that it was shown already"],
        )
    if file.validation is not None and file.validation.num_findings:
        found = file.validation
        lines = [
            f"{each.rule} at {each.pointer or 'the file'}: {each.message}; to do: {each.fix}"
            for each in found.findings
        ]
        if found.num_findings > len(found.findings):
            lines.append(f"and {found.num_findings - len(found.findings):,} more")
        yield _Problem(f"{name}: {found.num_findings:,} findings of validate", lines)


def _some(ids: Sequence[str]) -> str:
    different = list(dict.fromkeys(ids))
    more = f" and {len(different) - _SHOWN_IDS:,} more" if len(different) > _SHOWN_IDS else ""
    return ", ".join(different[:_SHOWN_IDS]) + more


def _facts(value: Mapping[str, Any], inside: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, value) of everything in a JSON object."""
    for key, each in value.items():
        if isinstance(each, Mapping) and each:
            yield from _facts(each, f"{inside}{key}.")
        elif each is not None:
            yield f"{inside}{key}", each if isinstance(each, str) else to_json(each)


def _file(file: _Trials) -> dict[str, Any]:
    """What the script knows of a file of trials."""
    return {
        "name": file.input.name,
        "kind": file.input.kind,
        "methods": list(file.sample.methods),
        "highlight": file.highlight,
        "dataset": file.dataset_number,
        "total": file.sample.total,
    }


def _pairs(file: _Trials) -> dict[str, Any] | None:
    """The accuracies that arms are compared by; None for fewer than two of them."""
    if file.evaluation is not None:
        ids, by_query = file.evaluation.content["query_ids"], file.evaluation.by_query()
    else:
        ids, by_query = file.tally.ids, file.tally.by_query
    if len(by_query) < 2:
        return None
    return {
        "file": file.input.name,
        "highlight": file.highlight,
        "ids": [printable(id) for id in ids],
        "arms": {
            name: [None if each is None else round(each, 4) for each in values]
            for name, values in by_query.items()
        },
    }


def _block(id: str, json: str) -> _Block:
    return _Block(id, Markup(json))


def _resource(name: str) -> str:
    return (files("pointer_rl.report") / "assets" / name).read_text("utf-8")


def _policy(style: str, script: str) -> str:
    """The content security policy: nothing is loaded, and only our style and script count."""

    def source(text: str) -> str:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        return f"'sha256-{digest}'"

    return (
        f"default-src 'none'; script-src {source(script)}; style-src {source(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _template(text: str) -> Any:
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else printable(value),
    )
    environment.globals |= {
        "count": lambda value: "–" if value is None or value == "" else f"{value:,}",
        "short": lambda value: "–" if value is None else f"{value:.3g}",
        "percent": lambda value: "–" if value is None else f"{100 * value:.1f} %",
        "swatch": _swatch,
    }
    return environment.from_string(text)


def _swatch(style: int | str) -> Markup:
    name = f"s{style % STYLES}" if isinstance(style, int) else style
    return Markup(
        '<svg class="swatch" width="22" height="8" aria-hidden="true">'
        '<line class="line {}" x1="1" x2="21" y1="4" y2="4"/></svg>'
    ).format(name)
