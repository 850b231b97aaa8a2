"""The fields of a record, defined once.

Writing and reading records, the arrays for training, the Parquet columns and the upgrade of older
layouts are derived from the tables below, and a test compares them with the JSON schemas. To add a
field of an outcome, add it to `pointer_rl.types.Outcome`, to `CANDIDATE` and to the schema, and set
it in `pointer_rl.session.judge`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Type:
    """The type of a field's value."""

    json: tuple[str, ...]
    """JSON Schema's names for it; of the items, in a list."""
    arrow: str
    """Arrow's name for it; of the items, in a list."""
    is_list: bool = False
    to_json: Callable[[Any], Any] | None = None
    """Converts an attribute for a record; None: it is written as it is."""
    from_json: Callable[[Any], Any] | None = None
    """Converts a value of a record, other than null, for the attribute."""


def _rows(value: Iterable[Any]) -> tuple[int, ...]:
    """Pool rows, which other programs also write as 7.0."""
    return tuple(map(int, value))


TEXT = Type(("string",), "string")
NUMBER = Type(("number",), "double")
INTEGER = Type(("integer",), "int64")
BINARY = Type(("integer",), "int64", to_json=int, from_json=bool)
FLAG = Type(("boolean",), "bool")
ID = Type(("string", "integer"), "string")
TEXTS = Type(("string",), "string", is_list=True, to_json=list, from_json=tuple)
NUMBERS = Type(("number",), "double", is_list=True, to_json=list, from_json=tuple)
ROWS = Type(("integer",), "int64", is_list=True, to_json=list, from_json=_rows)


@dataclass(frozen=True)
class Field:
    """One field of a query, a candidate or a beam."""

    key: str
    """Its key in JSON, and the name of its Parquet column."""
    attribute: str | None
    """The attribute of the class that it describes; None if only files have the field."""
    type: Type
    presence: Literal["required", "nullable", "optional"]
    """required: in every record. nullable: always written, null if it does not apply. optional:
    written unless it is None."""
    part: Literal["candidate", "outcome", "failure"] = "candidate"
    """A candidate has the fields of its outcome or, if its trial failed, those of the failure."""


@dataclass(frozen=True)
class Objects:
    """The type of a field that holds an object with fields of its own, or a list of objects."""

    fields: Mapping[str, Field]
    is_list: bool = False


def _by_key(*fields: Field) -> dict[str, Field]:
    return {field.key: field for field in fields}


QUERY = _by_key(
    Field("query_id", "id", ID, "required"),
    Field("question_id", "question_id", ID, "nullable"),
    Field("image_id", "image_id", ID, "nullable"),
    Field("row", "row", INTEGER, "required"),
    Field("question", "question", TEXT, "required"),
    Field("gt_answers_raw", "answers", TEXTS, "required"),
    Field("gt_answers_norm", None, TEXTS, "optional"),
)
"""A `pointer_rl.types.Example`; the metric adds `gt_answers_norm`."""

CANDIDATE = _by_key(
    Field("pointer", "pointer", ROWS, "required"),
    Field("gen_method", "gen_method", TEXT, "required"),
    Field("beam_rank", "beam_rank", INTEGER, "nullable"),
    Field("beam_score", "beam_score", NUMBER, "nullable"),
    Field("logprob_score", "logprob_score", NUMBER, "nullable"),
    Field("temperature", "temperature", NUMBER, "nullable"),
    Field("vqa_pred_answer", "answer", TEXT, "required", "outcome"),
    Field("vqa_correct", "correct", BINARY, "required", "outcome"),
    Field("vqa_acc_score", "accuracy", NUMBER, "required", "outcome"),
    Field("top_p", "top_p", NUMBER, "optional"),
    Field("similarity_score", "similarity_score", NUMBER, "optional"),
    Field("vqa_raw_generation", "raw_generation", TEXT, "optional", "outcome"),
    Field("vqa_gt_prob", "gt_prob", NUMBER, "optional", "outcome"),
    Field("vqa_rel_token_f1", None, NUMBER, "optional", "outcome"),
    Field("vqa_rel_edit_sim", None, NUMBER, "optional", "outcome"),
    Field("vqa_rel_score", "rel_score", NUMBER, "optional", "outcome"),
    Field("vqa_eval_mode", None, TEXT, "optional"),
    Field("eval_failed", None, FLAG, "optional", "failure"),
    Field("eval_error", "failure", TEXT, "optional", "failure"),
)
"""A `pointer_rl.types.Candidate` and its `Outcome`, in the order in which they are written."""

FAILED = "eval_failed"
"""The key that is true in a candidate whose trial failed."""


def has_failed(candidate: Mapping[str, Any]) -> bool:
    """Whether a candidate's trial failed. Lever-Plus may say so by `vqa_eval_mode` alone."""
    return bool(candidate.get(FAILED)) or candidate.get("vqa_eval_mode") == "error"


OUTCOME_KEYS = tuple(field.key for field in CANDIDATE.values() if field.part == "outcome")
"""The fields that a candidate whose trial failed does not have."""

BEAM = _by_key(
    Field("pointer", "pointer", ROWS, "required"),
    Field("score", "score", NUMBER, "required"),
    Field("step_scores", "step_scores", NUMBERS, "optional"),
)
"""A `pointer_rl.records.beams.Beam`."""

RECORDS: dict[str, dict[str, Type | Objects]] = {
    "pointer_candidates": {
        "query": Objects(QUERY),
        "pool": ROWS,
        "excluded": ROWS,
        "pointer_candidates": Objects(CANDIDATE, is_list=True),
    },
    "beams": {
        "query": Objects(QUERY),
        "beams": Objects(BEAM, is_list=True),
        "trials": INTEGER,
        "pool": ROWS,
        "excluded": ROWS,
    },
}
"""The key that tells the kind of a record → the record's own keys and their types."""
