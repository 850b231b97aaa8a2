"""Records as rows of typed columns, and back, with nothing lost.

Columns are typed and JSON is not: a record may have keys that no column is for, 2 where others have
2.0, null where others have nothing, its keys in another order. So each object, that of a record, of
its query and of each candidate, has two columns besides its own:

    _keys   its keys in their order, as a JSON list; null: those whose columns are not null
    _rest   what no column can hold as it is, as a JSON object; null where that is nothing

Where a column can hold such a value for those who compute (2 as 2.0, an id 17 as "17"), it does. As
long as it is the same number or id, what is read back is what stands in `_rest`; a column that was
changed afterwards wins.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from pointer_rl.errors import InputError

__all__ = ["KEYS", "LAYOUTS", "REST", "Kind", "ListOf", "Scalar", "Struct"]

KEYS, REST = "_keys", "_rest"
_MAX_EXACT = 2**53
"""Up to which every whole number is a float64."""


class Kind(Protocol):
    """What a column holds."""

    def pack(self, value: Any) -> tuple[Any, bool]:
        """(the cell for a value, None where there is none; whether that says it exactly)

        Raises ValueError for NaN and infinity, which JSON cannot hold.
        """
        ...

    def unpack(self, cell: Any) -> Any:
        """The value of a cell that is not None."""
        ...


@dataclass(frozen=True)
class Scalar:
    """Text, numbers and flags, by the name that Arrow has for the type."""

    arrow: str
    """string, double, int64 or bool."""
    is_id: bool = False
    """Whether whole numbers are written as text: ids are either."""

    def pack(self, value: Any) -> tuple[Any, bool]:
        match self.arrow, value:
            case "string", str():
                return (value, True) if _is_encodable(value) else (None, False)
            case "string", int() if self.is_id and not isinstance(value, bool):
                return str(value), False
            case "double", float():
                if not math.isfinite(value):
                    raise ValueError("a number that is not finite")
                return value, True
            case "double", int() if not isinstance(value, bool) and abs(value) <= _MAX_EXACT:
                return float(value), False
            case "int64", int() if not isinstance(value, bool) and -(2**63) <= value < 2**63:
                return value, True
            case "bool", bool():
                return value, True
        return None, False

    def unpack(self, cell: Any) -> Any:
        if isinstance(cell, float) and not math.isfinite(cell):
            raise InputError("a number that is not finite, which JSON has no way to write")
        return cell


@dataclass(frozen=True)
class ListOf:
    """A list of values that are all of one kind."""

    item: Kind

    def pack(self, value: Any) -> tuple[Any, bool]:
        if not isinstance(value, list):
            return None, False
        packed = [self.item.pack(each) for each in value]
        exact = all(exact for _, exact in packed)
        return ([cell for cell, _ in packed], True) if exact else (None, False)

    def unpack(self, cell: Any) -> Any:
        return [self.item.unpack(each) for each in cell]


@dataclass(frozen=True)
class Struct:
    """An object: key → what its column holds."""

    fields: Mapping[str, Kind]

    def pack(self, value: Any) -> tuple[Any, bool]:
        if not isinstance(value, dict):
            return None, False
        cells: dict[str, Any] = dict.fromkeys(self.fields)
        rest: dict[str, Any] = {}
        for key, item in value.items():
            kind = self.fields.get(key)
            if kind is not None:
                cells[key], exact = (None, True) if item is None else kind.pack(item)
                if exact:
                    continue
            rest[key] = item
        cells[KEYS] = _write_keys(tuple(value))
        cells[REST] = json.dumps(rest, allow_nan=False) if rest else None
        return cells, True

    def unpack(self, cell: Any) -> Any:
        rest = {} if cell.get(REST) is None else _read_rest(cell[REST])
        if cell.get(KEYS) is None:
            keys = tuple(key for key in self.fields if cell.get(key) is not None)
            keys += tuple(key for key in rest if key not in keys)
        else:
            keys = _read_keys(cell[KEYS])
        return {key: self._value(key, cell.get(key), rest) for key in keys}

    def _value(self, key: str, cell: Any, rest: Mapping[str, Any]) -> Any:
        kind = self.fields.get(key)
        if key in rest and (kind is None or kind.pack(rest[key])[0] == cell):
            return rest[key]
        return None if kind is None or cell is None else kind.unpack(cell)


def _is_encodable(text: str) -> bool:
    """Half a surrogate pair is not: `_rest` escapes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# Records of a file mostly have the same keys.
@lru_cache(maxsize=1 << 10)
def _write_keys(keys: tuple[str, ...]) -> str:
    return json.dumps(keys)


@lru_cache(maxsize=1 << 10)
def _read_keys(text: str) -> tuple[str, ...]:
    keys = _parse(KEYS, text)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise InputError(f"{KEYS} is no JSON list of keys")
    return tuple(keys)


def _read_rest(text: str) -> dict[str, Any]:
    rest = _parse(REST, text)
    if not isinstance(rest, dict):
        raise InputError(f"{REST} is no JSON object")
    return rest


def _parse(column: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{column} is no JSON ({error})") from error


# --- the layouts ------------------------------------------------------------------------------

TEXT, NUMBER, WHOLE, FLAG = Scalar("string"), Scalar("double"), Scalar("int64"), Scalar("bool")
ID = Scalar("string", is_id=True)
ROWS = ListOf(WHOLE)

_QUERY = Struct(
    {
        "query_id": ID,
        "question_id": ID,
        "image_id": ID,
        "row": WHOLE,
        "question": TEXT,
        "gt_answers_raw": ListOf(TEXT),
        "gt_answers_norm": ListOf(TEXT),
    }
)
_CANDIDATE = Struct(
    {
        "pointer": ROWS,
        "gen_method": TEXT,
        "beam_rank": WHOLE,
        "beam_score": NUMBER,
        "logprob_score": NUMBER,
        "temperature": NUMBER,
        "top_p": NUMBER,
        "similarity_score": NUMBER,
        "vqa_pred_answer": TEXT,
        "vqa_correct": WHOLE,
        "vqa_acc_score": NUMBER,
        "vqa_raw_generation": TEXT,
        "vqa_gt_prob": NUMBER,
        "vqa_rel_score": NUMBER,
        "vqa_rel_token_f1": NUMBER,
        "vqa_rel_edit_sim": NUMBER,
        "vqa_eval_mode": TEXT,
        "eval_failed": FLAG,
        "eval_error": TEXT,
    }
)
_BEAM = Struct({"pointer": ROWS, "score": NUMBER, "step_scores": ListOf(NUMBER)})
_COMMON: dict[str, Kind] = {"query": _QUERY, "pool": ROWS, "excluded": ROWS}

LAYOUTS = {
    "pointer_candidates": Struct({**_COMMON, "pointer_candidates": ListOf(_CANDIDATE)}),
    "beams": Struct({**_COMMON, "beams": ListOf(_BEAM)}),
}
"""The key that a record's kind is told by → its columns."""
