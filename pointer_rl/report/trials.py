"""The trials in a file, query by query: RL data, beam data, or an evaluation.

Imports nothing heavy, so that looking at a file is quick.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pointer_rl.errors import InputError
from pointer_rl.json_stream import Member
from pointer_rl.records.fields import has_failed
from pointer_rl.records.formats import read_meta, stream_members, stream_records
from pointer_rl.records.layouts import detect_layout, upgrade_record
from pointer_rl.types import Pointer
from pointer_rl.validate.schema import SchemaChecker

Arms = Mapping[Pointer, Mapping[str, list[int]]]
"""Pointer → the arms that showed it, and at which numbers of shots."""


@dataclass(frozen=True)
class QueryTrials:
    """A query and its candidates."""

    id: str
    record: Mapping[str, Any]
    """In the current layout, otherwise not checked."""
    arms: Arms | None = None
    """In an evaluation, the arms that showed the query each pointer."""

    @property
    def are_beams(self) -> bool:
        """Whether the candidates are beams: no model answered them."""
        return "pointer_candidates" not in self.record

    @property
    def candidates(self) -> list[dict[str, Any]]:
        """The candidates, or beams, as in the file."""
        found: list[dict[str, Any]] = self.record[
            "beams" if self.are_beams else "pointer_candidates"
        ]
        return found

    def arms_of(self, candidate: Mapping[str, Any]) -> Mapping[str, list[int]]:
        """The arms that showed a candidate of an evaluation, and at which numbers of shots."""
        pointer = candidate.get("pointer")
        return (self.arms or {}).get(tuple(pointer) if isinstance(pointer, list) else (), {})

    def methods_of(self, candidate: Mapping[str, Any]) -> list[str]:
        """The `gen_method` of a candidate; in an evaluation the arms that showed it."""
        if self.arms is not None:
            return list(self.arms_of(candidate))
        return ["beam" if self.are_beams else str(candidate.get("gen_method"))]

    def check(self, path: Path) -> None:
        """Raise InputError if the record does not follow the JSON Schema."""
        checker = _checker("beams" if self.are_beams else "pointer_candidates")
        for fault in checker.faults(self.record, limit=1):
            place = "/".join(map(str, (self.id, *fault.path)))
            raise InputError(
                f"{path}: {place}: {fault.message}: {fault.fix} (pointer-rl validate lists "
                "all that is wrong)"
            )


_checker = cache(lambda schema: SchemaChecker(schema, "record"))


def judgement_of(candidate: Mapping[str, Any]) -> str:
    """`correct`, `wrong`, `failed` or, if nobody judged it, `not judged`."""
    if has_failed(candidate):
        return "failed"
    correct = candidate.get("vqa_correct")
    return "not judged" if correct is None else "correct" if correct else "wrong"


def read_trials(path: Path) -> Iterator[QueryTrials]:
    """The queries of a file, in its order.

    Raises InputError for content that cannot be parsed, for a record of no known layout, and for an
    evaluation that has no answers, which an earlier version wrote.
    """
    if _is_evaluation(path):
        yield from _read_evaluation(path)
        return
    for key, value in stream_records(path):
        if not key.startswith("_"):
            try:
                yield QueryTrials(key, upgrade_record(value, detect_layout(value)))
            except InputError as error:
                raise InputError(f"{path}: {key!r}: {error}") from error


def read_dataset_description(path: Path) -> Mapping[str, Any]:
    """What the file says of its dataset (`_meta.dataset`); empty if it says nothing."""
    if _is_evaluation(path):
        meta = next((each.value for each in stream_members(path) if each.key == "settings"), None)
    else:
        meta = read_meta(path)
    described = meta.get("dataset") if isinstance(meta, dict) else None
    return described if isinstance(described, dict) else {}


def _is_evaluation(path: Path) -> bool:
    """A file of records begins with an object; an evaluation with its verdict, a sentence."""
    first: Member | None = next(stream_members(path), None)
    return first is not None and first.key == "verdict" and isinstance(first.value, str)


def _read_evaluation(path: Path) -> Iterator[QueryTrials]:
    content = {each.key: each.value for each in stream_members(path)}
    if "records" not in content:
        raise InputError(
            f"{path}: an evaluation without answers, by an earlier version: run the same "
            "`pointer-rl evaluate` with --overwrite; it asks only what the response cache lacks"
        )
    try:
        for place, (id, record) in enumerate(content["records"].items()):
            yield QueryTrials(id, record, _arms(content["pointers"], place))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: a damaged evaluation; write it again") from error


def _arms(pointers: Mapping[str, Mapping[str, list[list[list[int]]]]], place: int) -> Arms:
    """Those that showed the query at this place."""
    found: dict[Pointer, dict[str, list[int]]] = {}
    for shots, chosen in pointers.items():
        for arm, shown in chosen.items():
            for pointer in dict.fromkeys(map(tuple, shown[place])):
                found.setdefault(pointer, {}).setdefault(arm, []).append(int(shots))
    return found
