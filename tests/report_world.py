"""RL data and an evaluation about a small dataset of files, for the tests of the report.

Its texts are what a report must show as text: markup, control characters, other scripts.
"""

from __future__ import annotations

import json
import random
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import PIL.Image

from pointer_rl.records.formats import open_writer
from pointer_rl.records.records import to_record
from pointer_rl.types import Candidate, Example, Outcome

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)> & &lt;b&gt; \"quoted\" 'too' <!-- ${x} {{ 7*7 }}",
    "a\x00b\x1b[31mred\x07\r\nnext\u2028line\ud800end",
    "\u202eright to left mark\u202c",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u4f60\u597d",
    "\U0001f469\u200d\U0001f52c\U0001f1eb\U0001f1f7\u2764\ufe0f",
    "long " * 2_000,
    "javascript:alert(1)",
)
EXAMPLES = 8


def write_world(folder: Path, texts: tuple[str, ...] = HOSTILE, queries: int = EXAMPLES) -> Path:
    """Write `data.jsonl` with images, and `rl.json` with four trials of each query.

    Questions, answers, raw generations, ids and the reason of a failure are taken from `texts` in
    turn. Returns `rl.json`.
    """
    said = [texts[number % len(texts)] for number in range(max(queries, EXAMPLES))]
    rows = []
    for number, text in enumerate(said):
        path = folder / f"{number % EXAMPLES}.png"
        PIL.Image.new("RGB", (90, 60), (30 * (number % EXAMPLES), 90, 120)).save(path)
        answers = [text.replace("\ud800", ""), "no"] * 3
        id, question = f"q{number}", f"{text} {number}?".replace("\ud800", "")
        rows.append({"id": id, "image": path.name, "question": question, "answers": answers})
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = {"name": "jsonl", "options": {"path": str(data)}, "pool_size": len(rows)}
    rng = random.Random(0)
    writer = open_writer(
        folder / "rl.json", {"dataset": dataset, "note": texts[0], "notes": [texts[0]]}
    )
    with writer:
        for number in range(queries):
            judged = _trials(number, len(rows), said[number], rng)
            writer.write(rows[number]["id"], to_record(_example(rows[number], number), judged))
    return folder / "rl.json"


def _example(row: dict[str, Any], number: int) -> Example:
    answers = tuple(row["answers"])
    image: Any = None
    return Example(row["id"], number, image, row["question"], answers, image_id=number)


def _trials(
    number: int, pool: int, text: str, rng: random.Random
) -> list[tuple[Candidate, Outcome]]:
    others = [row for row in range(pool) if row != number]
    found = []
    for place, method in enumerate(("beam", "beam", "random", "random")):
        rows = tuple(rng.sample(others, 2))
        candidate = Candidate(rows, method)
        if method == "beam":
            candidate = Candidate(
                rows, method, beam_rank=place, beam_score=-1.5, logprob_score=-1.5
            )
        accuracy = rng.choice([0.0, 0.3, 1.0])
        outcome = Outcome(
            raw_generation=f"<think>{text}",
            answer=text,
            correct=accuracy > 0,
            accuracy=accuracy,
        )
        if number % 4 == 3 and place == 3:
            outcome = Outcome(failure=f"the server said: {text}")
        found.append((candidate, outcome))
    return found


class Page(HTMLParser):
    """A page as a browser reads it, without running its script."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.text = ""
        """What is shown without the script."""
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, str] = {}
        """Content of style and script elements: `style`, `script`, or their id."""
        self._inside: str | None = None
        self.bytes = path.read_bytes()
        self.feed(self.bytes.decode("utf-8"))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = dict(attrs).get("id") or tag
            assert self._inside not in self.raw
            self.raw[self._inside] = ""

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self._inside = None

    def handle_data(self, data):
        if self._inside is None:
            self.text += data
        else:
            self.raw[self._inside] += data

    def data(self, id: str) -> Any:
        """The JSON of a block."""
        return json.loads(self.raw[f"json-{id}"])

    @property
    def policy(self) -> str:
        """The content security policy."""
        [found] = [
            attributes["content"]
            for tag, attributes in self.tags
            if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
        ]
        assert found is not None
        return found
