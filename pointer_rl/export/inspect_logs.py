"""Write logs of Inspect (inspect_ai), for its viewer and other tools that read them.

RL data become one log with a sample per candidate. The candidates of a query are its epochs, so
the viewer lists them together. An evaluation becomes one log per arm and number of shots, so the
viewer's list of logs compares the arms.

A log is a zip archive: `samples/ID_epoch_N.json`, a summary of each sample in `summaries.json`,
and `header.json`. Inspect's recorder copies the whole archive at every flush, and searches all
summaries for each sample. This module therefore writes the archive itself, one sample at a time,
from Inspect's own classes.
"""

from __future__ import annotations

import base64
import math
import re
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha384
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pointer_rl.datasets.recorded import open_recorded
from pointer_rl.errors import InputError, MissingExtraError
from pointer_rl.escaping import printable
from pointer_rl.files import AtomicFile, cannot_be_written, check_writable, locked
from pointer_rl.json_stream import stream_members
from pointer_rl.local.lru import LRUCache
from pointer_rl.records.fields import FAILED, has_failed
from pointer_rl.records.formats import read_meta
from pointer_rl.registry import registry
from pointer_rl.report.inputs import Kind, kind_of
from pointer_rl.report.tally import method_name
from pointer_rl.report.thumbnails import encode_webp
from pointer_rl.report.trials import QueryTrials, read_trials
from pointer_rl.types import Dataset, Example, ImageRef, Message, PromptBuilder

try:
    from inspect_ai.log import (
        EvalConfig,
        EvalDataset,
        EvalError,
        EvalLog,
        EvalMetric,
        EvalResults,
        EvalSample,
        EvalScore,
        EvalSpec,
        EvalStats,
    )
    from inspect_ai.model import (
        ChatMessageAssistant,
        ChatMessageSystem,
        ChatMessageUser,
        Content,
        ContentImage,
        ContentText,
        ModelOutput,
    )
    from inspect_ai.scorer import Score
except ImportError as error:
    raise MissingExtraError("inspect-ai", "export --to inspect", "pointer-rl[inspect]") from error

_IMAGES_KEPT = 64 * 2**20
"""Size of the LRU cache of encoded images, in characters: samples share the pool's images."""
_COMPRESSION = 3
"""zlib level, 1 to 9."""
_ROLES = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
_ELSEWHERE = {
    *("vqa_pred_answer", "vqa_correct", "vqa_acc_score", "vqa_raw_generation"),
    *(FAILED, "eval_error"),
}
"""Fields of a candidate that become output, scores or error; all others become metadata."""
_Arm = tuple[str, int]
"""An arm and its number of shots."""


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Options of `write_inspect_logs`."""

    image_side: int = 192
    """Largest width and height of the images, in pixels; 0 leaves them out."""
    dataset: str | None = None
    """Dataset of the file; None: the one that it names."""
    dataset_options: Mapping[str, object] = field(default_factory=dict)
    prompt: str | None = None
    """Prompt builder; None: the one that the file names."""
    prompt_options: Mapping[str, object] = field(default_factory=dict)
    overwrite: bool = False
    """Replace logs that exist."""


def write_inspect_logs(
    path: Path, output_path: Path, options: InspectOptions = InspectOptions()
) -> list[Path]:
    """Write the logs of a file into the folder `output_path`; return their paths.

    For RL data, `output_path` may also be the log itself, with a name that ends in .eval. Raises
    InputError for beam data, a damaged file, an unknown or different dataset, and existing logs.
    """
    kind = kind_of(path)
    if kind not in ("rl", "evaluation"):
        raise InputError(f"{path}: neither RL data nor an evaluation; only these have answers")
    about = _About.read(path, kind)
    if output_path.suffix == ".eval" and about.arms is not None:
        raise InputError(f"{output_path}: an evaluation has a log for each arm: name a folder")
    source = _Source(about, options)
    arms: Sequence[_Arm | None] = [None] if about.arms is None else about.arms
    with ExitStack() as stack:
        logs: dict[_Arm | None, _Log] = {}
        for arm in arms:
            target = output_path
            if output_path.suffix != ".eval":
                target = output_path / f"{_name(path, arm)}.eval"
            if any(target == log.path for log in logs.values()):
                raise InputError(f"{path}: two arms would have the log {target.name}; rename one")
            stack.enter_context(locked(target))
            check_writable(target, overwrite=options.overwrite)
            logs[arm] = stack.enter_context(_Log(target, about, arm))
        for trials in read_trials(path):
            trials.check(path)
            for candidate in trials.candidates:
                question = source.ask(trials, candidate)
                for shown_by in _arms_of(trials, candidate):
                    logs[shown_by].add(trials.id, question, candidate)
        for log in logs.values():
            log.finish()
    return [log.path for log in logs.values()]


def _arms_of(trials: QueryTrials, candidate: Mapping[str, Any]) -> Iterator[_Arm | None]:
    """The logs that a candidate belongs in."""
    if trials.arms is None:
        yield None
    for arm, all_shots in trials.arms_of(candidate).items():
        for shots in all_shots:
            yield arm, shots


def _name(path: Path, arm: _Arm | None) -> str:
    if arm is None:
        return path.stem
    name = re.sub(r"[^\w.+-]+", "-", method_name(*arm))
    return f"{path.stem}-{name}"


@dataclass(frozen=True)
class _About:
    """What a file records about itself."""

    path: Path
    meta: Mapping[str, Any]
    """`_meta` of RL data, or the settings of an evaluation."""
    rows: Mapping[_Arm, Mapping[str, Any]]
    """An evaluation's measurements by arm, as in its file."""
    verdict: str | None = None
    arms: Sequence[_Arm] | None = None
    """The arms that asked the model, in the evaluation's order. None for RL data."""

    @classmethod
    def read(cls, path: Path, kind: Kind) -> _About:
        if kind == "rl":
            return cls(path, read_meta(path) or {}, {})
        found = {each.key: each.value for each in stream_members(path) if each.key != "records"}
        try:
            settings = dict(found["settings"].items())
            rows = {(str(row["arm"]), int(row["shots"])): row for row in found["rows"]}
            asked = [
                (arm, int(shots))
                for shots, arms in found.get("pointers", {}).items()
                for arm, shown in arms.items()
                if any(shown)  # votes do not ask the model
            ]
            return cls(path, settings, rows, str(found["verdict"]), asked)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: a damaged evaluation; write it again") from error

    def described(self, what: str) -> Mapping[str, Any]:
        """The recorded name and options of the dataset, backend, prompt or metric; may be empty."""
        found = self.meta.get(what)
        return found if isinstance(found, dict) else {}

    @property
    def title(self) -> str:
        """Title or name of the dataset."""
        about = self.described("dataset")
        return str(about.get("title") or about.get("name") or self.path.stem)

    @property
    def model(self) -> str:
        """`backend/model`, as Inspect names models."""
        backend = self.described("backend")
        options = backend.get("options")
        model = options.get("model") if isinstance(options, dict) else None
        return "/".join(str(each) for each in (backend.get("name"), model) if each) or "unknown"


