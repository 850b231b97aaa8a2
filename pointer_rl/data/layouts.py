"""The layouts of RL data that the ancestors (Lever-LM, Lever-Plus) wrote, told apart by record."""

from __future__ import annotations

from typing import Any, Literal

__all__ = ["LAYOUTS", "Layout", "detect_layout"]

Layout = Literal["pointer_candidates", "v4", "k64", "beam"]

LAYOUTS: dict[Layout, str] = {
    "pointer_candidates": "RL data: `pointer` holds rows of the whole pool",
    "v4": "RL data of Lever-Plus v4: `pointer` holds rows of the whole pool, `pointer_pos` repeats "
    "them as positions in a candidate pool",
    "k64": "older layout k64: `pointer` holds positions in candidate_pool_ids, not pool rows "
    "(those are in `pointer_global`)",
    "beam": "beam data of Lever-LM (id_list, score_list): demonstrations scored for SFT, with no "
    "answers; it is not RL data",
}
"""Layout → what it is."""


def detect_layout(record: Any) -> Layout:
    """The layout of one query's record; "pointer_candidates" for what bears no older one's mark."""
    if not isinstance(record, dict):
        return "pointer_candidates"
    candidates = record.get("pointer_candidates")
    if candidates is None and "id_list" in record:
        return "beam"
    if "candidate_pool_ids" in record or _first_has(candidates, "pointer_global"):
        return "k64"
    if _first_has(candidates, "pointer_pos"):
        return "v4"
    return "pointer_candidates"


def _first_has(candidates: Any, key: str) -> bool:
    first = candidates[0] if isinstance(candidates, list) and candidates else None
    return isinstance(first, dict) and key in first
