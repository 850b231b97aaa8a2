"""Detect the layouts that Lever-LM and Lever-Plus wrote, and upgrade them to the current one."""

from __future__ import annotations

from typing import Any, Literal

from pointer_rl.errors import InputError
from pointer_rl.records.fields import FAILED, OUTCOME_KEYS, has_failed

Layout = Literal["pointer_candidates", "v4", "k64", "beams", "beam"]
Record = dict[str, Any]

LAYOUTS: dict[Layout, str] = {
    "pointer_candidates": "RL data: `pointer` holds rows of the whole pool",
    "v4": "RL data of Lever-Plus v4: `pointer` holds rows of the whole pool, `pointer_pos` repeats "
    "them as positions in a candidate pool",
    "k64": "older layout k64: `pointer` holds positions in candidate_pool_ids, not pool rows "
    "(those are in `pointer_global`)",
    "beams": "beam data: demonstrations scored for SFT, with no answers; it is not RL data",
    "beam": "beam data of Lever-LM (id_list, score_list): demonstrations scored for SFT, with no "
    "answers; it is not RL data",
}
"""Layout → its description. `pointer_candidates` and `beams` are the current ones."""

BEAM_LAYOUTS = ("beams", "beam")
"""The layouts of beam data; the others are RL data."""


def detect_layout(record: Any) -> Layout:
    """The layout of a query's record; "pointer_candidates" if nothing tells another one."""
    if not isinstance(record, dict):
        return "pointer_candidates"
    candidates = record.get("pointer_candidates")
    if candidates is None:
        if "id_list" in record:
            return "beam"
        return "beams" if "beams" in record else "pointer_candidates"
    if _first_has(candidates, "pointer_global"):
        return "k64"
    if _first_has(candidates, "pointer_pos"):
        return "v4"
    return "k64" if "candidate_pool_ids" in record else "pointer_candidates"


def _first_has(candidates: Any, key: str) -> bool:
    first = candidates[0] if isinstance(candidates, list) and candidates else None
    return isinstance(first, dict) and key in first


def read_rows(value: Any, what: str) -> list[int]:
    """A list of pool rows: whole numbers from 0, which may be written as 7.0.

    Raises InputError, naming `what`, for anything else.
    """
    if isinstance(value, list):
        if set(map(type, value)) <= {int} and min(value, default=0) >= 0:
            return value
        if all(type(row) in (int, float) and row >= 0 and row % 1 == 0 for row in value):
            return [int(row) for row in value]
    raise InputError(f"{what} is not a list of rows (whole numbers from 0)")


# --- upgrading ----------------------------------------------------------------------------------


def upgrade_record(record: Any, layout: Layout) -> Record:
    """The record in the current layout of its kind. `layout` is the result of `detect_layout`.

    Nothing is lost: a field that the current layout lacks keeps its value, under another key if its
    own would be misread. A current record is returned as it is. Raises InputError, which names
    neither file nor query, for a record of no layout and for one that contradicts itself.
    """
    kind = "beams" if layout in BEAM_LAYOUTS else "pointer_candidates"
    if not isinstance(record, dict) or (layout == kind and kind not in record):
        raise InputError("neither RL data (pointer_candidates) nor beam data (beams)")
    if layout == "beam":
        return _upgrade_lever_beams(record)
    members = record[kind]
    if not isinstance(members, list) or not all(isinstance(each, dict) for each in members):
        raise InputError(f"{kind} is not a list of objects")
    if layout == "beams" and any("shots" in each and "pointer" not in each for each in members):
        raise InputError(
            "`beams` of `shots` without id_list: the order in which they are shown is not known"
        )
    if layout == kind:
        return record
    upgraded = dict(record)
    pool = None
    if "candidate_pool_ids" in record:
        pool = read_rows(upgraded.pop("candidate_pool_ids"), "candidate_pool_ids")
        if record.get("pool", pool) != pool:
            raise InputError("candidate_pool_ids and pool differ")
        upgraded["pool"] = list(dict.fromkeys(pool))
    upgraded["pointer_candidates"] = [
        _without_failed_outcome(_upgrade_candidate(each, index, layout, pool))
        for index, each in enumerate(members)
    ]
    return upgraded


def _upgrade_candidate(
    candidate: Record, index: int, layout: Layout, pool: list[int] | None
) -> Record:
    """Put pool rows into `pointer`, and positions in the query's own pool into `pool_positions`."""
    upgraded = dict(candidate)
    pointer = read_rows(upgraded.get("pointer"), f"candidate {index}: pointer")
    listed = upgraded.pop("pointer_pos", None)
    if layout == "v4":
        rows, positions = pointer, listed
    else:
        rows, positions = upgraded.pop("pointer_global", None), pointer
        if listed not in (None, positions):
            raise InputError(f"candidate {index}: pointer_pos and pointer differ")
        if rows is None and pool is None:
            raise InputError(
                f"candidate {index}: positions without pointer_global or candidate_pool_ids"
            )
    if pool is not None and positions is not None:
        found = _at(pool, read_rows(positions, f"candidate {index}: pointer_pos"), index)
        if rows not in (None, found):
            raise InputError(
                f"candidate {index}: rows {rows} are not those of candidate_pool_ids at {positions}"
            )
        rows = found
    upgraded["pointer"] = read_rows(rows, f"candidate {index}: pointer_global")
    if positions is not None:
        upgraded["pool_positions"] = positions
    return upgraded


def _at(pool: list[int], positions: list[int], index: int) -> list[int]:
    if max(positions, default=0) >= len(pool):
        raise InputError(
            f"candidate {index}: position {max(positions)} in a pool of {len(pool)} rows"
        )
    return [pool[position] for position in positions]


def _without_failed_outcome(candidate: Record) -> Record:
    """Lever-Plus wrote a wrong answer for a failed evaluation; move it to `failed_outcome`."""
    if not has_failed(candidate):
        return candidate
    kept = {key: value for key, value in candidate.items() if key not in OUTCOME_KEYS}
    aside = {key: candidate[key] for key in OUTCOME_KEYS if key in candidate}
    return {**kept, FAILED: True, **({"failed_outcome": aside} if aside else {})}


def _upgrade_lever_beams(record: Record) -> Record:
    """Each list of `id_list` is in the order shown and ends with the query's own row."""
    lists, scores = record["id_list"], record.get("score_list")
    if not isinstance(lists, list) or not isinstance(scores, list) or len(lists) != len(scores):
        raise InputError("id_list and score_list are not lists of the same length")
    sequences = [read_rows(each, f"id_list {index}") for index, each in enumerate(lists)]
    if not all(sequences) or len({rows[-1] for rows in sequences}) > 1:
        raise InputError("the lists of id_list do not all end with the query's own row")
    upgraded = {k: v for k, v in record.items() if k not in ("id_list", "score_list", "beams")}
    if "beams" in record:  # the same rows, in the order in which Lever-LM chose them
        upgraded["lever_beams"] = record["beams"]
    upgraded["beams"] = [
        {"pointer": rows[:-1], "score": score, "step_scores": []}
        for rows, score in zip(sequences, scores, strict=True)
    ]
    if sequences:
        own = sequences[0][-1]
        query = upgraded.get("query", {})
        if not isinstance(query, dict) or query.get("row", own) != own:
            raise InputError(f"the query's row is {own} by id_list, and another by `query`")
        upgraded["query"] = {**query, "row": own}
        upgraded.setdefault("excluded", [own])
    return upgraded
