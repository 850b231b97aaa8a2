"""The queries that a report shows one by one: all of them, or a random sample that fits the page.

Queries are kept as compact JSON, a list each, since there may be 100,000 of them; `assets/page.js`
reads the same places:

    query:      [id, question, [[annotators' answer, number], …], dataset row, [candidate, …]]
    candidate:  [methods, rows, state, accuracy, answer, raw generation or 0 if it is the answer,
                 {further field: value}]
    state:      0 wrong, 1 right, 2 failed (the answer is then the reason), 3 not judged
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pointer_rl.escaping import printable
from pointer_rl.records.fields import has_failed
from pointer_rl.report.tally import methods_of
from pointer_rl.report.trials import QueryTrials

_FURTHER = {
    "logprob_score": "log p(pointer)",
    "vqa_gt_prob": "p(answers)",
    "beam_rank": "beam rank",
    "beam_score": "beam score",
    "temperature": "temperature",
    "top_p": "top p",
    "similarity_score": "similarity",
    "vqa_rel_score": "similarity to the answers",
    "score": "InfoScore",
}
"""Key of a candidate or beam → what the gallery calls it."""
_WRONG, _RIGHT, _FAILED, _NOT_JUDGED = range(4)


@dataclass
class Sample:
    """The queries of one file: those with the smallest hashes of their ids, up to a size.

    Which ones are kept does not depend on their order or on the file, so that files about the same
    queries keep the same ones.
    """

    name: str
    methods: dict[str, int] = field(default_factory=dict)
    """Name → the number that candidates use."""
    total: int = 0
    """Queries in the file."""
    size: int = 0
    """Bytes of those that are kept."""
    _kept: list[tuple[int, int, str]] = field(default_factory=list)
    """A heap of (-hash, place in the file, JSON)."""

    def add(self, trials: QueryTrials, most: int) -> None:
        """Offer a query; `most` bytes are kept."""
        text = to_json(self._describe(trials))
        digest = hashlib.blake2b(trials.id.encode("utf-8", "replace"), digest_size=8).digest()
        heapq.heappush(self._kept, (-int.from_bytes(digest), self.total, text))
        self.total += 1
        self.size += len(text)
        self.shrink(most)

    def shrink(self, most: int) -> None:
        """Drop the queries with the largest hashes until `most` bytes are left."""
        while self.size > most and self._kept:
            self.size -= len(heapq.heappop(self._kept)[2])

    @property
    def kept(self) -> int:
        """Number of queries that are kept."""
        return len(self._kept)

    def in_file_order(self) -> list[str]:
        """The queries as JSON."""
        return [text for _, _, text in sorted(self._kept, key=lambda each: each[1])]

    def by_hash(self) -> Iterator[Any]:
        """The queries, those first that a smaller sample would keep."""
        for _, _, text in sorted(self._kept, key=lambda each: -each[0]):
            yield json.loads(text)

    def _describe(self, trials: QueryTrials) -> list[Any]:
        described: Mapping[str, Any] = trials.record.get("query", {})
        answers = Counter(map(printable, described.get("gt_answers_raw", ())))
        row = described.get("row")
        return [
            printable(trials.id),
            printable(described.get("question", "")),
            [[answer, number] for answer, number in answers.most_common()],
            row if isinstance(row, int) else -1,
            [self._candidate(trials, one) for one in trials.candidates],
        ]

    def _candidate(self, trials: QueryTrials, one: Mapping[str, Any]) -> list[Any]:
        methods = [
            self.methods.setdefault(name, len(self.methods)) for name in methods_of(trials, one)
        ]
        rows = [int(row) for row in one["pointer"]]
        further = {
            label: _short(one[key])
            for key, label in _FURTHER.items()
            if isinstance(one.get(key), int | float)
        }
        if has_failed(one):
            reason = printable(one.get("eval_error") or "no reason recorded")
            return [methods, rows, _FAILED, 0, reason, 0, further]
        answer = printable(one.get("vqa_pred_answer", ""))
        raw = printable(one.get("vqa_raw_generation", answer))
        correct, accuracy = one.get("vqa_correct"), one.get("vqa_acc_score")
        state = _NOT_JUDGED if correct is None else _RIGHT if correct else _WRONG
        accuracy = _short(accuracy) if isinstance(accuracy, int | float) else 0
        return [methods, rows, state, accuracy, answer, 0 if raw == answer else raw, further]


def share_out(samples: Sequence[Sample], most: int) -> int:
    """Shrink the samples to `most` bytes together; small ones stay whole, others get equal parts.

    Returns the part: the most that one more sample should keep.
    """
    left, part = most, most
    for place, sample in enumerate(sorted(samples, key=lambda each: each.size)):
        part = left // (len(samples) - place)
        sample.shrink(part)
        left -= sample.size
    return max(part, left)


def to_json(value: object) -> str:
    """Compact JSON that may stand inside a script element: no `<` and no lone surrogates."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        if character in text:
            text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _short(value: float) -> float:
    """Four digits are shown; more would be a third of the page."""
    return float(f"{value:.4g}") if isinstance(value, float) else value