# --- what was asked -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Question:
    """What the model was asked, and the right answers."""

    input: list[Any]
    """The query alone, for the viewer's list. Demonstrations are only in `messages`."""
    messages: list[Any]
    images: dict[str, str]
    """Key → data URL."""
    target: list[str]
    """The annotators' distinct answers, most frequent first."""
    metadata: dict[str, Any]


class _Source:
    """Rebuilds the messages of trials from the dataset and prompt builder of a file."""

    def __init__(self, about: _About, options: InspectOptions) -> None:
        self._about, self._side = about, options.image_side
        self._dataset: Dataset = open_recorded(
            about.described("dataset"), about.path, options.dataset, options.dataset_options
        )
        self._queries = {each.id: each for each in self._dataset.queries}
        self._prompt = _prompt_builder(about, options)
        self._images: LRUCache[str, str] = LRUCache(_IMAGES_KEPT, len)

    def ask(self, trials: QueryTrials, candidate: Mapping[str, Any]) -> _Question:
        """The question of a candidate. Raises InputError if the dataset lacks its examples."""
        query = self._queries.get(trials.id)
        if query is None:
            raise InputError(
                f"{self._about.path}: the dataset {self._dataset.name} has no query {trials.id!r}: "
                "give the dataset that it was made from (--dataset, --dataset-opt)"
            )
        shown = [self._demonstration(int(row)) for row in candidate["pointer"]]
        images: dict[str, str] = {}
        try:
            asked = self._prompt.build(query, shown).messages
        except InputError as error:  # why the trial failed
            asked = (Message("user", (query.image, f"{query.question} (never asked: {error})")),)
        messages = [
            _ROLES[message.role](
                content=[self._content(part, images) for part in message.parts], id=str(place)
            )
            for place, message in enumerate(asked)
        ]
        answers = Counter(map(_text, query.answers))
        metadata = {
            "demonstrations": [each.id for each in shown],
            "annotators": dict(answers.most_common()),
        }
        parts = (query.image, query.question)
        alone = ChatMessageUser(content=[self._content(part, images) for part in parts], id="query")
        return _Question([alone], messages, images, [*metadata["annotators"]], metadata)

    def _demonstration(self, row: int) -> Example:
        if row >= len(self._dataset.pool):
            raise InputError(
                f"{self._about.path}: row {row} is not in the pool of the dataset "
                f"{self._dataset.name}: give the dataset that it was made from (--dataset, "
                "--dataset-opt)"
            )
        return self._dataset.pool[row]

    def _content(self, part: ImageRef | str, images: dict[str, str]) -> Content:
        if isinstance(part, str):
            return ContentText(text=_text(part))
        name = str(getattr(part, "name", ""))
        if not self._side:
            return ContentText(text=f"[image {printable(name)}]" if name else "[image]")
        try:
            url = self._images.get(part.key)
            if url is None:
                encoded = base64.b64encode(encode_webp(part, self._side)).decode()
                url = f"data:image/webp;base64,{encoded}"
                self._images.put({part.key: url})
        except InputError as error:
            return ContentText(text=f"[image that cannot be shown: {error}]")
        images[part.key] = url
        return ContentImage(image=f"attachment://{part.key}")


