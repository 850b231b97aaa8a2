"""A page that answers what happened, whether it can be believed, and what went wrong.

The page is one file that loads nothing: its style, its script and its images are in it, and a
content security policy forbids anything else. Foreign text is escaped once: on its way into the
HTML by Jinja, and on its way into JSON by `gallery.to_json`; the script only ever sets text.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pointer_rl.errors import InputError
from pointer_rl.escaping import printable
from pointer_rl.files import check_writable, write_text
from pointer_rl.report.evaluations import Evaluation
from pointer_rl.report.figures import asset
from pointer_rl.report.gallery import to_json
from pointer_rl.report.inputs import KINDS, Input, find_inputs
from pointer_rl.report.outcomes import outcomes_figure
from pointer_rl.report.tally import method_name
from pointer_rl.report.thumbnails import Thumbnails
from pointer_rl.report.training import Training, group_trainings
from pointer_rl.report.trial_files import FINDINGS, Datasets, TrialFile, read_trial_files

_QUERIES_SHARE, _ROWS_SHARE, _PAIRS_SHARE = 0.5, 0.15, 0.1
"""Shares of the page that queries, the text of their demonstrations, and accuracies that arms are
compared by may take. Thumbnails have what is left."""
_SHOWN_IDS = 5
_SLACK = 2_000
"""Bytes kept free for sentences on what is left out."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """How a report is made."""

    max_bytes: int = 25_000_000
    """Size of the page."""
    dataset: str | None = None
    """The dataset of all files; None: the one that each file names."""
    dataset_options: Mapping[str, object] = field(default_factory=dict)
    overwrite: bool = False
    """Replace an existing file."""


@dataclass(frozen=True)
class Written:
    """What was written."""

    size: int
    """Bytes of the page."""
    left_out: Sequence[str]
    """What is not in the page, and why: sentences, which are in the page as well."""


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
    datasets = Datasets(options.dataset, options.dataset_options)
    evaluations = [Evaluation.read(each) for each in inputs if each.kind == "evaluation"]
    kept = int(options.max_bytes * _QUERIES_SHARE)
    trials = read_trial_files(inputs, evaluations, datasets, kept)
    tallies = {each.input.path: each.tally for each in trials}
    trainings = [Training.read(each, tallies) for each in inputs if each.kind == "training"]
    page = _Page(inputs, evaluations, trials, trainings, datasets, options.max_bytes)
    text = page.render()
    write_text(output_path, text)
    return Written(len(text.encode()), page.left_out)


class _Page:
    """Everything that is in the page."""

    def __init__(
        self,
        inputs: Sequence[Input],
        evaluations: Sequence[Evaluation],
        trials: Sequence[TrialFile],
        trainings: Sequence[Training],
        datasets: Datasets,
        most: int,
    ) -> None:
        self._inputs, self._evaluations = inputs, evaluations
        self._trials, self._trainings, self._datasets = trials, trainings, datasets
        self._most = most
        self._shown = [each for each in trials if each.sample.kept]
        self.left_out: list[str] = []
        """What the page lacks, in sentences."""

    def render(self) -> str:
        """The page."""
        self.left_out = list(self._sampling())
        blocks = {
            f"queries-{number}": f"[{','.join(each.sample.in_file_order())}]"
            for number, each in enumerate(self._shown)
        }
        blocks["pairs"] = self._pairs()
        rows = self._rows()
        blocks["page"] = to_json({"files": list(map(_file, self._shown)), "pools": rows})
        size = sum(map(_size, blocks.values())) + _size(self._fill({"pairs": blocks["pairs"]}))
        # References to images: the id of a query or a row, and a number.
        size += sum(_size(to_json(query[0])) + 10 for _, query in self._queries())
        size += sum(len(row) + 10 for pool in rows for row in pool)
        thumbnails = Thumbnails(self._most - size - _SLACK)
        blocks["images"] = to_json(self._number_images(thumbnails, rows))
        blocks["thumbnails"] = to_json(thumbnails.encoded)
        for name, reason in self._datasets.reasons.items():
            self.left_out.append(f"{name}: no images, and no questions of demonstrations: {reason}")
        return self._fill(blocks)

    def _fill(self, blocks: Mapping[str, str]) -> str:
        style = "".join(asset(f"{name}.css") for name in ("colours", "figures", "page"))
        script = asset("page.js")
        data = [each for each in self._trials if each.input.kind == "rl"]
        usage = [each for each in self._trials if each.tally.methods]
        present = {
            ("verdict", "Verdict"): self._evaluations,
            ("arms", "Arms"): self._evaluations,
            ("pairs", "Wins and losses"): blocks["pairs"] != "[]",
            ("training", "Training"): self._trainings,
            ("data", "Trials"): data,
            ("demonstrations", "Demonstrations"): usage,
            ("gallery", "Queries"): self._shown,
            ("problems", "Problems"): True,
            ("provenance", "Provenance"): True,
        }
        text: str = _template(asset("page.html")).render(
            policy=_policy(style, script),
            css=Markup(style),
            script=Markup(script),
            title=self._title(),
            summary=self._summary(),
            version=version("pointer-rl"),
            sections=[section for section, there in present.items() if there],
            evaluations=self._evaluations,
            side_by_side=self._side_by_side(),
            curve_groups=group_trainings(self._trainings),
            trainings=self._trainings,
            data=data,
            outcomes=outcomes_figure({each.input.name: each.tally for each in data}),
            usage=usage,
            left_out=self.left_out,
            problems=list(self._problems()),
            provenance=list(self._provenance()),
            blocks=[(f"json-{id}", Markup(text)) for id, text in blocks.items()],
        )
        return text

    def _title(self) -> str:
        if len(self._inputs) == 1:
            return self._inputs[0].name
        parents = {each.path.absolute().parent for each in self._inputs}
        return min(parents, key=lambda each: len(each.parts)).name or "Report"

    def _summary(self) -> str:
        """`1 evaluation, 4 files of RL data`."""
        kinds: Counter[str] = Counter(each.kind for each in self._inputs)
        counted = [(kinds[kind], names) for kind, names in KINDS.items() if kind in kinds]
        return ", ".join(f"{number:,} {names[number > 1]}" for number, names in counted)

    def _side_by_side(self) -> list[tuple[str, list[float | None]]]:
        """Arm at its shots → its accuracy in percent in each evaluation; [] for one evaluation."""
        if len(self._evaluations) < 2:
            return []
        columns = [
            {
                method_name(str(row["arm"]), int(row["shots"])): 100 * row["accuracy"]
                for row in each.content["rows"]
                if row["accuracy"] is not None
            }
            for each in self._evaluations
        ]
        names = dict.fromkeys(name for column in columns for name in column)
        return [(name, [column.get(name) for column in columns]) for name in names]

    # --- what the script reads ---

    def _sampling(self) -> Iterator[str]:
        for each in self._trials:
            kept, total = each.sample.kept, each.sample.total
            if each.unread is not None:
                yield each.unread
            elif kept < total:
                yield (
                    f"{each.input.name}: {kept:,} of {total:,} queries are shown one by one, a "
                    "random sample that fits the page (--max-mb); all are counted"
                )

    def _pairs(self) -> str:
        """The accuracies that arms are compared by."""
        left, found = int(self._most * _PAIRS_SHARE), []
        for file in self._trials:
            text = _accuracies(file)
            if text is not None and len(text) > left:
                self.left_out.append(
                    f"{file.input.name}: arms are not compared query by query; there is no room "
                    "for their accuracies (--max-mb)"
                )
            elif text is not None:
                left -= len(text)
                found.append(text)
        return f"[{','.join(found)}]"

    def _rows(self) -> list[dict[str, list[Any]]]:
        """For each dataset, row → [id, question, answer].

        Those of the tables of rows that help and hurt come first, then query by query.
        """
        pools: list[dict[str, list[Any]]] = [{} for _ in self._datasets.opened]
        left = int(self._most * _ROWS_SHARE)
        lacking: set[tuple[int, int]] = set()
        for file, row in self._demonstrations():
            assert file.dataset_number is not None
            pool, example = pools[file.dataset_number], file.pool_row(row)
            if str(row) in pool or example is None:
                continue
            pool[str(row)] = texts = [
                printable(each) for each in (example.id, example.question, example.answer)
            ]
            left -= _size(to_json(texts)) + len(f'"{row}":,')
            if left < 0:
                del pool[str(row)]
                lacking.add((file.dataset_number, row))
        if lacking:
            self.left_out.append(
                f"the questions of {len(lacking):,} rows are left out; there is no room (--max-mb)"
            )
        return pools

    def _demonstrations(self) -> Iterator[tuple[TrialFile, int]]:
        for file in self._trials:
            if file.dataset is not None:
                yield from ((file, each.row) for _, rows in file.ranked for each in rows)
        for file, query in self._queries():
            for row in _rows_of(query):
                yield file, row

    def _queries(self) -> Iterator[tuple[TrialFile, list[Any]]]:
        """Those whose dataset is known, file by file in turn: first those of a smaller sample."""
        known = [each for each in self._shown if each.dataset is not None]
        for of_files in zip_longest(*(each.sample.by_hash() for each in known)):
            yield from (
                (file, query)
                for file, query in zip(known, of_files, strict=True)
                if query is not None
            )

    def _number_images(
        self, thumbnails: Thumbnails, pools: list[dict[str, list[Any]]]
    ) -> dict[str, Any]:
        """The images of queries (file → id → number) and of rows (dataset → row → number)."""
        of_queries: dict[str, dict[str, int]] = {each.input.name: {} for each in self._shown}
        of_rows: list[dict[str, int]] = [{} for _ in pools]
        whole = number = 0

        def show_row(file: TrialFile, row: int) -> bool:
            assert file.dataset_number is not None
            numbers, example = of_rows[file.dataset_number], file.pool_row(row)
            known = str(row) in pools[file.dataset_number]
            if known and str(row) not in numbers and example is not None:
                image = thumbnails.add(example.image)
                if image is not None:
                    numbers[str(row)] = image
            return str(row) in numbers

        for file in self._trials:
            for each in (row for _, rows in file.ranked for row in rows if file.dataset):
                show_row(file, each.row)
        for file, query in self._queries():
            id, example = query[0], file.query_row(query[3])
            image = None
            if example is not None and printable(example.id) == id:
                image = thumbnails.add(example.image)
            if image is not None:
                of_queries[file.input.name][id] = image
            shown = [show_row(file, row) for row in _rows_of(query)]
            whole += image is not None and all(shown)
            number += 1
        if thumbnails.full:
            self.left_out.append(
                f"{whole:,} of {number:,} queries have all their images; there is no room for more "
                "(--max-mb)"
            )
        if thumbnails.unreadable:
            first = next(iter(thumbnails.unreadable.values()))
            self.left_out.append(
                f"{len(thumbnails.unreadable):,} images cannot be read (first: {first})"
            )
        return {"queries": list(of_queries.values()), "rows": of_rows}

    # --- problems and provenance ---

    def _problems(self) -> Iterator[tuple[str, list[str]]]:
        """Title and lines of each."""
        for file in self._trials:
            yield from _problems_of(file)
        for evaluation in self._evaluations:
            trained_on = evaluation.content["leakage"]["trained_on"]
            lines = [
                f"{name} was trained on {number:,} of these queries"
                for name, number in trained_on.items()
                if number
            ]
            if evaluation.leaks:
                lines.append(f"{evaluation.leaks:,} queries may be shown their own image")
            if lines:
                yield f"{evaluation.input.name}: leaks", lines

    def _provenance(self) -> Iterator[tuple[Input, str, list[tuple[str, str]], str | None]]:
        """Each input, its kind, what it records of itself, and commands that make it again."""
        recorded = {each.input.path: each.meta for each in self._trials}
        for training in self._trainings:
            recorded[training.input.path] = {
                key: value for key, value in training.document.items() if key != "evaluation"
            }
        for input in self._inputs:
            found = recorded[input.path]
            yield input, KINDS[input.kind][0], list(_facts(found)), _commands(input, found)


def _problems_of(file: TrialFile) -> Iterator[tuple[str, list[str]]]:
    name, tally = file.input.name, file.tally
    if file.unusable:
        ids = _some(file.unusable)
        yield (
            f"{name}: {_counted(file.unusable, 'query', 'queries')} left out of this report",
            [f"What is counted is missing or has another form in the records of {ids}"],
        )
    if tally.failures:
        most = sorted(tally.failures.items(), key=lambda each: -len(each[1]))
        lines = [f"{len(ids):,} × {reason} ({_some(ids)})" for reason, ids in most[:FINDINGS]]
        if len(most) > FINDINGS:
            lines.append(f"and {len(most) - FINDINGS:,} other reasons")
        yield f"{name}: {tally.failed:,} of {tally.candidates:,} trials failed", lines
    if tally.excluded_shown:
        yield (
            f"{name}: leaks",
            [
                f"a row that is excluded for its query is shown in "
                f"{_counted(tally.excluded_shown, 'trial', 'trials')} "
                f"({_some(tally.excluded_shown)})"
            ],
        )
    if tally.duplicates:
        line = f"trials that show a query what its method showed it before: {tally.duplicates:,}"
        yield f"{name}: duplicates", [line]
    found = file.validation
    if found is not None and found.num_findings:
        lines = [
            f"{each.rule} at {each.pointer or 'the file'}: {each.message}; to do: {each.fix}"
            for each in found.findings
        ]
        if found.num_findings > len(found.findings):
            lines.append(f"and {found.num_findings - len(found.findings):,} more")
        yield f"{name}: findings of validate, {found.num_findings:,} in all", lines


def _counted(found: Sequence[object], one: str, many: str) -> str:
    return f"{len(found):,} {one if len(found) == 1 else many}"


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
            yield f"{inside}{key}", each if isinstance(each, str) else json.dumps(each)


def _commands(input: Input, recorded: Mapping[str, Any]) -> str | None:
    """How to make an input again; None if it does not say how it was made."""
    command = output = None
    if input.kind == "evaluation":
        command, output = "evaluate", "--output-path"
    elif input.kind == "training" and "training" in recorded:
        command = "sft" if "training.options.epochs" in dict(_facts(recorded)) else "train"
        output = "--output-dir"
    elif ("generators" in recorded and "round" not in recorded) or "beam_size" in recorded:
        command, output = "generate" if "generators" in recorded else "beams", "--output-path"
    if command is None:
        return None
    name = shlex.quote(printable(input.name))
    return (
        f"pointer-rl config --of {name} > run.toml\n"
        f"pointer-rl {command} --config run.toml {output} {name}"
    )


def _rows_of(query: list[Any]) -> list[int]:
    """The rows that a query of the gallery is shown, without repeats."""
    return list(dict.fromkeys(row for candidate in query[4] for row in candidate[1]))


def _file(file: TrialFile) -> dict[str, Any]:
    """What the script knows of a file of trials."""
    return {
        "name": printable(file.input.name),
        "kind": file.input.kind,
        "methods": list(map(printable, file.sample.methods)),
        "highlight": file.highlight and printable(file.highlight),
        "dataset": file.dataset_number,
    }


def _accuracies(file: TrialFile) -> str | None:
    """The accuracies of a file's arms, query by query; None for fewer than two arms."""
    if file.evaluation is not None:
        ids, by_query = file.evaluation.content["query_ids"], file.evaluation.by_query()
    else:
        ids, by_query = file.tally.ids, file.tally.by_query()
    if len(by_query) < 2:
        return None
    arms = {
        printable(name): [None if each is None else round(each, 4) for each in values]
        for name, values in by_query.items()
    }
    return to_json({**_file(file), "ids": list(map(printable, ids)), "arms": arms})


# --- the template -------------------------------------------------------------------------------


def _size(text: str) -> int:
    return len(text.encode())


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
        finalize=lambda value: value if hasattr(value, "__html__") else printable(value),
    )
    environment.globals |= {
        "count": lambda value: f"{value:,}" if _is_number(value) else "–",
        "short": lambda value: f"{value:.3g}" if _is_number(value) else "–",
        "percent": lambda value: f"{100 * value:.1f} %" if _is_number(value) else "–",
    }
    return environment.from_string(text)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)
