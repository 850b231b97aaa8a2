"""The files of the recipes' datasets, small, in their published layouts; the images are glyphs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from pointer_rl.types import Example
from pointer_rl_glyphs.dataset import draw_split
from pointer_rl_glyphs.options import GlyphsOptions


def write_coco(root: Path, prefix: str, size: int = 16) -> None:
    """Questions and annotations of VQAv2 (prefix `v2_`) or OK-VQA (none), and COCO's images.

    `size` training questions, and four for validation.
    """
    drawn = draw(size + 4)
    for split, examples, first in (
        ("train2014", drawn[:size], 1),
        ("val2014", drawn[size:], size + 1),
    ):
        folder = root / split
        folder.mkdir(parents=True, exist_ok=True)
        questions, annotations = [], []
        for number, each in enumerate(examples, start=first):
            each.image.open().convert("RGB").save(folder / f"COCO_{split}_{number:012d}.jpg")
            ids = {"image_id": number, "question_id": 10 * number}
            questions.append({**ids, "question": each.question})
            answers = [
                {"answer": answer, "answer_confidence": "yes", "answer_id": place}
                for place, answer in enumerate(each.answers, start=1)
            ]
            annotations.append({**ids, "question_type": "what", "answers": answers})
        head = {"info": {"version": "2.0"}, "data_type": "mscoco", "data_subtype": split}
        _write(root / f"{prefix}OpenEnded_mscoco_{split}_questions.json", head, questions)
        _write(root / f"{prefix}mscoco_{split}_annotations.json", head, annotations)


VL_ICL = ("open_mi", "operator_induction", "clevr", "textocr")


def write_vl_icl(root: Path, tasks: Sequence[str] = VL_ICL) -> None:
    """Tasks whose examples have one image, each with 6 queries.

    A support of 12, or of two classes of three images for each query of open_mi.
    """
    for task in set(tasks) - {"open_mi"}:
        support = [_item(root, task, "support", row) for row in range(12)]
        queries = [_item(root, task, "query", row) for row in range(6)]
        if task == "operator_induction":
            for row, each in enumerate(support):
                number = row % 4
                each["answer"] = [number + 2, number - 2, number * 2]
            for row, each in enumerate(queries):
                each |= {"operator": "+-x"[row % 3], "answer": row}
        _write_task(root / task, queries, support)
    if "open_mi" not in tasks:
        return
    support = [_item(root, "open_mi", "support", row) for row in range(36)]
    queries = [_item(root, "open_mi", "query", row) for row in range(6)]
    for row, each in enumerate(queries):
        names = ("dax", "perpo") if row % 2 else ("perpo", "blicket")
        shown = [path for item in support[6 * row : 6 * row + 6] for path in item["image"]]
        each |= {
            "question": "This is a",
            "answer": names[0],
            "classes": list(names),
            "support": {
                name: {"images": shown[3 * place : 3 * place + 3], "caption": f"This is a {name}"}
                for place, name in enumerate(names)
            },
        }
    _write_task(root / "open_mi", queries, support)


@cache
def draw(size: int) -> tuple[Example, ...]:
    """Examples of glyphs."""
    return tuple(draw_split(GlyphsOptions(pool_size=size), "pool"))


def _item(root: Path, task: str, split: str, row: int) -> dict:
    folder = root / task / split
    folder.mkdir(parents=True, exist_ok=True)
    drawn = draw(48)[row if split == "support" else 40 + row]
    drawn.image.open().convert("RGB").save(folder / f"{row}.png")
    answer = row % 3 if task == "clevr" else drawn.answer
    image = f"{task}/{split}/{row}.png"
    return {"id": row, "image": [image], "question": drawn.question, "answer": answer}


def _write_task(folder: Path, queries: list[dict], support: list[dict]) -> None:
    (folder / "query.json").write_text(json.dumps(queries), encoding="utf-8")
    (folder / "support.json").write_text(json.dumps(support), encoding="utf-8")


def _write(path: Path, head: dict, items: list[dict]) -> None:
    key = "questions" if path.stem.endswith("questions") else "annotations"
    path.write_text(json.dumps({**head, key: items}), encoding="utf-8")