def _prompt_builder(about: _About, options: InspectOptions) -> PromptBuilder:
    name, values = options.prompt, dict(options.prompt_options)
    if name is None:
        recorded = about.described("prompt")
        options_then = recorded.get("options") or {}
        if not isinstance(options_then, dict):
            raise InputError(f"{about.path}: the options of its prompt builder are damaged")
        name, values = recorded.get("name"), {**options_then, **values}
    if not isinstance(name, str):
        raise InputError(f"{about.path} does not name its prompt builder: give --prompt")
    made: PromptBuilder = registry().create("prompt", name, values)
    return made


# --- a log --------------------------------------------------------------------------------------


class _Log:
    """One log, written sample by sample. The file appears when the log is finished.

    The same input gives the same bytes: all ids and times, also those of the archive's members,
    derive from the exported file and the log's name.
    """

    def __init__(self, path: Path, about: _About, arm: _Arm | None) -> None:
        self.path = path
        self._about, self._arm = about, arm
        self._file = AtomicFile(path)
        self._zip = zipfile.ZipFile(self._file.file, "w")
        self._summaries = tempfile.TemporaryFile()  # noqa: SIM115  # see __exit__
        self._metric = _text(str(about.described("metric").get("name") or "metric"))
        self._judged: list[tuple[str, str, dict[str, float]]] = []
        """(query, generation method, scores as numbers) of each judged sample."""
        self._samples = self._failed = self._queries = 0
        self._query, self._epoch = "", 0

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_error: object) -> None:
        """Discard the log unless it is finished."""
        with suppress(OSError):  # otherwise garbage collection would try
            self._zip.close()
        self._summaries.close()
        self._file.discard()

    def add(self, query: str, question: _Question, candidate: Mapping[str, Any]) -> None:
        """Append a sample. The candidates of a query must be consecutive."""
        if query != self._query:
            self._query, self._epoch = query, 0
            self._queries += 1
        self._epoch += 1
        sample = self._sample(query, question, candidate)
        with self._writing():
            self._write(f"samples/{sample.id}_epoch_{sample.epoch}.json", _json(sample))
            self._summaries.write(b"," if self._samples else b"[")
            self._summaries.write(_json(sample.summary()))
        self._samples += 1

    def _sample(self, query: str, question: _Question, candidate: Mapping[str, Any]) -> EvalSample:
        id = printable(query)  # also a file name in the archive
        proposed = {
            key: value
            for key, value in candidate.items()
            if value is not None and key not in _ELSEWHERE
        }
        messages, output, scores, error = list(question.messages), ModelOutput(), None, None
        if has_failed(candidate):
            self._failed += 1
            reason = _text(str(candidate.get("eval_error") or "no reason recorded"))
            error = EvalError(message=reason, traceback=reason, traceback_ansi=reason)
        elif candidate.get("vqa_pred_answer") is not None:
            answer = _text(candidate["vqa_pred_answer"])
            raw = _text(candidate.get("vqa_raw_generation", candidate["vqa_pred_answer"]))
            reply = ChatMessageAssistant(content=raw, id=str(len(messages)), source="generate")
            messages.append(reply)
            output = ModelOutput.from_message(reply)
            output.model = _text(self._about.model)
            scores = self._scores(query, candidate, answer, raw)
        return EvalSample(
            id=id,
            epoch=self._epoch,
            input=question.input,
            target=question.target,
            messages=messages,
            output=output,
            scores=scores,
            metadata=_clean({**proposed, **question.metadata}),
            attachments=question.images,
            error=error,
        )

    def _scores(
        self, query: str, candidate: Mapping[str, Any], answer: str, raw: str
    ) -> dict[str, Score] | None:
        correct, accuracy = candidate.get("vqa_correct"), candidate.get("vqa_acc_score")
        if correct is None or accuracy is None:
            return None
        numbers = {"correct": float(bool(correct)), "accuracy": float(accuracy)}
        self._judged.append((query, str(candidate.get("gen_method")), numbers))
        said = {"answer": answer, "explanation": raw}
        return {
            "correct": Score(value="C" if correct else "I", **said),
            "accuracy": Score(value=float(accuracy), **said),
        }

    # --- the end ---

    def finish(self) -> None:
        """Write the summaries and the header, and move the log into place."""
        log = EvalLog(
            status="success",
            eval=self._spec(),
            results=EvalResults(
                total_samples=self._samples,
                completed_samples=self._samples - self._failed,
                scores=[self._score("accuracy"), self._score("correct")],
            ),
            stats=EvalStats(started_at=self._created, completed_at=self._created),
        )
        with self._writing():
            self._summaries.write(b"]" if self._samples else b"[]")
            self._summaries.seek(0)
            with self._zip.open(_member("summaries.json"), "w") as target:
                shutil.copyfileobj(self._summaries, target)
            self._write("header.json", _json(log, exclude={"samples", "reductions"}))
            self._zip.close()
        self._file.commit()

    def _score(self, name: str) -> EvalScore:
        """The mean over queries of each query's mean, as Inspect reduces epochs.

        An arm's accuracy is the evaluation's, because the oracle counts only its best samples.
        """
        metrics = {}
        by_method: dict[str | None, list[tuple[str, float]]] = {None: []}
        for query, method, numbers in self._judged:
            by_method[None].append((query, numbers[name]))
            if self._arm is None:
                by_method.setdefault(method, []).append((query, numbers[name]))
        means = {method: _by_query(values) for method, values in by_method.items() if values}
        measured = self._row.get("accuracy") if name == "accuracy" else None
        if measured is not None:
            metrics["mean"] = measured
        elif means:
            metrics["mean"] = fmean(means[None])
            metrics["stderr"] = _standard_error(means[None])
        if len(means) > 2:
            metrics |= {_text(method): fmean(each) for method, each in means.items() if method}
        return EvalScore(
            name=name,
            scorer=self._metric,
            metrics={each: EvalMetric(name=each, value=value) for each, value in metrics.items()},
        )

    @property
    def _row(self) -> Mapping[str, Any]:
        """The arm's row of the evaluation's table."""
        return {} if self._arm is None else self._about.rows.get(self._arm, {})

    @property
    def _created(self) -> str:
        """Modification time of the exported file."""
        modified = self._about.path.stat().st_mtime
        return datetime.fromtimestamp(modified, UTC).isoformat(timespec="seconds")

    def _spec(self) -> EvalSpec:
        about, arm = self._about, self._arm
        what = about.path.name if arm is None else method_name(*arm)
        metadata = {**about.meta, **({} if arm is None else {"arm": self._row})}
        if about.verdict is not None:
            metadata["verdict"] = about.verdict
        identity = sha384(f"{self.path.name} {self._created}".encode()).hexdigest()
        return EvalSpec(
            eval_id=identity[:22],
            run_id=identity[22:44],
            task_id=identity[44:66],
            created=self._created,
            task=_text(f"{about.title}: {what}"),
            task_args={} if arm is None else {"shots": arm[1]},
            solver=None if arm is None else _text(arm[0]),
            dataset=EvalDataset(name=_text(about.title), samples=self._queries),
            model=_text(about.model),
            config=EvalConfig(),
            packages={"pointer-rl": version("pointer-rl")},
            metadata=_clean(metadata),
        )

    def _write(self, name: str, data: bytes) -> None:
        self._zip.writestr(_member(name), data, compresslevel=_COMPRESSION)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise cannot_be_written(self.path, error) from error


def _member(name: str) -> zipfile.ZipInfo:
    """A member of the archive, without a timestamp."""
    member = zipfile.ZipInfo(name)
    member.compress_type = zipfile.ZIP_DEFLATED
    return member


def _json(value: Any, exclude: set[str] | None = None) -> bytes:
    text: str = value.model_dump_json(exclude_none=True, exclude=exclude)
    return text.encode()


def _by_query(values: Sequence[tuple[str, float]]) -> list[float]:
    """The mean value of each query. Values of the same query must be consecutive."""
    return [fmean(x for _, x in each) for _, each in groupby(values, key=lambda each: each[0])]


def _standard_error(means: Sequence[float]) -> float:
    return stdev(means) / math.sqrt(len(means)) if len(means) > 1 else 0.0


def _text(text: str) -> str:
    """Escape lone surrogates, which UTF-8 cannot encode."""
    return text.encode("utf-8", "backslashreplace").decode()


def _clean(value: Any) -> Any:
    """Apply `_text` to every string of a JSON value."""
    if isinstance(value, dict):
        return {_text(str(key)): _clean(each) for key, each in value.items()}
    if isinstance(value, list):
        return list(map(_clean, value))
    return _text(value) if isinstance(value, str) else value
