"""What a report is made of: files and folders, sorted into kinds."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os.path import commonpath
from pathlib import Path
from typing import Any, Literal

from pointer_rl.errors import InputError
from pointer_rl.json_stream import parse_json
from pointer_rl.records.formats import FORMATS, stream_members
from pointer_rl.records.layouts import BEAM_LAYOUTS, detect_layout

Kind = Literal["evaluation", "rl", "beams", "training"]
KINDS: Mapping[Kind, tuple[str, str]] = {
    "evaluation": ("evaluation", "evaluations"),
    "rl": ("file of RL data", "files of RL data"),
    "beams": ("file of beam data", "files of beam data"),
    "training": ("training folder", "training folders"),
}
"""Singular and plural name."""
log = logging.getLogger(__name__)

METRICS, DOCUMENT = "metrics.jsonl", "bundle.json"
"""What `train` writes into its folder: a line for each epoch, and the bundle's description."""


@dataclass(frozen=True)
class Input:
    """A file of trials, or the folder of a training."""

    path: Path
    kind: Kind
    name: str
    """Its path below what the inputs share; what the report calls it."""


def find_inputs(paths: Sequence[Path]) -> list[Input]:
    """The inputs among files and folders, sorted by path within each folder that is given.

    Folders are searched at every depth, without hidden ones; other files in them are passed over.
    Raises InputError for a path that does not exist, a file that is no input, and a folder without
    any.
    """
    found: dict[Path, Kind] = {}
    for path in paths:
        if path.is_dir():
            below = {each: kind for each in _walk(path) if (kind := _kind_if_any(each)) is not None}
            if not below:
                raise InputError(
                    f"{path}: no RL data, beam data, evaluation or training folder in it"
                )
            found |= below
        elif not path.exists():
            raise InputError(f"{path}: no such file or folder")
        elif (kind := _kind(path)) is None:
            raise InputError(f"{path}: neither RL data, beam data, nor an evaluation")
        else:
            found[path] = kind
    different = {path.resolve(): path for path in reversed(found)}
    base = _base(list(found), paths)
    return [
        Input(path, kind, _name(path, base))
        for path, kind in found.items()
        if different[path.resolve()] is path
    ]


def kind_of(path: Path) -> Kind:
    """The kind of a file. Raises InputError for a folder, and for a file that is no input."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file")
    [found] = find_inputs([path])
    return found.kind


def _walk(folder: Path) -> Iterator[Path]:
    """The folder and what is below it, in order, as far as it can be an input."""
    try:
        yield folder
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                continue
            if path.is_dir():
                yield from _walk(path)
            elif path.suffix in FORMATS and ".partial." not in path.name:
                yield path
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from error


def _kind_if_any(path: Path) -> Kind | None:
    """The kind of a file in a folder, where there may be JSON of any other form."""
    try:
        return _kind(path)
    except (InputError, OSError) as error:
        log.warning("%s: left out, because it cannot be read (%s)", path, error)
        return None


def _kind(path: Path) -> Kind | None:
    """None: not an input. Raises InputError for a file that cannot be parsed."""
    if path.is_dir():
        return "training" if (path / METRICS).is_file() or (path / DOCUMENT).is_file() else None
    if path.name in (METRICS, DOCUMENT):
        return None
    if path.suffix == ".jsonl" and not _begins_as_records(path):
        return None
    for member in stream_members(path):
        if member.key == "verdict":
            return "evaluation"
        if not member.key.startswith("_"):
            return _kind_of_record(member.value)
    return None


def _begins_as_records(path: Path) -> bool:
    """Whether a .jsonl file's first line is a record or `_meta`: a dataset's may be anything."""
    with path.open("rb") as file:
        first = file.readline()
    return first.startswith((b'{"query_id"', b'{"_meta"'))


def _kind_of_record(record: Any) -> Kind | None:
    layout = detect_layout(record)
    if layout in BEAM_LAYOUTS:
        return "beams"
    return "rl" if isinstance(record, dict) and "pointer_candidates" in record else None


def _base(found: Sequence[Path], given: Sequence[Path]) -> Path:
    """The folder that names are relative to."""
    if len(given) == 1:
        return given[0] if given[0].is_dir() else given[0].parent
    return Path(commonpath([path.absolute().parent for path in found]))


def _name(path: Path, base: Path) -> str:
    try:
        name = path.relative_to(base).as_posix()
    except ValueError:
        name = path.absolute().relative_to(base.absolute()).as_posix()
    return path.absolute().name if name == "." else name


def read_document(folder: Path) -> dict[str, Any]:
    """A training folder's bundle.json; {} if it has none. Raises InputError if it is damaged."""
    path = folder / DOCUMENT
    if not path.is_file():
        return {}
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    return content if isinstance(content, dict) else {}


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """A line for each epoch; [] if there are none. Raises InputError for a damaged file."""
    path = folder / METRICS
    if not path.is_file():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    return [line for line in lines if isinstance(line, dict)]
